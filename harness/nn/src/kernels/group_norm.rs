//! Group normalisation with an optional SiLU behind it, in one pass forward and one backward.
//!
//! Wu and He, "Group Normalization", 2018. Every residual block of the diffusion networks opens
//! with this pair, and as separate operations it costs a dozen passes over the activations.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::silu_slope;
use super::simd::{sigmoid, statistics, sum_and_product, vectorised};
use super::{f32_slice, is_cpu_f32};

/// What follows the normalisation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    Identity,
    Silu,
}

/// Normalises each group of channels of each image to zero mean and unit variance, then applies
/// `weight` and `bias` per channel, then `activation`.
///
/// # Shapes
/// - `xs`: `[batch, channels, ...]`, `channels` a multiple of `groups`
/// - `weight`, `bias`: `[channels]`
///
/// # Errors
/// Channels that do not divide into groups.
pub fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let channels = xs.dim(1)?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("group norm expected channels divisible by {groups}, got {channels}");
    }
    if is_cpu_f32(xs) {
        let op = GroupNorm { groups, eps, activation };
        return xs.contiguous()?.apply_op3(weight, bias, op);
    }
    let grouped = xs.reshape((xs.dim(0)?, groups, ()))?;
    let mean = grouped.mean_keepdim(D::Minus1)?;
    let centred = grouped.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(xs.shape())?;
    let mut per_channel = vec![1; xs.rank()];
    per_channel[1] = channels;
    let ys = normal
        .broadcast_mul(&weight.reshape(per_channel.clone())?)?
        .broadcast_add(&bias.reshape(per_channel)?)?;
    if activation == Activation::Silu { ys.silu() } else { Ok(ys) }
}

#[derive(Clone, Copy)]
struct GroupNorm {
    groups: usize,
    eps: f64,
    activation: Activation,
}

/// Sizes of one call: a group is `channels_a_group` planes of `plane` elements.
struct Sizes {
    channels: usize,
    channels_a_group: usize,
    plane: usize,
}

