//! What classifiers need beside convolutions: batch normalisation with frozen statistics, and the max
//! pooling of ImageNet's ResNets.

use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_classifier", ptx: ptx::CLASSIFIER };

/// `xs * scale + shift` for each channel, then ReLU if asked. The gradient is taken with respect to
/// `xs` alone, because frozen statistics are not trained.
///
/// Moves the bytes of `xs` in and out.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`, `f32` or `bf16`
/// - `scale`, `shift`: `[channels]`, `f32`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn scale_shift(xs: &Tensor, scale: &Tensor, shift: &Tensor, relu: bool) -> Result<Tensor> {
    let (_, _, _, channels) = xs.dims4()?;
    for (name, row) in [("scale", scale), ("shift", shift)] {
        if row.dims() != [channels] || row.dtype() != DType::F32 {
            bail!(
                "scale_shift expected {name} [{channels}] in f32, got {:?} in {:?}",
                row.dims(),
                row.dtype()
            );
        }
    }
    op::apply3(ScaleShift { relu }, xs, scale, shift)
}

struct ScaleShift {
    relu: bool,
}

impl ScaleShift {
    /// `xs`, the gradient of the result where that of `xs` is asked for, `scale` and `shift`.
    fn run(
        &self,
        xs: View<'_>,
        grad: Option<View<'_>>,
        scale: View<'_>,
        shift: View<'_>,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (xs.device(), xs.dtype(), xs.shape().clone());
        let (_, _, _, channels) = shape.dims4()?;
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let (xs, scale, shift) =
            (xs.pointer(&stream)?, scale.pointer(&stream)?, shift.pointer(&stream)?);
        let grad = grad.map(|grad| grad.pointer(&stream)).transpose()?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let mut pointers = vec![&xs, &scale, &shift, &to];
            pointers.extend(&grad);
            let pack = launch::pack(dtype, &[channels], &pointers);
            let packs = shape.elem_count() / pack;
            let mut args = vec![xs.arg()];
            args.extend(grad.as_ref().map(launch::Pointer::arg));
            args.extend([
                scale.arg(),
                shift.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(packs)?),
                Arg::U32(launch::to_u32(channels / pack)?),
                Arg::U32(u32::from(self.relu)),
            ]);
            let name = if grad.is_some() { "scale_shift_gradient" } else { "scale_shift" };
            let function = format!("{name}_{}_{pack}", launch::suffix(dtype)?);
            // SAFETY: the parameters of the kernel; a thread for each pack, of which the tensors have
            // as many, and the rows have `channels` numbers.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(packs)?, &args) }?;
        }
        Ok((out, shape))
    }
}

impl Operation<3> for ScaleShift {
    const NAME: &'static str = "scale_shift";

    fn forward(&self, [xs, scale, shift]: [View<'_>; 3]) -> Result<(CudaStorage, Shape)> {
        self.run(xs, None, scale, shift)
    }

    fn backward(
        &self,
        [xs, scale, shift]: [&Tensor; 3],
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (storage, shape) =
            op::with_views([xs, grad, scale, shift], |[xs, grad, scale, shift]| {
                self.run(xs, Some(grad), scale, shift)
            })?;
        Ok([Some(op::tensor(storage, shape)), None, None])
    }
}

/// The greatest number of each 3x3 pixels, two apart, with a border of one. The gradient goes where that
/// number stood; the first of several that are equal has it.
///
/// Reads every number about twice, and writes a quarter as many.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, ceil(height / 2), ceil(width / 2), channels]`, `f32`
/// or `bf16`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn max_pool_3x3_stride_2(xs: &Tensor) -> Result<Tensor> {
    xs.dims4()?;
    op::apply1(MaxPool, xs)
}

struct MaxPool;

impl MaxPool {
    /// The pooled image, or the gradient of `xs` where that of the pooled image is given.
    fn run(&self, xs: View<'_>, grad: Option<View<'_>>) -> Result<(CudaStorage, Shape)> {
        let (device, dtype) = (xs.device(), xs.dtype());
        let (batch, height, width, channels) = xs.shape().dims4()?;
        let (out_height, out_width) = (height.div_ceil(2), width.div_ceil(2));
        let shape = match grad {
            Some(_) => xs.shape().clone(),
            None => Shape::from((batch, out_height, out_width, channels)),
        };
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, shape.elem_count())?;
        let from = xs.pointer(&stream)?;
        let grad = grad.map(|grad| grad.pointer(&stream)).transpose()?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let mut args = vec![from.arg()];
            args.extend(grad.as_ref().map(launch::Pointer::arg));
            args.push(to.arg());
            for size in [shape.elem_count(), channels, height, width, out_height, out_width] {
                args.push(Arg::U32(launch::to_u32(size)?));
            }
            let name = if grad.is_some() { "max_pool_gradient" } else { "max_pool" };
            let function = format!("{name}_{}", launch::suffix(dtype)?);
            let config = launch::grid(shape.elem_count())?;
            // SAFETY: the parameters of the kernel; a thread for each number that is written, and windows
            // inside of the image.
            unsafe { launch::launch(device, &MODULE, &function, config, &args) }?;
        }
        Ok((out, shape))
    }
}

impl Operation<1> for MaxPool {
    const NAME: &'static str = "max_pool_3x3_stride_2";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        self.run(xs, None)
    }

    fn backward(&self, [xs]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (storage, shape) = op::with_views([xs, grad], |[xs, grad]| self.run(xs, Some(grad)))?;
        Ok([Some(op::tensor(storage, shape))])
    }
}
