//! Pooling over 3x3 windows, in the three forms that the network has.
//!
//! candle's pooling has no padding and runs on one thread. On the CPU these are loops over rows,
//! which vectorise: three rows are joined into one, then three columns.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Whether the loops of this folder can take a tensor.
pub(super) fn is_cpu_f32(xs: &Tensor) -> bool {
    matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32
}

/// The numbers behind a contiguous storage.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// The greatest of each window, two apart, no border.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]`, to half of it less one, rounded up
pub(super) fn max_pool_stride_2(xs: &Tensor) -> Result<Tensor> {
    pool(xs, Pool::MaxStride2)
}

/// The greatest of each window, one apart, a border of one. Values must not be negative.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]`, to the same
pub(super) fn max_pool_same(xs: &Tensor) -> Result<Tensor> {
    pool(xs, Pool::MaxSame)
}

/// The mean over each window, one apart, of its pixels inside the image.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]`, to the same
pub(super) fn average_pool(xs: &Tensor) -> Result<Tensor> {
    pool(xs, Pool::Average)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    MaxStride2,
    MaxSame,
    Average,
}

fn pool(xs: &Tensor, kind: Pool) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let least = if kind == Pool::MaxStride2 { 3 } else { 1 };
    if height < least || width < least {
        candle_core::bail!("pooling expected at least {least} x {least} pixels, got {xs:?}");
    }
    if is_cpu_f32(xs) {
        return xs.contiguous()?.apply_op1_no_bwd(&kind);
    }
    by_candle(xs, kind)
}

/// The same in candle's operations, for other devices.
fn by_candle(xs: &Tensor, kind: Pool) -> Result<Tensor> {
    if kind == Pool::MaxStride2 {
        return xs.max_pool2d_with_stride(3, 2);
    }
    // Zeros are no greater than what comes out of a ReLU, and add nothing to a sum.
    let padded = |xs: &Tensor| xs.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1);
    if kind == Pool::MaxSame {
        return padded(xs)?.max_pool2d_with_stride(3, 1);
    }
    let (_, _, height, width) = xs.dims4()?;
    let inside = Tensor::ones((1, 1, height, width), xs.dtype(), xs.device())?;
    let share = padded(&inside)?.avg_pool2d_with_stride(3, 1)?;
    padded(xs)?.avg_pool2d_with_stride(3, 1)?.broadcast_div(&share)
}

impl Pool {
    fn out_side(self, side: usize) -> usize {
        if self == Self::MaxStride2 { (side - 3) / 2 + 1 } else { side }
    }

    /// Pools one plane of `width` columns; `joined` is room for a row.
    fn plane(self, plane: &[f32], width: usize, joined: &mut Vec<f32>, out: &mut [f32]) {
        let height = plane.len() / width;
        let row = |y: usize| &plane[y * width..(y + 1) * width];
        for (oy, line) in out.chunks_exact_mut(self.out_side(width)).enumerate() {
            let rows = match self {
                Self::MaxStride2 => 2 * oy..2 * oy + 3,
                _ => oy.saturating_sub(1)..(oy + 2).min(height),
            };
            let n_rows = rows.len();
            joined.clear();
            joined.extend_from_slice(row(rows.start));
            for y in rows.skip(1) {
                let pairs = joined.iter_mut().zip(row(y));
                match self {
                    Self::Average => pairs.for_each(|(sum, value)| *sum += value),
                    _ => pairs.for_each(|(max, value)| *max = max.max(*value)),
                }
            }
            match self {
                Self::MaxStride2 => {
                    for (value, start) in line.iter_mut().zip((0..).step_by(2)) {
                        let [a, b, c] = [joined[start], joined[start + 1], joined[start + 2]];
                        *value = a.max(b).max(c);
                    }
                }
                Self::MaxSame => {
                    three_columns(joined, line, |values| values.iter().copied().fold(0.0, f32::max))
                }
                Self::Average => three_columns(joined, line, |values| {
                    values.iter().sum::<f32>() / (n_rows * values.len()) as f32
                }),
            }
        }
    }
}

/// Each value of `out` from the three of `row` around it, two at the ends.
#[inline(always)]
fn three_columns(row: &[f32], out: &mut [f32], join: impl Fn(&[f32]) -> f32) {
    let last = row.len() - 1;
    out[0] = join(&row[..2.min(row.len())]);
    if last > 0 {
        out[last] = join(&row[last - 1..]);
    }
    for (value, three) in out.iter_mut().skip(1).zip(row.windows(3)) {
        *value = join(three);
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool-3x3"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (out_h, out_w) = (self.out_side(height), self.out_side(width));
        let xs = slice(xs, layout)?;
        let mut out = vec![0.0; batch * channels * out_h * out_w];
        out.par_chunks_mut(out_h * out_w)
            .zip(xs.par_chunks(height * width))
            .for_each_init(Vec::new, |joined, (out, plane)| self.plane(plane, width, joined, out));
        Ok((CpuStorage::F32(out), Shape::from((batch, channels, out_h, out_w))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random};

    #[test]
    fn agrees_with_candle() {
        for (height, width) in [(3, 3), (8, 8), (17, 17), (9, 20), (35, 6)] {
            let xs = random("xs", &[2, 3, height, width]).relu().unwrap();
            for kind in [Pool::MaxStride2, Pool::MaxSame, Pool::Average] {
                assert_close(&pool(&xs, kind).unwrap(), &by_candle(&xs, kind).unwrap(), 1e-5);
            }
        }
    }

    #[test]
    fn the_border_does_not_count_in_an_average() {
        let ones = Tensor::ones((1, 1, 4, 2), DType::F32, &Device::Cpu).unwrap();
        let ys = average_pool(&ones).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(ys, [1.0; 8]);
        let one = Tensor::full(3f32, (1, 1, 1, 1), &Device::Cpu).unwrap();
        assert_eq!(
            average_pool(&one).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [3.0]
        );
        assert!(max_pool_stride_2(&one).is_err());
    }
}