impl GroupNorm {
    fn sizes(&self, shape: &Shape) -> Sizes {
        let dims = shape.dims();
        Sizes {
            channels: dims[1],
            channels_a_group: dims[1] / self.groups,
            plane: dims[2..].iter().product::<usize>().max(1),
        }
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(layout.shape());
        let xs = f32_slice(xs, layout)?;
        let weight = f32_slice(weight, weight_layout)?;
        let bias = f32_slice(bias, bias_layout)?;
        if weight.len() != sizes.channels || bias.len() != sizes.channels {
            candle_core::bail!("group norm weight and bias expected [{}]", sizes.channels);
        }
        let mut out = vec![0.0; xs.len()];
        let group_len = sizes.channels_a_group * sizes.plane;
        out.par_chunks_mut(group_len).zip(xs.par_chunks(group_len)).enumerate().for_each(
            |(index, (out, xs))| {
                let (mean, inv_std) = statistics(xs, self.eps);
                let first = index % self.groups * sizes.channels_a_group;
                let planes = out.chunks_exact_mut(sizes.plane).zip(xs.chunks_exact(sizes.plane));
                for (channel, (out, xs)) in (first..).zip(planes) {
                    let scale = inv_std * weight[channel];
                    let shift = bias[channel] - mean * scale;
                    vectorised(
                        #[inline(always)]
                        || match self.activation {
                            Activation::Identity => {
                                for (y, &x) in out.iter_mut().zip(xs) {
                                    *y = x * scale + shift;
                                }
                            }
                            Activation::Silu => {
                                for (y, &x) in out.iter_mut().zip(xs) {
                                    let value = x * scale + shift;
                                    *y = value * sigmoid(value);
                                }
                            }
                        },
                    );
                }
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // One pass gives the gradient of the input with two more planes behind it: the gradients
        // of weight and bias, per image. They are summed over the batch here.
        let affine = Tensor::cat(&[weight, bias], 0)?;
        let packed =
            xs.apply_op3_no_bwd(&affine, &grad.contiguous()?, &GroupNormGradient(*self))?;
        let len = xs.elem_count();
        let (batch, channels) = (xs.dim(0)?, xs.dim(1)?);
        let xs_grad = packed.narrow(0, 0, len)?.reshape(xs.shape())?;
        let affine_grads = packed.narrow(0, len, 2 * batch * channels)?;
        let affine_grads = affine_grads.reshape((batch, 2, channels))?.sum(0)?;
        Ok((Some(xs_grad), Some(affine_grads.get(0)?), Some(affine_grads.get(1)?)))
    }
}

/// `(xs, [weight, bias], grad) -> [grad of xs, per-image grads of weight and bias]`, flattened.
struct GroupNormGradient(GroupNorm);

impl CustomOp3 for GroupNormGradient {
    fn name(&self) -> &'static str {
        "group-norm-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        affine: &CpuStorage,
        affine_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let GroupNorm { groups, eps, activation } = self.0;
        let Sizes { channels, channels_a_group, plane } = self.0.sizes(layout.shape());
        let xs = f32_slice(xs, layout)?;
        let grad = f32_slice(grad, grad_layout)?;
        let (weight, bias) = f32_slice(affine, affine_layout)?.split_at(channels);
        let batch = layout.shape().dims()[0];
        let mut out = vec![0.0; xs.len() + 2 * batch * channels];
        let (xs_grad, affine_grad) = out.split_at_mut(xs.len());
        let image = channels * plane;
        let images = xs_grad.par_chunks_mut(image).zip(affine_grad.par_chunks_mut(2 * channels));
        images.enumerate().for_each(|(b, (xs_grad, affine_grad))| {
            let xs = &xs[b * image..(b + 1) * image];
            let grad = &grad[b * image..(b + 1) * image];
            let (weight_grad, bias_grad) = affine_grad.split_at_mut(channels);
            for group in 0..groups {
                let first = group * channels_a_group;
                let span = first * plane..(first + channels_a_group) * plane;
                let (mean, inv_std) = statistics(&xs[span.clone()], eps);
                // Sums over the group of g * w and g * w * x_hat, where g is the gradient
                // before the activation and x_hat the normalised input.
                let (mut sum, mut dot) = (0.0f64, 0.0f64);
                for channel in first..first + channels_a_group {
                    let at = channel * plane..(channel + 1) * plane;
                    let (w, beta) = (weight[channel], bias[channel]);
                    let target = &mut xs_grad[at.clone()];
                    vectorised(
                        #[inline(always)]
                        || {
                            for ((out, &x), &g) in
                                target.iter_mut().zip(&xs[at.clone()]).zip(&grad[at.clone()])
                            {
                                let x_hat = (x - mean) * inv_std;
                                *out = match activation {
                                    Activation::Identity => g,
                                    Activation::Silu => g * silu_slope(x_hat * w + beta),
                                };
                            }
                        },
                    );
                    let (channel_sum, of_xs) = sum_and_product(target, &xs[at]);
                    // The sum of g (x - mean) / std.
                    let channel_dot = (of_xs - f64::from(mean) * channel_sum) * f64::from(inv_std);
                    bias_grad[channel] = channel_sum as f32;
                    weight_grad[channel] = channel_dot as f32;
                    sum += channel_sum * f64::from(weight[channel]);
                    dot += channel_dot * f64::from(weight[channel]);
                }
                let n = span.len() as f64;
                let (mean_g, mean_dot) = ((sum / n) as f32, (dot / n) as f32);
                let of_group = first..first + channels_a_group;
                for (channel, &w) in of_group.clone().zip(&weight[of_group]) {
                    let at = channel * plane..(channel + 1) * plane;
                    let (target, xs) = (&mut xs_grad[at.clone()], &xs[at]);
                    vectorised(
                        #[inline(always)]
                        || {
                            for (out, &x) in target.iter_mut().zip(xs) {
                                let x_hat = (x - mean) * inv_std;
                                *out = inv_std * (*out * w - mean_g - x_hat * mean_dot);
                            }
                        },
                    );
                }
            }
        });
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, var};

    fn composed(xs: &Tensor, w: &Tensor, b: &Tensor, groups: usize, act: Activation) -> Tensor {
        let (batch, channels, height, width) = xs.dims4().unwrap();
        let grouped = xs.reshape((batch, groups, ())).unwrap();
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2).unwrap()).unwrap();
        let std = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-6).unwrap().sqrt().unwrap();
        let normal = centred.broadcast_div(&std).unwrap();
        let ys = normal
            .reshape((batch, channels, height, width))
            .unwrap()
            .broadcast_mul(&w.reshape((1, channels, 1, 1)).unwrap())
            .unwrap()
            .broadcast_add(&b.reshape((1, channels, 1, 1)).unwrap())
            .unwrap();
        if act == Activation::Silu { ys.silu().unwrap() } else { ys }
    }

    fn check(shape: &[usize], groups: usize, act: Activation) {
        let (xs, w, b) = (var("xs", shape), var("w", &shape[1..2]), var("b", &shape[1..2]));
        let ours = group_norm(&xs, &w, &b, groups, 1e-6, act).unwrap();
        let theirs = composed(&xs, &w, &b, groups, act);
        assert_close(&ours, &theirs, 1e-5);
        let probe = random("probe", shape);
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        for v in [&xs, &w, &b] {
            assert_close(grads.get(v).unwrap(), expected.get(v).unwrap(), 2e-5);
        }
    }

    #[test]
    fn agrees_with_the_composed_operations() {
        check(&[2, 8, 5, 3], 4, Activation::Identity);
        check(&[3, 8, 4, 4], 8, Activation::Silu);
        check(&[1, 32, 8, 8], 32, Activation::Silu);
        check(&[2, 64, 2, 2], 32, Activation::Identity);
    }

    #[test]
    fn channels_must_divide_into_groups() {
        let (xs, w) = (random("xs", &[1, 6, 2, 2]), random("w", &[6]));
        assert!(group_norm(&xs, &w, &w, 4, 1e-6, Activation::Identity).is_err());
    }
}
