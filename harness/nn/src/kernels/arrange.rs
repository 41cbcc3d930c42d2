//! Moving whole activations: sums, concatenations and repetitions, each in one parallel pass.
//!
//! candle has them all, on one thread of its own pool; in a network whose convolutions are fast
//! they are no longer small beside those.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::shared::{Shared, filled};
use super::{f32_slice, is_cpu_f32, is_on_gpu, on_device};

/// Elements that one task handles.
const CHUNK: usize = 16 * 1024;

/// `a + b`, of one shape.
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(a) && is_cpu_f32(b) && a.shape() == b.shape() {
        return a.contiguous()?.apply_op2(&b.contiguous()?, Add);
    }
    if is_on_gpu(a) && is_on_gpu(b) && a.shape() == b.shape() && a.rank() == 4 {
        return on_device::add(a, b);
    }
    a + b
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (f32_slice(a, a_layout)?, f32_slice(b, b_layout)?);
        let fill = |out: &Shared<'_>| {
            let parts = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).enumerate();
            parts.for_each_init(Vec::new, |sum, (index, (a, b))| {
                sum.clear();
                sum.extend(a.iter().zip(b).map(|(a, b)| a + b));
                // SAFETY: each task has a chunk of its own.
                unsafe { out.write(index * CHUNK, sum) };
            });
        };
        // SAFETY: the chunks of both, which are of one length, cover everything.
        let out = unsafe { filled(a.len(), fill) };
        Ok((CpuStorage::F32(out), a_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}

/// The channels of `a`, then those of `b`.
///
/// # Shapes
/// `[batch, channels of a, height, width]` and `[batch, channels of b, height, width]` to
/// `[batch, channels of both, height, width]`
///
/// # Errors
/// Sizes other than the channels that differ.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((batch, _, height, width), (b_batch, _, b_height, b_width)) = (a.dims4()?, b.dims4()?);
    let agree = (batch, height, width) == (b_batch, b_height, b_width);
    if is_cpu_f32(a) && is_cpu_f32(b) && agree {
        return a.contiguous()?.apply_op2(&b.contiguous()?, Cat);
    }
    if is_on_gpu(a) && is_on_gpu(b) && agree {
        return on_device::cat_channels(a, b);
    }
    Tensor::cat(&[a, b], 1)
}

struct Cat;

impl CustomOp2 for Cat {
    fn name(&self) -> &'static str {
        "cat-channels"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, a_channels, height, width) = a_layout.shape().dims4()?;
        let channels = a_channels + b_layout.shape().dims4()?.1;
        let plane = height * width;
        let (a, b) = (f32_slice(a, a_layout)?, f32_slice(b, b_layout)?);
        let fill = |out: &Shared<'_>| {
            (0..batch * channels).into_par_iter().with_min_len(CHUNK / plane.max(1)).for_each(
                |i| {
                    let (image, channel) = (i / channels, i % channels);
                    let from = match channel.checked_sub(a_channels) {
                        None => &a[(image * a_channels + channel) * plane..],
                        Some(of_b) => &b[(image * (channels - a_channels) + of_b) * plane..],
                    };
                    // SAFETY: each task has planes of its own.
                    unsafe { out.write(i * plane, &from[..plane]) };
                },
            );
        };
        // SAFETY: every plane of the output is written.
        let out = unsafe { filled(batch * channels * plane, fill) };
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, height, width))))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let part = |first, of: &Tensor| grad.apply_op1_no_bwd(&Channels { first, n: of.dims()[1] });
        Ok((Some(part(0, a)?), Some(part(a.dims()[1], b)?)))
    }
}

/// Some channels of each image, as a tensor of their own.
struct Channels {
    first: usize,
    n: usize,
}

impl CustomOp1 for Channels {
    fn name(&self) -> &'static str {
        "channels"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let xs = f32_slice(xs, layout)?;
        let plane = height * width;
        let mut out = Vec::with_capacity(batch * self.n * plane);
        for image in 0..batch {
            out.extend_from_slice(&xs[(image * channels + self.first) * plane..][..self.n * plane]);
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, self.n, height, width))))
    }
}

