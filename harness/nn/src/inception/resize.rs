//! Bilinear resizing of tensors as PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
//!
//! Each output pixel blends four input pixels, whatever the factor: images made smaller alias.
//! That is a fault of the published measure, and part of it. Positions are computed in `f32`, as
//! PyTorch computes them.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::pool::{is_cpu_f32, slice};

/// The two input positions that an output position lies between, and how near it is to the second.
#[derive(Clone, Copy)]
struct Between {
    first: usize,
    second: usize,
    weight: f32,
}

/// For each output position along one side.
fn positions(side_in: usize, side_out: usize) -> Vec<Between> {
    let scale = side_in as f32 / side_out as f32;
    let at = |i: usize| (scale * (i as f32 + 0.5) - 0.5).max(0.0);
    let between = |position: f32| {
        let first = (position as usize).min(side_in - 1);
        let second = (first + 1).min(side_in - 1);
        Between { first, second, weight: position - first as f32 }
    };
    (0..side_out).map(|i| between(at(i))).collect()
}

/// Resizes to a square.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]` to `[batch, channels, side, side]`, none of them zero
pub(super) fn bilinear(xs: &Tensor, side: usize) -> Result<Tensor> {
    if is_cpu_f32(xs) {
        return xs.contiguous()?.apply_op1_no_bwd(&Bilinear { side });
    }
    by_candle(xs, side)
}

/// The same in candle's operations, for other devices.
fn by_candle(xs: &Tensor, side: usize) -> Result<Tensor> {
    let mut xs = xs.clone();
    for dim in [2, 3] {
        let positions = positions(xs.dim(dim)?, side);
        let index = |which: fn(&Between) -> usize| {
            let index: Vec<u32> = positions.iter().map(|p| which(p) as u32).collect();
            Tensor::from_vec(index, side, xs.device())
        };
        let first = xs.index_select(&index(|p| p.first)?, dim)?;
        let second = xs.index_select(&index(|p| p.second)?, dim)?;
        let weights: Vec<f32> = positions.iter().map(|p| p.weight).collect();
        let shape = if dim == 2 { (1, 1, side, 1) } else { (1, 1, 1, side) };
        let weights = Tensor::from_vec(weights, shape, xs.device())?;
        xs = (&first + (second - &first)?.broadcast_mul(&weights)?)?;
    }
    Ok(xs)
}

struct Bilinear {
    side: usize,
}

impl CustomOp1 for Bilinear {
    fn name(&self) -> &'static str {
        "resize-bilinear"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let side = self.side;
        let (rows, columns) = (positions(height, side), positions(width, side));
        let xs = slice(xs, layout)?;
        let mut out = vec![0.0f32; batch * channels * side * side];
        let planes = out.par_chunks_mut(side * side).zip(xs.par_chunks(height * width));
        planes.for_each_init(Vec::new, |blended: &mut Vec<f32>, (out, plane)| {
            for (line, row) in out.chunks_exact_mut(side).zip(&rows) {
                let first = &plane[row.first * width..][..width];
                let second = &plane[row.second * width..][..width];
                blended.clear();
                blended.extend(first.iter().zip(second).map(|(a, b)| a + (b - a) * row.weight));
                for (value, column) in line.iter_mut().zip(&columns) {
                    let (a, b) = (blended[column.first], blended[column.second]);
                    *value = a + (b - a) * column.weight;
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, side, side))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random};

    #[test]
    fn agrees_with_candle() {
        for (height, width, side) in [(32, 32, 299), (7, 5, 11), (40, 13, 9), (1, 1, 4), (6, 6, 6)]
        {
            let xs = random("xs", &[2, 3, height, width]);
            assert_close(&bilinear(&xs, side).unwrap(), &by_candle(&xs, side).unwrap(), 1e-5);
        }
    }

    #[test]
    fn pixels_keep_their_centres() {
        let xs =
            Tensor::from_vec(vec![0f32, 1.0, 2.0, 3.0], (1, 1, 1, 4), &candle_core::Device::Cpu);
        let ys = bilinear(&xs.unwrap(), 2).unwrap().flatten_all().unwrap();
        // Two for one: halfway between the first two, halfway between the last two.
        assert_eq!(ys.to_vec1::<f32>().unwrap(), [0.5, 2.5, 0.5, 2.5]);
    }
}
