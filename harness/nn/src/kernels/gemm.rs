//! The one place that calls the `gemm` crate: a safe, single-threaded `f32` matrix product.
//!
//! Callers run many of these side by side under rayon, which keeps each one's operands in a
//! core's own cache and its result independent of the number of threads.

/// A row-major matrix view: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A dense row-major matrix.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows start `row_stride` elements apart.
    pub(super) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_bounds(data.len(), rows, cols, row_stride, 1);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// What happens to the values that the output holds already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Overwrite,
    Accumulate,
}

/// `out = lhs * rhs` or `out += lhs * rhs`, with `out` row-major, its rows `out_row_stride` apart.
pub(super) fn matmul(
    out: &mut [f32],
    out_row_stride: usize,
    mode: Output,
    lhs: MatRef<'_>,
    rhs: MatRef<'_>,
) {
    assert_eq!(lhs.cols, rhs.rows, "inner dimensions differ");
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    check_bounds(out.len(), m, n, out_row_stride, 1);
    let alpha = if mode == Output::Accumulate { 1.0 } else { 0.0 };
    // SAFETY: `check_bounds` held for the three matrices, so every element that the product
    // reads or writes lies inside its slice, and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row_stride as isize,
            mode == Output::Accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            alpha,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn check_bounds(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(last < len, "matrix {rows}x{cols} with row stride {row_stride} exceeds {len}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_multiplies_as_the_transposed_matrix() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let mut out = [1.0; 9];
        let a = MatRef::new(&a, 2, 3);
        matmul(&mut out, 3, Output::Overwrite, a.transposed(), a);
        assert_eq!(out, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
        matmul(&mut out, 3, Output::Accumulate, a.transposed(), a);
        assert_eq!(out[8], 90.0);
    }
}
