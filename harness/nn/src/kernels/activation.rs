//! Element-wise operations in one pass: SiLU, and a per-channel affine map with optional ReLU.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::simd::{sigmoid, vectorised};
use super::{f32_slice, is_cpu_f32, is_on_gpu, on_device};

/// Elements that one task handles: enough to hide the cost of a task.
const CHUNK: usize = 16 * 1024;

/// `x * sigmoid(x)`, which PyTorch calls SiLU and the DDIM code swish.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(xs) { xs.contiguous()?.apply_op1(Silu) } else { xs.silu() }
}

/// The derivative of SiLU at `x`.
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice(xs, layout)?;
        let mut out = vec![0.0; xs.len()];
        out.par_chunks_mut(CHUNK).zip(xs.par_chunks(CHUNK)).for_each(|(out, xs)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, &x) in out.iter_mut().zip(xs) {
                        *y = x * sigmoid(x);
                    }
                },
            );
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(xs.apply_op2_no_bwd(&grad.contiguous()?, &SiluGradient)?))
    }
}

struct SiluGradient;

impl candle_core::CustomOp2 for SiluGradient {
    fn name(&self) -> &'static str {
        "silu-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, grad) = (f32_slice(xs, xs_layout)?, f32_slice(grad, grad_layout)?);
        let mut out = vec![0.0; xs.len()];
        let inputs = xs.par_chunks(CHUNK).zip(grad.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (xs, grad))| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &x), &g) in out.iter_mut().zip(xs).zip(grad) {
                        *y = g * silu_slope(x);
                    }
                },
            );
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }
}

/// `max(x, 0)`.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]`
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    if is_on_gpu(xs) { on_device::relu(xs) } else { xs.relu() }
}

/// What follows the affine map of [`scale_shift`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    Nothing,
    Relu,
}

/// `xs * scale + shift` per channel, then ReLU if asked: batch normalisation with frozen
/// statistics in one pass. The gradient is taken with respect to `xs` alone, because frozen
/// statistics are not trained.
///
/// # Shapes
/// - `xs`: `[batch, channels, height, width]`
/// - `scale`, `shift`: `[channels]`
pub fn scale_shift(xs: &Tensor, scale: &Tensor, shift: &Tensor, then: Then) -> Result<Tensor> {
    if is_cpu_f32(xs) {
        return xs.contiguous()?.apply_op3(scale, shift, ScaleShift(then));
    }
    if is_on_gpu(xs) {
        return on_device::scale_shift(xs, scale, shift, then);
    }
    let scale = scale.detach().reshape((1, (), 1, 1))?;
    let shift = shift.detach().reshape((1, (), 1, 1))?;
    let ys = xs.broadcast_mul(&scale)?.broadcast_add(&shift)?;
    if then == Then::Relu { ys.relu() } else { Ok(ys) }
}

struct ScaleShift(Then);

impl CustomOp3 for ScaleShift {
    fn name(&self) -> &'static str {
        "scale-shift"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, channels, height, width) = layout.shape().dims4()?;
        let xs = f32_slice(xs, layout)?;
        let scale = f32_slice(scale, scale_layout)?;
        let shift = f32_slice(shift, shift_layout)?;
        if scale.len() != channels || shift.len() != channels {
            candle_core::bail!("scale and shift expected [{channels}], got [{}]", scale.len());
        }
        let mut out = vec![0.0; xs.len()];
        let plane = (height * width).max(1);
        let planes = (CHUNK / plane).max(1);
        out.par_chunks_mut(plane * planes).enumerate().for_each(|(chunk, out)| {
            let first = chunk * planes;
            let xs = &xs[first * plane..];
            for (i, (out, xs)) in
                out.chunks_exact_mut(plane).zip(xs.chunks_exact(plane)).enumerate()
            {
                let channel = (first + i) % channels;
                let (a, b) = (scale[channel], shift[channel]);
                let floor = if self.0 == Then::Relu { 0.0 } else { f32::NEG_INFINITY };
                vectorised(
                    #[inline(always)]
                    || {
                        for (y, &x) in out.iter_mut().zip(xs) {
                            // Not `f32::max`: a NaN must stay one.
                            let value = x * a + b;
                            *y = if value < floor { floor } else { value };
                        }
                    },
                );
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        _xs: &Tensor,
        scale: &Tensor,
        _shift: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = match self.0 {
            Then::Nothing => grad.clone(),
            Then::Relu => grad.mul(&res.gt(0f32)?.to_dtype(grad.dtype())?)?,
        };
        Ok((Some(grad.broadcast_mul(&scale.reshape((1, (), 1, 1))?)?), None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, var};

    #[test]
    fn silu_agrees_with_candle() {
        let xs = var("xs", &[3, 40, 7, 5]);
        let (ours, theirs) = (silu(&xs).unwrap(), xs.silu().unwrap());
        assert_close(&ours, &theirs, 1e-6);
        let probe = random("probe", xs.dims());
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(grads.get(&xs).unwrap(), expected.get(&xs).unwrap(), 1e-5);
    }

    #[test]
    fn scale_shift_agrees_with_broadcasting() {
        for then in [Then::Nothing, Then::Relu] {
            let xs = var("xs", &[2, 6, 5, 4]);
            let (scale, shift) = (random("scale", &[6]), random("shift", &[6]));
            let ours = scale_shift(&xs, &scale, &shift, then).unwrap();
            let (a, b) =
                (scale.reshape((1, 6, 1, 1)).unwrap(), shift.reshape((1, 6, 1, 1)).unwrap());
            let mut theirs = xs.broadcast_mul(&a).unwrap().broadcast_add(&b).unwrap();
            if then == Then::Relu {
                theirs = theirs.relu().unwrap();
            }
            assert_close(&ours, &theirs, 1e-6);
            let probe = random("probe", xs.dims());
            let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
            let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
            assert_close(grads.get(&xs).unwrap(), expected.get(&xs).unwrap(), 1e-6);
        }
    }
}