/// Each pixel becomes 2x2.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]` to `[batch, channels, 2 * height, 2 * width]`
pub fn upsample_2x(xs: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    if is_cpu_f32(xs) {
        return xs.contiguous()?.apply_op1(Upsample);
    }
    // Written as a broadcast, because the gradient of candle's own upsampling overwrites what
    // other branches have added.
    xs.reshape((batch, channels, height, 1, width, 1))?
        .broadcast_as((batch, channels, height, 2, width, 2))?
        .contiguous()?
        .reshape((batch, channels, 2 * height, 2 * width))
}

struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-2x"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let xs = f32_slice(xs, layout)?;
        let mut out = vec![0.0; 4 * xs.len()];
        if !out.is_empty() {
            let planes = xs.par_chunks(height * width);
            out.par_chunks_mut(4 * height * width).zip(planes).for_each(|(out, plane)| {
                for (rows, row) in out.chunks_exact_mut(4 * width).zip(plane.chunks_exact(width)) {
                    let (first, second) = rows.split_at_mut(2 * width);
                    for (pair, &x) in first.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                        *pair = [x; 2];
                    }
                    second.copy_from_slice(first);
                }
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, 2 * height, 2 * width))))
    }

    fn bwd(&self, _xs: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&UpsampleGradient)?))
    }
}

/// The sum of each 2x2 pixels.
struct UpsampleGradient;

impl CustomOp1 for UpsampleGradient {
    fn name(&self) -> &'static str {
        "upsample-2x-gradient"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let grad = f32_slice(grad, layout)?;
        let mut out = vec![0.0; grad.len() / 4];
        if !out.is_empty() {
            let planes = grad.par_chunks(height * width);
            out.par_chunks_mut(height * width / 4).zip(planes).for_each(|(out, plane)| {
                let rows = plane.chunks_exact(2 * width);
                for (out, rows) in out.chunks_exact_mut(width / 2).zip(rows) {
                    let (first, second) = rows.split_at(width);
                    let pairs = first.as_chunks::<2>().0.iter().zip(second.as_chunks::<2>().0);
                    for (out, ([a, b], [c, d])) in out.iter_mut().zip(pairs) {
                        *out = (a + b) + (c + d);
                    }
                }
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, height / 2, width / 2))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, var};
    use candle_core::Var;

    #[track_caller]
    fn check(ours: &Tensor, theirs: &Tensor, vars: &[&Var]) {
        assert_close(ours, theirs, 1e-6);
        let probe = random("probe", ours.dims());
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        for v in vars {
            assert_close(grads.get(v).unwrap(), expected.get(v).unwrap(), 1e-6);
        }
    }

    #[test]
    fn sums_agree_with_candle() {
        let (a, b) = (var("a", &[3, 70, 9, 11]), var("b", &[3, 70, 9, 11]));
        check(&add(&a, &b).unwrap(), &(a.as_tensor() + b.as_tensor()).unwrap(), &[&a, &b]);
        assert!(add(&a, &random("b", &[2])).is_err());
    }

    #[test]
    fn concatenation_agrees_with_candle() {
        let (a, b) = (var("a", &[2, 3, 5, 4]), var("b", &[2, 7, 5, 4]));
        let theirs = Tensor::cat(&[a.as_tensor(), b.as_tensor()], 1).unwrap();
        check(&cat_channels(&a, &b).unwrap(), &theirs, &[&a, &b]);
        assert!(cat_channels(&a, &random("b", &[2, 3, 4, 4])).is_err());
    }

    #[test]
    fn repetition_agrees_with_a_broadcast() {
        for shape in [[2, 3, 5, 4], [1, 1, 1, 1]] {
            let [batch, channels, height, width] = shape;
            let xs = var("xs", &shape);
            let theirs = xs
                .reshape((batch, channels, height, 1, width, 1))
                .and_then(|xs| xs.broadcast_as((batch, channels, height, 2, width, 2)))
                .and_then(|xs| xs.contiguous()?.reshape((batch, channels, 2 * height, 2 * width)))
                .unwrap();
            // A sum over it as well, so that the gradient is added to another.
            let both = |ys: Tensor| (ys.sum_all().unwrap() + xs.sum_all().unwrap()).unwrap();
            let ours = upsample_2x(&xs).unwrap();
            assert_eq!(ours.dims(), theirs.dims());
            check(&both(ours.clone()), &both(theirs.clone()), &[&xs]);
            if shape[0] > 1 {
                check(&ours, &theirs, &[&xs]);
            }
        }
    }
}
