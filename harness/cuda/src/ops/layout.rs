//! Ways into channels-last order and out of it, for images and for the weights of convolutions.

use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_layout", ptx: ptx::LAYOUT };

/// Threads of a block, and what it moves at once; the kernels have the same numbers.
const THREADS: u32 = 256;
const TILE_PIXELS: usize = 128;
const TILE_CHANNELS: usize = 32;
/// Input channels of a weight that a block moves, and the most numbers: 48 KB.
const CHUNK: usize = 128;
const CHUNK_NUMBERS: usize = 12 << 10;

/// Moves the bytes of an image in and out.
///
/// # Shapes
/// `[batch, channels, height, width]` in `f32` to `[batch, height, width, padded]` in `dtype`, `f32` or
/// `bf16`; channels behind the last one are zero
///
/// # Errors
/// Other shapes or dtypes, fewer channels than before, or the device's.
pub fn to_channels_last(xs: &Tensor, dtype: DType, padded: usize) -> Result<Tensor> {
    let (_, channels, _, _) = xs.dims4()?;
    if xs.dtype() != DType::F32 || padded < channels {
        bail!("to_channels_last expected f32 of at most {padded} channels, got {xs:?}");
    }
    op::apply1(ToLast { dtype, padded }, xs)
}

/// Moves the bytes of the channels that are kept in and out.
///
/// # Shapes
/// `[batch, height, width, padded]` in `f32` or `bf16` to `[batch, channels, height, width]` in `f32`;
/// channels behind the last one are left out
///
/// # Errors
/// Other shapes or dtypes, more channels than before, or the device's.
pub fn to_channels_first(xs: &Tensor, channels: usize) -> Result<Tensor> {
    let (_, _, _, padded) = xs.dims4()?;
    if channels == 0 || channels > padded {
        bail!("to_channels_first expected 1 to {padded} channels, got {channels}");
    }
    op::apply1(ToFirst { channels }, xs)
}

/// Moves the bytes of the weight in and out.
///
/// # Shapes
/// `[c_out, c_in, kernel, kernel]` in `f32` to `[padded_out, kernel, kernel, padded_in]` in `dtype`, `f32`
/// or `bf16`; what is added is zero
///
/// # Errors
/// Other shapes or dtypes, fewer channels than before, a kernel of more than 110x110, or the device's.
pub fn pack_weight(
    weight: &Tensor,
    dtype: DType,
    padded_out: usize,
    padded_in: usize,
) -> Result<Tensor> {
    let (c_out, c_in, height, width) = weight.dims4()?;
    let fits = padded_out >= c_out && padded_in >= c_in && height * width <= CHUNK_NUMBERS;
    if weight.dtype() != DType::F32 || !fits {
        bail!("pack_weight expected f32 within [{padded_out}, {padded_in}, ..], got {weight:?}");
    }
    op::apply1(Pack { dtype, padded_out, padded_in }, weight)
}

struct ToLast {
    dtype: DType,
    padded: usize,
}

impl Operation<1> for ToLast {
    const NAME: &'static str = "to_channels_last";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let (batch, channels, height, width) = xs.shape().dims4()?;
        let shape = Shape::from((batch, height, width, self.padded));
        let sizes = Sizes { batch, channels, padded: self.padded, pixels: height * width };
        let function = format!("to_last_{}", launch::suffix(self.dtype)?);
        Ok((sizes.run(xs, self.dtype, &shape, &function, self.padded)?, shape))
    }

    fn backward(&self, [xs]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(run(&ToFirst { channels: xs.dims()[1] }, grad)?)])
    }
}

struct ToFirst {
    channels: usize,
}

impl Operation<1> for ToFirst {
    const NAME: &'static str = "to_channels_first";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let (batch, height, width, padded) = xs.shape().dims4()?;
        let channels = self.channels;
        let shape = Shape::from((batch, channels, height, width));
        let sizes = Sizes { batch, channels, padded, pixels: height * width };
        let function = format!("to_first_{}", launch::suffix(xs.dtype())?);
        Ok((sizes.run(xs, DType::F32, &shape, &function, channels)?, shape))
    }

    fn backward(&self, [xs]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(run(&ToLast { dtype: xs.dtype(), padded: xs.dims()[3] }, grad)?)])
    }
}

