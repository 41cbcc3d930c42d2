//! How far a predicted noise is off, and where that comes from: two launches forward, one back.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::{THREADS, blocks, config, cuda_alone, function, range, same_shape, u32_of};

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
    eps.contiguous()?.apply_op2(&noise.contiguous()?.detach(), NoiseLoss { loss })
}

struct NoiseLoss {
    loss: Loss,
}

impl NoiseLoss {
    fn is_linear(&self) -> u32 {
        u32::from(self.loss == Loss::Absolute)
    }
}

impl CustomOp2 for NoiseLoss {
    fn name(&self) -> &'static str {
        "noise-loss"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cuda_alone(self.name())
    }

    fn cuda_fwd(
        &self,
        eps: &CudaStorage,
        eps_layout: &Layout,
        noise: &CudaStorage,
        noise_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = same_shape(self.name(), eps_layout, noise_layout)?;
        let batch = shape.dims().first().copied().unwrap_or(0);
        if shape.elem_count() == 0 {
            candle_core::bail!("noise-loss expected images, got {shape:?}");
        }
        let device = &eps.device;
        let stream = device.cuda_stream();
        let (eps, noise) = (eps.as_cuda_slice::<f32>()?, noise.as_cuda_slice::<f32>()?);
        let (eps, noise) = (eps.slice(range(eps_layout)?), noise.slice(range(noise_layout)?));
        // SAFETY: the kernels write a sum for each image, and then the loss.
        let mut sums = unsafe { device.alloc::<f32>(batch) }?;
        // SAFETY: as above.
        let mut loss = unsafe { device.alloc::<f32>(1) }?;
        let (per_image, is_linear) =
            (u32_of(shape.elem_count() / batch, "numbers an image")?, self.is_linear());
        let n = u32_of(batch, "images")?;
        let kernel = function(device, "image_losses")?;
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&per_image).arg(&is_linear).arg(&eps).arg(&noise).arg(&mut sums);
        // SAFETY: two `u32` and three pointers, as the kernel has them; a block for each image.
        unsafe { launch.launch(config(n, THREADS)) }.w()?;
        let kernel = function(device, "mean_loss")?;
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&n).arg(&sums).arg(&mut loss);
        // SAFETY: a `u32` and two pointers, as the kernel has them; one warp.
        unsafe { launch.launch(config(1, 32)) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(loss, device.clone()), Shape::from(())))
    }

    fn bwd(
        &self,
        eps: &Tensor,
        noise: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = LossGradient { is_linear: self.is_linear() };
        let grad = eps.apply_op3_no_bwd(noise, &grad.contiguous()?, &op)?;
        Ok((Some(grad), None))
    }
}

struct LossGradient {
    is_linear: u32,
}

impl CustomOp3 for LossGradient {
    fn name(&self) -> &'static str {
        "noise-loss-gradient"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cuda_alone(self.name())
    }

    fn cuda_fwd(
        &self,
        eps: &CudaStorage,
        eps_layout: &Layout,
        noise: &CudaStorage,
        noise_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = same_shape(self.name(), eps_layout, noise_layout)?;
        if grad_layout.shape().elem_count() != 1 {
            candle_core::bail!("{} expected a scalar, got {:?}", self.name(), grad_layout.shape());
        }
        let batch = shape.dims().first().copied().unwrap_or(0).max(1);
        let (device, n) = (&eps.device, shape.elem_count());
        let per_image = (1.0 / batch as f64) as f32;
        let (eps, noise) = (eps.as_cuda_slice::<f32>()?, noise.as_cuda_slice::<f32>()?);
        let (eps, noise) = (eps.slice(range(eps_layout)?), noise.slice(range(noise_layout)?));
        let grad = grad.as_cuda_slice::<f32>()?.slice(range(grad_layout)?);
        // SAFETY: the kernel writes every number.
        let mut out = unsafe { device.alloc::<f32>(n) }?;
        let (stream, function) = (device.cuda_stream(), function(device, "loss_gradient")?);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&n).arg(&per_image).arg(&self.is_linear).arg(&eps).arg(&noise).arg(&grad);
        launch.arg(&mut out);
        // SAFETY: a `size_t`, an `f32`, a `u32` and four pointers, as the kernel has them; `eps`, `noise`
        // and `out` have `n` numbers, `grad` has one.
        unsafe { launch.launch(blocks(n)?) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}
