//! Sums of images, sums with biases, and the sums over rows that are the gradients of biases.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_elementwise", ptx: ptx::ELEMENTWISE };

/// `a + b`, plus a number for each channel.
///
/// Moves twice the bytes of an image in and once out.
///
/// # Shapes
/// - `a`, `b`, result: `[batch, height, width, channels]`, `f32` or `bf16`
/// - `bias`: `[channels]`, `f32`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn add(a: &Tensor, b: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, _, _, channels) = a.dims4()?;
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!(
            "add expected two images alike, got {:?} in {:?} and {:?} in {:?}",
            a.dims(),
            a.dtype(),
            b.dims(),
            b.dtype()
        );
    }
    let Some(bias) = bias else { return op::apply2(Add, a, b) };
    if bias.dims() != [channels] || bias.dtype() != DType::F32 {
        bail!("add expected a bias [{channels}] in f32, got {bias:?}");
    }
    op::apply3(Add, a, b, bias)
}

/// `xs` plus a number for each channel, or for each image and channel.
///
/// Moves the bytes of an image in and out.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`, `f32` or `bf16`
/// - `bias`: `[channels]` or `[batch, channels]`, `f32`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, _, _, channels) = xs.dims4()?;
    let fits = bias.dims() == [channels] || bias.dims() == [batch, channels];
    if !fits || bias.dtype() != DType::F32 {
        bail!(
            "add_bias expected a bias [{channels}] or [{batch}, {channels}] in f32, got {bias:?}"
        );
    }
    op::apply2(AddBias, xs, bias)
}

struct Add;

impl Add {
    fn run(a: View<'_>, b: View<'_>, bias: Option<View<'_>>) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (a.device(), a.dtype(), a.shape().clone());
        let channels = a.dims()[3];
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let (a, b) = (a.pointer(&stream)?, b.pointer(&stream)?);
        let bias = bias.map(|bias| bias.pointer(&stream)).transpose()?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let mut pointers = vec![&a, &b, &to];
            pointers.extend(&bias);
            let pack = launch::pack(dtype, &[channels], &pointers);
            let packs = shape.elem_count() / pack;
            let args = [
                a.arg(),
                b.arg(),
                bias.as_ref().map_or(Arg::Pointer(0), launch::Pointer::arg),
                to.arg(),
                Arg::U32(launch::to_u32(packs)?),
                Arg::U32(launch::to_u32(channels / pack)?),
            ];
            let function = format!("add_{}_{pack}", launch::suffix(dtype)?);
            // SAFETY: the parameters of `add`; all images have `packs` packs, the bias `channels` numbers.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
        }
        Ok((out, shape))
    }
}

impl Operation<2> for Add {
    const NAME: &'static str = "add";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        Self::run(a, b, None)
    }

    fn backward(&self, _args: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(grad.clone()), Some(grad.clone())])
    }
}

impl Operation<3> for Add {
    const NAME: &'static str = "add";

    fn forward(&self, [a, b, bias]: [View<'_>; 3]) -> Result<(CudaStorage, Shape)> {
        Self::run(a, b, Some(bias))
    }

    fn backward(&self, [_, _, bias]: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        Ok([Some(grad.clone()), Some(grad.clone()), bias_gradient(bias, grad)?])
    }
}

struct AddBias;

impl Operation<2> for AddBias {
    const NAME: &'static str = "add_bias";

    fn forward(&self, [xs, bias]: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (xs.device(), xs.dtype(), xs.shape().clone());
        let (_, height, width, channels) = shape.dims4()?;
        let stride = if bias.dims().len() == 2 { channels } else { 0 };
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let (xs, bias) = (xs.pointer(&stream)?, bias.pointer(&stream)?);
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let pack = launch::pack(dtype, &[channels], &[&xs, &bias, &to]);
            let packs = shape.elem_count() / pack;
            let args = [
                xs.arg(),
                bias.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(packs)?),
                Arg::U32(launch::to_u32(channels / pack)?),
                Arg::U32(launch::to_u32(height * width * channels / pack)?),
                Arg::U32(launch::to_u32(stride)?),
            ];
            let function = format!("add_bias_{}_{pack}", launch::suffix(dtype)?);
            // SAFETY: the parameters of `add_bias`; the bias has `channels` numbers for each image, or once.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
        }
        Ok((out, shape))
    }

    fn backward(&self, [_, bias]: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(grad.clone()), bias_gradient(bias, grad)?])
    }
}

/// What a bias of an image gets: the sum over all pixels that it was added to.
fn bias_gradient(bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let (batch, height, width, channels) = grad.dims4()?;
    let images = if bias.rank() == 2 { batch } else { 1 };
    let rows = batch / images * height * width;
    let sums = op::with_views([grad], |[grad]| sum_rows(grad, images, rows, channels))?;
    Ok(Some(op::tensor(sums, bias.shape())))
}

/// The sums over `rows` rows of `channels`, for each of `images`, in an order that depends on the sizes
/// only.
///
/// Reads everything once; what lies between the two stages is at most a 64th of it.
///
/// # Shapes
/// `xs`: `images * rows * channels` numbers in `f32` or `bf16` to `[images, channels]` in `f32`
pub(super) fn sum_rows(
    xs: View<'_>,
    images: usize,
    rows: usize,
    channels: usize,
) -> Result<CudaStorage> {
    let device = xs.device();
    // Enough blocks for every multiprocessor to have several, none with less than 64 rows.
    let blocks_wide = channels.div_ceil(64);
    let chunks = (1024 / (blocks_wide * images)).clamp(1, rows.div_ceil(64));
    let rows_each = rows.div_ceil(chunks);
    let chunks = rows.div_ceil(rows_each);
    let first = sum_stage(device, xs, [images, rows, channels], rows_each)?;
    if chunks == 1 {
        return Ok(first);
    }
    let layout = candle_core::Layout::contiguous((images, chunks, channels));
    let view = View { storage: &first, layout: &layout };
    sum_stage(device, view, [images, chunks, channels], chunks)
}

/// One launch: `[images, rows, channels]` to `[images, rows / rows_each, channels]`.
fn sum_stage(
    device: &CudaDevice,
    xs: View<'_>,
    [images, rows, channels]: [usize; 3],
    rows_each: usize,
) -> Result<CudaStorage> {
    let stream = device.cuda_stream();
    let dtype = xs.dtype();
    let chunks = rows.div_ceil(rows_each);
    let mut out = launch::alloc(device, DType::F32, images * chunks * channels)?;
    let from = xs.pointer(&stream)?;
    {
        let to = launch::pointer_mut(&mut out, &stream)?;
        let pack = launch::pack(dtype, &[channels], &[&from]);
        let columns = channels / pack;
        let slab = columns.min(if pack == 1 { 32 } else { 8 });
        let blocks = images * chunks * columns.div_ceil(slab);
        let args = [
            from.arg(),
            to.arg(),
            Arg::U32(launch::to_u32(rows)?),
            Arg::U32(launch::to_u32(columns)?),
            Arg::U32(launch::to_u32(rows_each)?),
            Arg::U32(launch::to_u32(slab)?),
        ];
        let function = format!("sum_rows_{}_{pack}", launch::suffix(dtype)?);
        let config = launch::blocks_of(launch::to_u32(blocks)?, 256, 0);
        // SAFETY: the parameters of `sum_rows`; blocks of 256 threads cover images, chunks and columns,
        // and a slab has at most 256 columns.
        unsafe { launch::launch(device, &MODULE, &function, config, &args) }?;
    }
    Ok(out)
}