fn run(operation: &impl Operation<1>, xs: &Tensor) -> Result<Tensor> {
    let (storage, shape) = op::with_views([xs], |views| operation.forward(views))?;
    Ok(op::tensor(storage, shape))
}

/// What both ways have in common.
struct Sizes {
    batch: usize,
    channels: usize,
    padded: usize,
    pixels: usize,
}

impl Sizes {
    /// `wide` is the number of channels that the tiles cover: those of the result.
    fn run(
        &self,
        xs: View<'_>,
        dtype: DType,
        shape: &Shape,
        function: &str,
        wide: usize,
    ) -> Result<CudaStorage> {
        let device = xs.device();
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let from = xs.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let tiles = self.pixels.div_ceil(TILE_PIXELS) * wide.div_ceil(TILE_CHANNELS);
            let args = [
                from.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(self.channels)?),
                Arg::U32(launch::to_u32(self.padded)?),
                Arg::U32(launch::to_u32(self.pixels)?),
            ];
            let blocks = launch::to_u32(tiles * self.batch)?;
            let config = launch::blocks_of(blocks, THREADS, 0);
            // SAFETY: the parameters of `to_last` and `to_first`; a block for each tile of each image.
            unsafe { launch::launch(device, &MODULE, function, config, &args) }?;
        }
        Ok(out)
    }
}

struct Pack {
    dtype: DType,
    padded_out: usize,
    padded_in: usize,
}

impl Operation<1> for Pack {
    const NAME: &'static str = "pack_weight";

    fn forward(&self, [weight]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let device = weight.device();
        let (c_out, c_in, height, width) = weight.shape().dims4()?;
        let area = height * width;
        let shape = Shape::from((self.padded_out, height, width, self.padded_in));
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, self.dtype, shape.elem_count())?;
        let from = weight.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let chunk = chunk(area, self.padded_in);
            let args = [
                from.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(c_out)?),
                Arg::U32(launch::to_u32(c_in)?),
                Arg::U32(launch::to_u32(self.padded_in)?),
                Arg::U32(launch::to_u32(area)?),
                Arg::U32(launch::to_u32(chunk)?),
            ];
            let blocks = launch::to_u32(self.padded_out * self.padded_in.div_ceil(chunk))?;
            let config = launch::blocks_of(blocks, THREADS, launch::to_u32(chunk * area * 4)?);
            let function = format!("pack_{}", launch::suffix(self.dtype)?);
            // SAFETY: the parameters of `pack`; a block for each chunk of each output channel, with memory
            // for it.
            unsafe { launch::launch(device, &MODULE, &function, config, &args) }?;
        }
        Ok((out, shape))
    }

    fn backward(&self, [weight]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (c_out, c_in, height, width) = weight.dims4()?;
        let unpacked = op::with_views([grad], |[grad]| unpack(grad, c_out, c_in, height * width))?;
        Ok([Some(op::tensor(unpacked, weight.shape()))])
    }
}

fn chunk(area: usize, channels: usize) -> usize {
    channels.min(CHUNK).min(CHUNK_NUMBERS / area)
}

/// `[padded_out, area, padded_in]` to `[c_out, c_in, area]` in `f32`.
fn unpack(packed: View<'_>, c_out: usize, c_in: usize, area: usize) -> Result<CudaStorage> {
    let device = packed.device();
    let padded_in = packed.dims()[3];
    let stream = device.cuda_stream();
    let mut out = launch::alloc(device, DType::F32, c_out * c_in * area)?;
    let from = packed.pointer(&stream)?;
    {
        let to = launch::pointer_mut(&mut out, &stream)?;
        let chunk = chunk(area, c_in);
        let args = [
            from.arg(),
            to.arg(),
            Arg::U32(launch::to_u32(c_in)?),
            Arg::U32(launch::to_u32(padded_in)?),
            Arg::U32(launch::to_u32(area)?),
            Arg::U32(launch::to_u32(chunk)?),
        ];
        let blocks = launch::to_u32(c_out * c_in.div_ceil(chunk))?;
        let config = launch::blocks_of(blocks, THREADS, launch::to_u32(chunk * area * 4)?);
        let function = format!("unpack_{}", launch::suffix(packed.dtype())?);
        // SAFETY: the parameters of `unpack`; a block for each chunk of each output channel, with memory
        // for it.
        unsafe { launch::launch(device, &MODULE, &function, config, &args) }?;
    }
    Ok(out)
}
