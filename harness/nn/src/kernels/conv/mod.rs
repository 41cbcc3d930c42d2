//! Two-dimensional convolution, forward and backward.
//!
//! NCHW in and out, square stride and padding, no groups, no dilation: what the networks of this
//! project use. A 3x3 kernel at stride 1 goes through Winograd's transforms ([`winograd`]), all
//! else is a product with panels of patches ([`direct`]). The gradient of the input is, at stride
//! 1, a convolution itself.
//!
//! Which way is taken, and the order of every sum, follow from an image's own size and channels: an
//! image's numbers depend neither on the batch that it is in nor on the number of threads.

mod direct;
mod direct_weight;
mod geometry;
mod operands;
mod tiles;
mod transform;
mod winograd;
mod winograd_weight;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use self::geometry::{Geometry, Moves};
use self::operands::{Bias, Weight};
use super::simd::sum_f64;
use super::{f32_slice, is_cpu_f32, is_on_gpu, on_device};

/// Convolution of `xs` with `weight`, plus `bias` where there is one.
///
/// # Shapes
/// - `xs`: `[batch, in_channels, height, width]`
/// - `weight`: `[out_channels, in_channels, kernel_h, kernel_w]`
/// - `bias`: `[out_channels]`, or `[batch, out_channels]` for one that each image has of its own
///
/// # Errors
/// Shapes that do not fit together.
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    if is_cpu_f32(xs) {
        let op = Conv(Moves { stride, padding });
        let xs = xs.contiguous()?;
        let weight = weight.contiguous()?;
        return match bias {
            Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, op),
            None => xs.apply_op2(&weight, op),
        };
    }
    if is_on_gpu(xs) {
        return on_device::conv2d(xs, weight, bias, stride, padding);
    }
    let ys = xs.conv2d(weight, padding, stride, /* dilation */ 1, /* groups */ 1)?;
    match bias {
        Some(bias) if bias.rank() == 1 => ys.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        Some(bias) => ys.broadcast_add(&bias.unsqueeze(2)?.unsqueeze(3)?),
        None => Ok(ys),
    }
}

fn forward(geometry: &Geometry, xs: &[f32], weight: Weight<'_>, bias: Bias<'_>) -> Vec<f32> {
    if winograd::suits(geometry) {
        winograd::forward(geometry, xs, weight, bias)
    } else {
        direct::forward(&geometry.simplified(), xs, weight, bias)
    }
}

fn input_gradient(geometry: &Geometry, weight: Weight<'_>, grad: &[f32]) -> Vec<f32> {
    match geometry.turned() {
        Some(turned) => forward(&turned, grad, weight.turned(), Bias::None),
        None => direct::input_gradient(geometry, weight, grad),
    }
}

fn weight_gradient(geometry: &Geometry, xs: &[f32], grad: &[f32]) -> Vec<f32> {
    if winograd::suits(geometry) {
        winograd_weight::weight_gradient(geometry, xs, grad)
    } else {
        direct_weight::weight_gradient(&geometry.simplified(), xs, grad)
    }
}

#[derive(Clone, Copy)]
struct Conv(Moves);

impl Conv {
    fn run(
        self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self.0, xs.1.shape(), weight.1.shape())?;
        let Geometry { batch, out_channels, out_h, out_w, .. } = geometry;
        let bias = match bias {
            None => Bias::None,
            Some((storage, layout)) => match *layout.dims() {
                [channels] if channels == out_channels => {
                    Bias::Channel(f32_slice(storage, layout)?)
                }
                [images, channels] if images == batch && channels == out_channels => {
                    Bias::Image(f32_slice(storage, layout)?, out_channels)
                }
                _ => candle_core::bail!(
                    "convolution bias expected [{out_channels}] or [{batch}, {out_channels}], got {:?}",
                    layout.shape()
                ),
            },
        };
        let weight = Weight::new(f32_slice(weight.0, weight.1)?, &geometry);
        let out = forward(&geometry, f32_slice(xs.0, xs.1)?, weight, bias);
        Ok((CpuStorage::F32(out), Shape::from((batch, out_channels, out_h, out_w))))
    }

    fn gradients(self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        // What leads to no variable needs no gradient: the images themselves, or frozen weights.
        let of_xs = || InputGradient { moves: self.0, xs: xs.shape().clone() };
        let of_weight = || WeightGradient { moves: self.0, weight: weight.shape().clone() };
        let xs_grad = xs.track_op().then(|| weight.apply_op2_no_bwd(grad, &of_xs()));
        let weight_grad = weight.track_op().then(|| xs.apply_op2_no_bwd(grad, &of_weight()));
        Ok([xs_grad.transpose()?, weight_grad.transpose()?])
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((xs, xs_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [xs_grad, weight_grad] = self.gradients(xs, weight, &grad.contiguous()?)?;
        Ok((xs_grad, weight_grad))
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((xs, xs_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [xs_grad, weight_grad] = self.gradients(xs, weight, &grad)?;
        let of_bias = BiasGradient { of_each_image: bias.rank() == 2 };
        let bias_grad = bias.track_op().then(|| grad.apply_op1_no_bwd(&of_bias)).transpose()?;
        Ok((xs_grad, weight_grad, bias_grad))
    }
}

/// `(weight, grad of the output) -> grad of the input`.
struct InputGradient {
    moves: Moves,
    xs: Shape,
}

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "conv2d-input-gradient"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self.moves, &self.xs, weight_layout.shape())?;
        let weight = Weight::new(f32_slice(weight, weight_layout)?, &geometry);
        let out = input_gradient(&geometry, weight, f32_slice(grad, grad_layout)?);
        Ok((CpuStorage::F32(out), self.xs.clone()))
    }
}

/// `(input, grad of the output) -> grad of the weight`.
struct WeightGradient {
    moves: Moves,
    weight: Shape,
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "conv2d-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self.moves, xs_layout.shape(), &self.weight)?;
        let (xs, grad) = (f32_slice(xs, xs_layout)?, f32_slice(grad, grad_layout)?);
        let out = weight_gradient(&geometry, xs, grad);
        Ok((CpuStorage::F32(out), self.weight.clone()))
    }
}

/// `grad of the output -> grad of the bias`: the sum over each channel, of the batch or of each
/// image.
struct BiasGradient {
    of_each_image: bool,
}

impl CustomOp1 for BiasGradient {
    fn name(&self) -> &'static str {
        "conv2d-bias-gradient"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let grad = f32_slice(grad, layout)?;
        let plane = height * width;
        let sum = |index: usize| sum_f64(&grad[index * plane..][..plane]);
        if self.of_each_image {
            let sums = (0..batch * channels).into_par_iter().map(|i| sum(i) as f32).collect();
            return Ok((CpuStorage::F32(sums), Shape::from((batch, channels))));
        }
        let of_channel = |c: usize| (0..batch).map(|b| sum(b * channels + c)).sum::<f64>() as f32;
        let sums = (0..channels).into_par_iter().map(of_channel).collect();
        Ok((CpuStorage::F32(sums), Shape::from(channels)))
    }
}

#[cfg(test)]
mod tests;
