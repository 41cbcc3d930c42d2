//! How far a predicted noise is off, and where that comes from: two launches forward, one back.

use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

use super::{MODULE, expect, same_shape};
use crate::launch::{self, Arg, View, blocks_of, to_u32};
use crate::op::{self, Operation};

/// Threads of a block that sums up an image.
const THREADS: u32 = 256;

/// What a difference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Square,
    Absolute,
}

/// The loss of a predicted noise: summed over an image, averaged over the batch. `noise` has no
/// gradient.
///
/// # Shapes
/// `eps`, `noise`: `[batch, …]`, `f32`; result: a scalar
///
/// # Errors
/// Other shapes or types, or no images.
pub fn noise_loss(eps: &Tensor, noise: &Tensor, loss: Loss) -> Result<Tensor> {
    op::apply2(NoiseLoss { loss }, eps, &noise.detach())
}

struct NoiseLoss {
    loss: Loss,
}

impl NoiseLoss {
    fn is_linear(&self) -> Arg {
        Arg::U32(u32::from(self.loss == Loss::Absolute))
    }

    fn gradient(&self, [eps, noise, grad]: [View<'_>; 3]) -> Result<(CudaStorage, Shape)> {
        let shape = same_shape(Self::NAME, eps, noise)?;
        expect(Self::NAME, grad, DType::F32)?;
        if grad.shape().elem_count() != 1 {
            bail!("{} expected a scalar as gradient, got {:?}", Self::NAME, grad.shape());
        }
        let batch = shape.dims().first().copied().unwrap_or(0).max(1);
        let (device, n) = (eps.device(), shape.elem_count());
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, DType::F32, n)?;
        {
            let (eps, noise) = (eps.pointer(&stream)?, noise.pointer(&stream)?);
            let grad = grad.pointer(&stream)?;
            let to = launch::pointer_mut(&mut out, &stream)?;
            let args = [
                Arg::U64(n as u64),
                Arg::F32((1.0 / batch as f64) as f32),
                self.is_linear(),
                eps.arg(),
                noise.arg(),
                grad.arg(),
                to.arg(),
            ];
            // SAFETY: the parameters of the kernel; `eps`, `noise` and `out` have `n` numbers, `grad` has
            // one.
            unsafe { launch::launch(device, &MODULE, "loss_gradient", launch::grid(n)?, &args) }?;
        }
        Ok((out, shape))
    }
}

impl Operation<2> for NoiseLoss {
    const NAME: &'static str = "noise-loss";

    fn forward(&self, [eps, noise]: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        let shape = same_shape(Self::NAME, eps, noise)?;
        let batch = shape.dims().first().copied().unwrap_or(0);
        if shape.elem_count() == 0 {
            bail!("{} expected images, got {shape:?}", Self::NAME);
        }
        let device = eps.device();
        let stream = device.cuda_stream();
        let mut sums = launch::alloc(device, DType::F32, batch)?;
        let mut loss = launch::alloc(device, DType::F32, 1)?;
        {
            let n = to_u32(batch)?;
            let (eps, noise) = (eps.pointer(&stream)?, noise.pointer(&stream)?);
            let sums = launch::pointer_mut(&mut sums, &stream)?;
            let loss = launch::pointer_mut(&mut loss, &stream)?;
            let per_image = Arg::U32(to_u32(shape.elem_count() / batch)?);
            let args = [per_image, self.is_linear(), eps.arg(), noise.arg(), sums.arg()];
            let config = blocks_of(n, THREADS, 0);
            // SAFETY: the parameters of the kernel; a block writes the sum of an image.
            unsafe { launch::launch(device, &MODULE, "image_losses", config, &args) }?;
            let args = [Arg::U32(n), sums.arg(), loss.arg()];
            // SAFETY: the parameters of the kernel, which is one warp, and reads those sums.
            unsafe { launch::launch(device, &MODULE, "mean_loss", blocks_of(1, 32, 0), &args) }?;
        }
        Ok((loss, Shape::from(())))
    }

    fn backward(&self, [eps, noise]: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let (storage, shape) = op::with_views([eps, noise, grad], |views| self.gradient(views))?;
        Ok([Some(op::tensor(storage, shape)), None])
    }
}
