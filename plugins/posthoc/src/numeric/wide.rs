//! Loops over rows in `f64`, compiled for the widest vectors that the machine has.
//!
//! Sums are of eight numbers side by side that are added up at the end, in an order that does not
//! depend on the machine, nor on what else is computed with them.

use std::ops::Range;

use pulp::{Simd, WithSimd};

/// Numbers side by side.
const LANES: usize = 8;

/// Runs `f` compiled for the instruction set found at run time. Whatever `f` calls must be
/// inlined into it, or it stays at the baseline of the target.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
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

/// The sum of `f` over numbers; for use inside of [`vectorised`].
#[inline(always)]
pub fn sum_of<T: Copy>(xs: &[T], f: impl Fn(T) -> f64) -> f64 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f(x);
        }
    }
    rest.iter().fold(total(sums), |sum, &x| sum + f(x))
}

/// The sum of `f` over pairs of numbers; for use inside of [`vectorised`].
#[inline(always)]
pub fn sum_of_pairs<T: Copy, U: Copy>(xs: &[T], ys: &[U], f: impl Fn(T, U) -> f64) -> f64 {
    let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
    let (y_chunks, y_rest) = ys.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (xs, ys) in x_chunks.iter().zip(y_chunks) {
        for ((sum, &x), &y) in sums.iter_mut().zip(xs).zip(ys) {
            *sum += f(x, y);
        }
    }
    x_rest.iter().zip(y_rest).fold(total(sums), |sum, (&x, &y)| sum + f(x, y))
}

#[inline(always)]
fn total(sums: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `out[i][j]` is the inner product of row `i` of `left` and row `j` of `right`, for rows of `d`
/// numbers, all row-major. Each is summed as [`sum_of_pairs`] does it.
pub fn row_products(left: &[f64], right: &[f64], d: usize, out: &mut [f64]) {
    /// Rows of the right operand that stay in the cache while the left one passes by.
    const RIGHT: usize = 32;
    if d == 0 {
        return out.fill(0.0);
    }
    let (n, m) = (left.len() / d, right.len() / d);
    for first in (0..m).step_by(RIGHT) {
        let columns = first..(first + RIGHT).min(m);
        pulp::Arch::new().dispatch(Products { left, right, d, rows: 0..n, columns, m, out });
    }
}

/// Some of the products of [`row_products`].
struct Products<'a> {
    left: &'a [f64],
    right: &'a [f64],
    d: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    m: usize,
    out: &'a mut [f64],
}

impl WithSimd for Products<'_> {
    type Output = ();

    /// Eight numbers are as many vectors as it takes on the machine.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F64_LANES {
            8 => self.all::<S, 4, 2, 1>(simd),
            4 => self.all::<S, 2, 2, 2>(simd),
            2 => self.all::<S, 1, 2, 4>(simd),
            _ => self.all::<S, 1, 1, 8>(simd),
        }
    }
}

impl Products<'_> {
    /// Tiles of `R` rows and `C` columns, and what is left over.
    #[inline(always)]
    fn all<S: Simd, const R: usize, const C: usize, const V: usize>(&mut self, simd: S) {
        let mut i = self.rows.start;
        while i < self.rows.end {
            let whole = self.rows.end - i >= R;
            let mut j = self.columns.start;
            while j < self.columns.end {
                let wide = self.columns.end - j >= C;
                match (whole, wide) {
                    (true, true) => self.tile::<S, R, C, V>(simd, i, j),
                    (true, false) => self.tile::<S, R, 1, V>(simd, i, j),
                    (false, true) => self.tile::<S, 1, C, V>(simd, i, j),
                    (false, false) => self.tile::<S, 1, 1, V>(simd, i, j),
                }
                j += if wide { C } else { 1 };
            }
            i += if whole { R } else { 1 };
        }
    }

    /// The products of `R` rows with `C` rows from `(i, j)` on, in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize, const V: usize>(
        &mut self,
        simd: S,
        i: usize,
        j: usize,
    ) {
        let (d, m) = (self.d, self.m);
        let xs: [_; R] =
            std::array::from_fn(|r| self.left[(i + r) * d..(i + r + 1) * d].as_chunks::<LANES>());
        let ys: [_; C] =
            std::array::from_fn(|c| self.right[(j + c) * d..(j + c + 1) * d].as_chunks::<LANES>());
        let mut sums = [[[simd.splat_f64s(0.0); V]; C]; R];
        for k in 0..d / LANES {
            for (sums, (x, _)) in sums.iter_mut().zip(&xs) {
                let x = S::as_simd_f64s(&x[k]).0;
                for (sums, (y, _)) in sums.iter_mut().zip(&ys) {
                    let y = S::as_simd_f64s(&y[k]).0;
                    for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
                        *sum = simd.add_f64s(*sum, simd.mul_f64s(x, y));
                    }
                }
            }
        }
        for (r, (sums, (_, x))) in sums.iter().zip(&xs).enumerate() {
            for (c, (sums, (_, y))) in sums.iter().zip(&ys).enumerate() {
                let mut lanes = [0.0; LANES];
                S::as_mut_simd_f64s(&mut lanes).0.copy_from_slice(sums);
                let rest = x.iter().zip(*y);
                self.out[(i + r) * m + j + c] = rest.fold(total(lanes), |sum, (x, y)| sum + x * y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7919 + seed) % 1013) as f64 / 1013.0 - 0.5).collect()
    }

    #[test]
    fn products_are_the_sums_of_pairs() {
        for (n, m, d) in [(9, 67, 21), (1, 1, 3), (4, 2, 8), (3, 5, 0), (0, 2, 4), (2, 0, 4)] {
            let (left, right) = (values(n * d, 1), values(m * d, 2));
            let mut out = vec![f64::NAN; n * m];
            row_products(&left, &right, d, &mut out);
            for (at, got) in out.into_iter().enumerate() {
                let (x, y) = (&left[at / m * d..][..d], &right[at % m * d..][..d]);
                assert_eq!(got, sum_of_pairs(x, y, |x, y| x * y));
                let expected: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
                assert!((got - expected).abs() < 1e-12, "{n} x {m} x {d}");
            }
        }
    }

    #[test]
    fn every_number_counts() {
        for n in [0, 3, 8, 21] {
            let xs: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum_of(&xs, f64::from), (n * n) as f64 / 2.0 - n as f64 / 2.0);
        }
    }
}
