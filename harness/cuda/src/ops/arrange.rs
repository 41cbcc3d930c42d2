//! Operations that move pixels or channels, or average pixels.

use candle_core::{CudaStorage, Result, Shape, Tensor, bail};

use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_arrange", ptx: ptx::ARRANGE };

/// The channels of `a`, then those of `b`.
///
/// Moves the bytes of both in and out.
///
/// # Shapes
/// `[batch, height, width, c_a]`, `[batch, height, width, c_b]` to `[batch, height, width, c_a + c_b]`,
/// all in `f32` or all in `bf16`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.dims4()?;
    b.dims4()?;
    if a.dims()[..3] != b.dims()[..3] || a.dtype() != b.dtype() {
        bail!(
            "cat_channels expected two images of one size, got {:?} in {:?} and {:?} in {:?}",
            a.dims(),
            a.dtype(),
            b.dims(),
            b.dtype()
        );
    }
    op::apply2(Cat, a, b)
}

/// Every pixel four times.
///
/// Moves the bytes of the input in, and four times as many out.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, 2 height, 2 width, channels]`, `f32` or `bf16`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn upsample_2x(xs: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = xs.dims4()?;
    op::apply1(Resize { kernel: Kernel::Spread(1.0), height: 2 * height, width: 2 * width }, xs)
}

/// The mean of every 2x2 pixels; an odd last row or column is left out.
///
/// Moves the bytes of the input in, and a quarter of them out.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, height / 2, width / 2, channels]`, `f32` or `bf16`
///
/// # Errors
/// Other shapes or dtypes, an image of less than 2x2 pixels, or the device's.
pub fn avg_pool_2x(xs: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = xs.dims4()?;
    if height < 2 || width < 2 {
        bail!("avg_pool_2x expected at least 2x2 pixels, got {height}x{width}");
    }
    op::apply1(Resize { kernel: Kernel::Gather(0.25), height: height / 2, width: width / 2 }, xs)
}

/// A row and a column of zeros below and to the right.
///
/// Moves the bytes of an image in and out.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, height + 1, width + 1, channels]`, `f32` or `bf16`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn pad_end(xs: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = xs.dims4()?;
    op::apply1(Resize { kernel: Kernel::Place, height: height + 1, width: width + 1 }, xs)
}

struct Cat;

impl Operation<2> for Cat {
    const NAME: &'static str = "cat_channels";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        let (device, dtype) = (a.device(), a.dtype());
        let (batch, height, width, channels_a) = a.shape().dims4()?;
        let channels_b = b.dims()[3];
        let shape = Shape::from((batch, height, width, channels_a + channels_b));
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let (a, b) = (a.pointer(&stream)?, b.pointer(&stream)?);
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let pack = launch::pack(dtype, &[channels_a, channels_b], &[&a, &b, &to]);
            let packs = shape.elem_count() / pack;
            let args = [
                a.arg(),
                b.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(packs)?),
                Arg::U32(launch::to_u32(channels_a / pack)?),
                Arg::U32(launch::to_u32(channels_b / pack)?),
            ];
            let function = format!("cat_{}_{pack}", launch::suffix(dtype)?);
            // SAFETY: the parameters of `cat`; each input has as many rows as the result.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
        }
        Ok((out, shape))
    }

    fn backward(&self, [a, b]: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let part = |of: &Tensor, first| -> Result<Option<Tensor>> {
            if !of.track_op() {
                return Ok(None);
            }
            let channels = of.dims()[3];
            let part = op::with_views([grad], |[grad]| take_channels(grad, first, channels))?;
            Ok(Some(op::tensor(part, of.shape())))
        };
        Ok([part(a, 0)?, part(b, a.dims()[3])?])
    }
}

/// Some of the channels of an image.
fn take_channels(xs: View<'_>, first: usize, channels: usize) -> Result<CudaStorage> {
    let (device, dtype) = (xs.device(), xs.dtype());
    let (batch, height, width, channels_in) = xs.shape().dims4()?;
    let stream = device.cuda_stream();
    let mut out = launch::alloc(device, dtype, batch * height * width * channels)?;
    let from = xs.pointer(&stream)?;
    {
        let to = launch::pointer_mut(&mut out, &stream)?;
        let pack = launch::pack(dtype, &[channels_in, first, channels], &[&from, &to]);
        let packs = batch * height * width * channels / pack;
        let args = [
            from.arg(),
            to.arg(),
            Arg::U32(launch::to_u32(packs)?),
            Arg::U32(launch::to_u32(channels_in / pack)?),
            Arg::U32(launch::to_u32(first / pack)?),
            Arg::U32(launch::to_u32(channels / pack)?),
        ];
        let function = format!("take_{}_{pack}", launch::suffix(dtype)?);
        // SAFETY: the parameters of `take`; `first + channels` is within the input's channels.
        unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
    }
    Ok(out)
}

/// Which of the kernels that change an image's size, and its factor.
#[derive(Clone, Copy)]
enum Kernel {
    Spread(f32),
    Gather(f32),
    Place,
}

/// An image of another size.
struct Resize {
    kernel: Kernel,
    height: usize,
    width: usize,
}

impl Operation<1> for Resize {
    const NAME: &'static str = "resize";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let (device, dtype) = (xs.device(), xs.dtype());
        let (batch, height, width, channels) = xs.shape().dims4()?;
        let shape = Shape::from((batch, self.height, self.width, channels));
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let from = xs.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let pack = launch::pack(dtype, &[channels], &[&from, &to]);
            let packs = shape.elem_count() / pack;
            let mut args = vec![
                from.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(packs)?),
                Arg::U32(launch::to_u32(channels / pack)?),
                Arg::U32(launch::to_u32(height)?),
                Arg::U32(launch::to_u32(width)?),
                Arg::U32(launch::to_u32(self.height)?),
                Arg::U32(launch::to_u32(self.width)?),
            ];
            let name = match self.kernel {
                Kernel::Spread(factor) => {
                    args.push(Arg::F32(factor));
                    "spread"
                }
                Kernel::Gather(factor) => {
                    args.push(Arg::F32(factor));
                    "gather"
                }
                Kernel::Place => "place",
            };
            let function = format!("{name}_{}_{pack}", launch::suffix(dtype)?);
            // SAFETY: the parameters of the kernel, which `place` has without a factor; `gather` has
            // four input pixels for each output pixel, and the others look where there are any.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
        }
        Ok((out, shape))
    }

    fn backward(&self, [xs]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (_, height, width, _) = xs.dims4()?;
        let kernel = match self.kernel {
            Kernel::Spread(factor) => Kernel::Gather(factor),
            Kernel::Gather(factor) => Kernel::Spread(factor),
            Kernel::Place => Kernel::Place,
        };
        let back = Self { kernel, height, width };
        let (storage, shape) = op::with_views([grad], |views| back.forward(views))?;
        Ok([Some(op::tensor(storage, shape))])
    }
}
