//! Products of matrices in row-major slices.

use faer::linalg::matmul::matmul;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

/// `out = left * right'` for rows of `d` columns, all row-major, on this thread.
pub fn multiply<T: RealField + Copy>(left: &[T], right: &[T], d: usize, out: &mut [T]) {
    multiply_on(Par::Seq, left, right, d, out);
}

/// The same on several threads, where that is asked for.
pub fn multiply_on<T: RealField + Copy>(
    par: Par,
    left: &[T],
    right: &[T],
    d: usize,
    out: &mut [T],
) {
    let (n, m) = match d {
        0 => return out.fill(T::zero_impl()),
        d => (left.len() / d, right.len() / d),
    };
    let left = MatRef::from_row_major_slice(left, n, d);
    let right = MatRef::from_row_major_slice(right, m, d);
    let out = MatMut::from_row_major_slice_mut(out, n, m);
    matmul(out, Accum::Replace, left, right.transpose(), T::one_impl(), par);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_multiplied_with_every_row() {
        let (left, right) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0]);
        let mut out = [f64::NAN; 6];
        multiply(&left, &right, 2, &mut out);
        assert_eq!(out, [1.0, 4.0, 3.0, 10.0, 5.0, 16.0]);
        multiply(&[], &[], 0, &mut out);
        assert_eq!(out, [0.0; 6]);
    }
}
