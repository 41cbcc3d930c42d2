//! The 3x3, stride 2, padding 1 max pooling of ImageNet ResNets, with a gradient; and the mean of every
//! 2x2 pixels.
//!
//! candle's own max pooling has no padding, and no gradient where the window differs from the stride.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32_slice, is_cpu_f32, is_on_gpu, on_device};

/// Max pooling over 3x3 windows, two apart, with a border of one.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]` to `[batch, channels, ceil(height / 2), ceil(width / 2)]`
pub fn max_pool_3x3_stride_2(xs: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(xs) {
        return xs.contiguous()?.apply_op1(MaxPool);
    }
    if is_on_gpu(xs) {
        return on_device::max_pool_3x3_stride_2(xs);
    }
    // Padding with zeros equals padding with minus infinity: the input comes out of a ReLU.
    let padded = xs.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    padded.max_pool2d_with_stride(3, 2)
}

/// The mean of every 2x2 pixels; an odd last row or column is left out.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]` to `[batch, channels, height / 2, width / 2]`
pub fn avg_pool_2x(xs: &Tensor) -> Result<Tensor> {
    if is_on_gpu(xs) {
        return on_device::avg_pool_2x(xs);
    }
    let (_, _, height, width) = xs.dims4()?;
    // candle's gradient spreads over all pixels, also those that are left out.
    let even = match (height % 2, width % 2) {
        (0, 0) => xs.clone(),
        _ => xs.narrow(2, 0, height / 2 * 2)?.narrow(3, 0, width / 2 * 2)?.contiguous()?,
    };
    even.avg_pool2d(2)
}

struct MaxPool;

/// The window's greatest value and where it lies; the first one wins, as in PyTorch.
fn window_max(plane: &[f32], height: usize, width: usize, oy: usize, ox: usize) -> usize {
    let rows = (2 * oy).saturating_sub(1)..(2 * oy + 2).min(height);
    let cols = (2 * ox).saturating_sub(1)..(2 * ox + 2).min(width);
    let mut best = rows.start * width + cols.start;
    for y in rows {
        for x in cols.clone() {
            let at = y * width + x;
            if plane[at] > plane[best] || plane[at].is_nan() {
                best = at;
            }
        }
    }
    best
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool-3x3-stride-2"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (out_h, out_w) = (height.div_ceil(2), width.div_ceil(2));
        let xs = f32_slice(xs, layout)?;
        let mut out = vec![0.0; batch * channels * out_h * out_w];
        if !out.is_empty() {
            out.par_chunks_mut(out_h * out_w).zip(xs.par_chunks(height * width)).for_each(
                |(out, plane)| {
                    for (i, y) in out.iter_mut().enumerate() {
                        *y = plane[window_max(plane, height, width, i / out_w, i % out_w)];
                    }
                },
            );
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, out_h, out_w))))
    }

    fn bwd(&self, xs: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(xs.apply_op2_no_bwd(&grad.contiguous()?, &MaxPoolGradient)?))
    }
}

struct MaxPoolGradient;

impl CustomOp2 for MaxPoolGradient {
    fn name(&self) -> &'static str {
        "max-pool-3x3-stride-2-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, _, height, width) = layout.shape().dims4()?;
        let (out_h, out_w) = (height.div_ceil(2), width.div_ceil(2));
        let (xs, grad) = (f32_slice(xs, layout)?, f32_slice(grad, grad_layout)?);
        let mut out = vec![0.0; xs.len()];
        if !out.is_empty() {
            let planes = xs.par_chunks(height * width).zip(grad.par_chunks(out_h * out_w));
            out.par_chunks_mut(height * width).zip(planes).for_each(|(out, (plane, grad))| {
                for (i, g) in grad.iter().enumerate() {
                    out[window_max(plane, height, width, i / out_w, i % out_w)] += g;
                }
            });
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn takes_the_greatest_of_each_window_and_sends_the_gradient_there() {
        let values: Vec<f32> = (0..16).map(|v| ((v * 7) % 16) as f32).collect();
        let xs = Var::from_vec(values, (1, 1, 4, 4), &Device::Cpu).unwrap();
        // 0 7 14 5 / 12 3 10 1 / 8 15 6 13 / 4 11 2 9
        let ys = max_pool_3x3_stride_2(&xs).unwrap();
        assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [12., 14., 15., 15.]);
        let grads = ys.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&xs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((grad[4], grad[2], grad[9], grad.iter().sum::<f32>()), (1., 1., 2., 4.));
    }

    #[test]
    fn an_odd_row_has_no_part_in_a_mean() {
        let values: Vec<f32> = (0..15).map(|v| v as f32).collect();
        let xs = Var::from_vec(values, (1, 1, 3, 5), &Device::Cpu).unwrap();
        let ys = avg_pool_2x(&xs).unwrap();
        assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [3., 5.]);
        let grads = ys.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&xs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected: Vec<f32> =
            (0..15).map(|i| if i < 10 && i % 5 < 4 { 0.25 } else { 0. }).collect();
        assert_eq!(grad, expected);
    }

    #[test]
    fn negative_values_are_not_beaten_by_the_border() {
        let xs = Tensor::full(-2f32, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let ys = max_pool_3x3_stride_2(&xs).unwrap();
        assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-2.0; 4]);
    }
}
