//! Element-wise loops and sums, compiled for the widest vectors that the machine has.

/// Runs `f` compiled for the instruction set found at run time. Whatever `f` calls must be
/// inlined into it, or it stays at the baseline of the target.
#[inline(always)]
pub(super) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Call<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}

/// Copies one slice to another of the same length. The lengths that rows of small images have are
/// copied in place, where `copy_from_slice` would call a function.
#[inline(always)]
pub(super) fn copy(from: &[f32], to: &mut [f32]) {
    #[inline(always)]
    fn fixed<const N: usize>(from: &[f32], to: &mut [f32]) {
        let from: Option<&[f32; N]> = from.first_chunk();
        if let (Some(from), Some(to)) = (from, to.first_chunk_mut()) {
            *to = *from;
        }
    }
    match (from.len(), to.len()) {
        (32, 32) => fixed::<32>(from, to),
        (16, 16) => fixed::<16>(from, to),
        (8, 8) => fixed::<8>(from, to),
        _ => to.copy_from_slice(from),
    }
}

/// The logistic function, `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `exp(x)` to 2e-7 relative, in operations that vectorise; `f32::exp` is a call for each
/// element. Inputs outside of `[-87, 88]` are taken as that bound; a NaN stays one.
///
/// Range reduction by powers of two and the minimax polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // The logarithm of two in two parts: the first is exact when multiplied by a small integer.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let value = p * r * r + r + 1.0;
    // After the shift the low bits of the mantissa are the integer itself; a cast would saturate,
    // which does not vectorise.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    value * f32::from_bits(exponent << 23)
}

/// The sum of many values, in `f64`. Eight lanes, so that the loop vectorises; their number and so
/// the order of the sum is the same on every machine.
pub(super) fn sum_f64(xs: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    vectorised(
        #[inline(always)]
        || {
            let (chunks, rest) = xs.as_chunks::<8>();
            for chunk in chunks {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(x);
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(x);
            }
        },
    );
    lanes.iter().sum()
}

/// Mean and inverse standard deviation of a slice, summed in `f64`.
pub(super) fn statistics(xs: &[f32], eps: f64) -> (f32, f32) {
    // Eight lanes, so that the loop vectorises and the sum stays accurate.
    let mut sums = [0.0f64; 8];
    let mut squares = [0.0f64; 8];
    vectorised(
        #[inline(always)]
        || {
            let chunks = xs.chunks_exact(8);
            for &x in chunks.remainder() {
                sums[0] += f64::from(x);
                squares[0] += f64::from(x) * f64::from(x);
            }
            for chunk in chunks {
                for lane in 0..8 {
                    let x = f64::from(chunk[lane]);
                    sums[lane] += x;
                    squares[lane] += x * x;
                }
            }
        },
    );
    let n = xs.len() as f64;
    let mean = sums.iter().sum::<f64>() / n;
    let variance = (squares.iter().sum::<f64>() / n - mean * mean).max(0.0);
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

/// The sum of `a`, and of `a * b`, in `f64`.
pub(super) fn sum_and_product(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut sums, mut products) = ([0.0f64; 8], [0.0f64; 8]);
    vectorised(
        #[inline(always)]
        || {
            let (a, a_rest) = a.as_chunks::<8>();
            let (b, b_rest) = b.as_chunks::<8>();
            for (a, b) in a.iter().zip(b) {
                for lane in 0..8 {
                    let a = f64::from(a[lane]);
                    sums[lane] += a;
                    products[lane] += a * f64::from(b[lane]);
                }
            }
            for (&a, &b) in a_rest.iter().zip(b_rest) {
                sums[0] += f64::from(a);
                products[0] += f64::from(a) * f64::from(b);
            }
        },
    );
    (sums.iter().sum(), products.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let worst = (-8700..8800)
            .map(|i| {
                let x = i as f32 / 100.0;
                let exact = f64::from(x).exp();
                (f64::from(exp(x)) / exact - 1.0).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(1e30), 1.0);
        assert!(sigmoid(-1e30) < 1e-37);
    }
}
