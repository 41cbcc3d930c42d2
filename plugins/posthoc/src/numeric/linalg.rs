//! Linear algebra in `f64` over rows of features.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par, Side};
use oodbench_sdk::{Error, Matrix, Result};
use rayon::prelude::*;

use super::products::multiply;
use super::wide::{sum_of, sum_of_pairs, vectorised};

/// The mean of the rows.
pub fn mean(xs: Matrix<'_>) -> Vec<f64> {
    /// Rows that one thread adds up; sums of such are added in order, whatever the threads.
    const ROWS: usize = 1024;
    let d = xs.n_cols();
    let blocks: Vec<Vec<f64>> = xs
        .values()
        .par_chunks((ROWS * d).max(1))
        .map(|rows| {
            let mut sum = vec![0.0; d];
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(d) {
                        for (sum, &x) in sum.iter_mut().zip(row) {
                            *sum += f64::from(x);
                        }
                    }
                },
            );
            sum
        })
        .collect();
    let mut sum = vec![0.0; d];
    for block in blocks {
        sum.iter_mut().zip(block).for_each(|(sum, of_block)| *sum += of_block);
    }
    let n = xs.n_rows().max(1) as f64;
    sum.iter().map(|sum| sum / n).collect()
}

/// Writes `row - centre`.
#[inline(always)]
fn centred(row: &[f32], centre: &[f64], out: &mut [f64]) {
    for ((out, &x), centre) in out.iter_mut().zip(row).zip(centre) {
        *out = f64::from(x) - centre;
    }
}

/// The mean of `(x - centre) (x - centre)'` over the rows, where the centre may differ from row
/// to row.
pub fn scatter<'c>(xs: Matrix<'_>, centre: impl Fn(usize) -> &'c [f64] + Sync) -> Mat<f64> {
    /// Rows that are centred at a time: enough for the product, little enough memory.
    const ROWS: usize = 1024;
    let d = xs.n_cols();
    let mut total = Mat::<f64>::zeros(d, d);
    let mut block = vec![0.0; ROWS.min(xs.n_rows()) * d];
    for first in (0..xs.n_rows()).step_by(ROWS) {
        let n = ROWS.min(xs.n_rows() - first);
        let block = &mut block[..n * d];
        block.par_chunks_exact_mut(d.max(1)).enumerate().for_each(|(i, out)| {
            let (row, centre) = (xs.row(first + i), centre(first + i));
            vectorised(
                #[inline(always)]
                || centred(row, centre, out),
            );
        });
        let block = MatRef::from_row_major_slice(block, n, d);
        // The other half is the same.
        triangular::matmul(
            total.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            block.transpose(),
            BlockStructure::Rectangular,
            block,
            BlockStructure::Rectangular,
            1.0,
            Par::rayon(0),
        );
    }
    let n = xs.n_rows().max(1) as f64;
    Mat::from_fn(d, d, |i, j| total[(i.max(j), i.min(j))] / n)
}

/// What `of_row` makes of each row of `(xs - centre) * basis`; it gets the row's number and as many
/// numbers as the basis has columns. Never are all rows held.
///
/// # Errors
/// A saved basis whose sizes do not agree with its values, or with the columns of `xs`.
pub fn of_projections<R: Send>(
    xs: Matrix<'_>,
    centre: &[f64],
    basis: &Stored,
    of_row: impl Fn(usize, &[f64]) -> R + Sync,
) -> Result<Vec<R>> {
    let rank = basis.cols;
    of_projected_blocks(xs, centre, basis, |first, n, along| {
        (0..n).map(|i| of_row(first + i, &along[i * rank..(i + 1) * rank])).collect()
    })
}

/// The squared Euclidean distance of each row of `(xs - centre) * basis` to the nearest of some
/// points, the columns of a matrix.
///
/// # Errors
/// Saved matrices whose sizes do not agree with their values, or with one another.
pub fn nearest_distances(
    xs: Matrix<'_>,
    centre: &[f64],
    basis: &Stored,
    points: &Stored,
) -> Result<Vec<f64>> {
    let (rank, n_points) = (points.view()?.nrows(), points.cols);
    if rank != basis.cols {
        return Err(Error::input("the saved state holds a matrix of another size"));
    }
    let of_point = |j: usize| squared_length(&points.values[j * rank..(j + 1) * rank]);
    let squares: Vec<f64> = (0..n_points).map(of_point).collect();
    of_projected_blocks(xs, centre, basis, |_, n, along| {
        let mut products = vec![0.0; PROJECTED * n_points];
        multiply(along, &points.values, rank, &mut products);
        let of_row = |i: usize| {
            let own = squared_length(&along[i * rank..(i + 1) * rank]);
            let products = &products[i * n_points..(i + 1) * n_points];
            let distance = |(square, product): (&f64, &f64)| own + square - 2.0 * product;
            let distances = squares.iter().zip(products).map(distance);
            distances.fold(f64::INFINITY, f64::min).max(0.0)
        };
        (0..n).map(of_row).collect()
    })
}

/// Rows of one product. Blocks are filled up with zeros, so that what comes of a row does not
/// depend on how many others there are.
const PROJECTED: usize = 128;

/// What `of_block` makes of the first row, the number of rows, and `[PROJECTED, rank]`.
fn of_projected_blocks<R: Send>(
    xs: Matrix<'_>,
    centre: &[f64],
    basis: &Stored,
    of_block: impl Fn(usize, usize, &[f64]) -> Vec<R> + Sync,
) -> Result<Vec<R>> {
    let (d, rank) = (basis.view()?.nrows(), basis.cols);
    if xs.n_cols() != d || centre.len() != d {
        let got = xs.n_cols();
        return Err(Error::input(format!("features expected {d} columns, got {got}")));
    }
    let blocks: Vec<Vec<R>> = (0..xs.n_rows().div_ceil(PROJECTED))
        .into_par_iter()
        .map_init(
            || (vec![0.0; PROJECTED * d], vec![0.0; PROJECTED * rank]),
            |(block, along), at| {
                let first = at * PROJECTED;
                let n = PROJECTED.min(xs.n_rows() - first);
                for i in 0..n {
                    let out = &mut block[i * d..(i + 1) * d];
                    vectorised(
                        #[inline(always)]
                        || centred(xs.row(first + i), centre, out),
                    );
                }
                block[n * d..].fill(0.0);
                // Column by column, a matrix is the rows of its transpose.
                multiply(block, &basis.values, d, along);
                of_block(first, n, along)
            },
        )
        .collect();
    Ok(blocks.into_iter().flatten().collect())
}

/// The sum of squares.
pub fn squared_length(z: &[f64]) -> f64 {
    vectorised(
        #[inline(always)]
        || sum_of(z, |z| z * z),
    )
}

/// The squared Euclidean distance of two points.
pub fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    vectorised(
        #[inline(always)]
        || sum_of_pairs(a, b, |a, b| (a - b) * (a - b)),
    )
}

/// Eigenvalues in ascending order and eigenvectors as columns of a symmetric matrix.
///
/// # Errors
/// A matrix with values that are not finite.
pub fn eigen(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    // The decomposition subtracts from the size.
    if matrix.nrows() == 0 {
        return Ok((Vec::new(), Mat::new()));
    }
    let decomposition = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|err| Error::new(format!("eigenvalues do not converge: {err:?}")))?;
    let values: Vec<f64> = decomposition.S().column_vector().iter().copied().collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::input("features expected finite values, got NaN or infinity"));
    }
    Ok((values, decomposition.U().to_owned()))
}

/// A matrix `T` with `T T' = pinv(covariance)`, `[d, rank]`: distances between whitened vectors
/// are Mahalanobis distances.
///
/// Eigenvalues up to `d * epsilon(f64)` times the greatest are dropped, as scipy's `pinvh` does: the
/// reference has features in `f32`, but sklearn makes an `f64` covariance of them. Small eigenvalues
/// matter: of a DenseNet's 342 on CIFAR-10, `epsilon(f32)` would drop 202, and 11 points of AUROC.
/// Those up to `noise` are dropped too: the variance that rounding makes where there is none, as
/// [`rounding_noise`](super::moments::rounding_noise) has it, or 0.
///
/// # Errors
/// A covariance with values that are not finite.
pub fn whitening(covariance: MatRef<'_, f64>, noise: f64) -> Result<Mat<f64>> {
    let d = covariance.nrows();
    let (values, vectors) = eigen(covariance)?;
    let greatest = values.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    let cutoff = (d as f64 * f64::EPSILON * greatest).max(noise);
    let kept: Vec<usize> = (0..d).filter(|&i| values[i] > cutoff).collect();
    Ok(Mat::from_fn(d, kept.len(), |i, j| vectors[(i, kept[j])] / values[kept[j]].sqrt()))
}

/// `pinv(W) b` for a matrix of full or lower rank, by its singular values; as numpy's `pinv` with
/// its default cutoff of 1e-15.
///
/// # Errors
/// A matrix with values that are not finite.
pub fn least_squares(w: Matrix<'_>, b: &[f32]) -> Result<Vec<f64>> {
    let w = Mat::from_fn(w.n_rows(), w.n_cols(), |i, j| f64::from(w.row(i)[j]));
    let svd = w
        .thin_svd()
        .map_err(|err| Error::new(format!("singular values do not converge: {err:?}")))?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let greatest = s.iter().copied().fold(0.0f64, f64::max);
    let mut solution = vec![0.0; w.ncols()];
    for k in 0..s.nrows() {
        if s[k] <= 1e-15 * greatest {
            continue;
        }
        let along: f64 = (0..w.nrows()).map(|i| u[(i, k)] * f64::from(b[i])).sum();
        for (value, j) in solution.iter_mut().zip(0..) {
            *value += v[(j, k)] * along / s[k];
        }
    }
    Ok(solution)
}

/// The length of each row of `(xs - centre) * basis`.
///
/// # Errors
/// A saved basis whose sizes do not agree with its values, or with the columns of `xs`.
pub fn lengths(xs: Matrix<'_>, centre: &[f64], basis: &Stored) -> Result<Vec<f64>> {
    of_projections(xs, centre, basis, |_, z| squared_length(z).sqrt())
}

/// The squared Euclidean distance of each row of `xs` to each row of `means`, `[n, n_means]`.
pub fn squared_distances(xs: MatRef<'_, f64>, means: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(xs.nrows(), means.nrows());
    matmul(out.as_mut(), Accum::Replace, xs, means.transpose(), -2.0, Par::rayon(0));
    let own: Vec<f64> = (0..xs.nrows()).map(|i| xs.row(i).squared_norm_l2()).collect();
    for j in 0..means.nrows() {
        let of_mean = means.row(j).squared_norm_l2();
        for (out, own) in out.col_as_slice_mut(j).iter_mut().zip(&own) {
            *out = (*out + own + of_mean).max(0.0);
        }
    }
    out
}

/// A matrix as plain numbers, for a saved state.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Stored {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl From<&Mat<f64>> for Stored {
    fn from(matrix: &Mat<f64>) -> Self {
        let (rows, cols) = (matrix.nrows(), matrix.ncols());
        let values = (0..cols).flat_map(|j| (0..rows).map(move |i| matrix[(i, j)])).collect();
        Self { rows, cols, values }
    }
}

impl Stored {
    /// A matrix of row-major values.
    ///
    /// # Errors
    /// Values that are no matrix of this size.
    pub fn from_rows(rows: usize, cols: usize, values: &[f64]) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            let got = values.len();
            return Err(Error::input(format!("matrix expected {rows} x {cols} values, got {got}")));
        }
        Ok((&Mat::from_fn(rows, cols, |i, j| values[i * cols + j])).into())
    }

    /// The matrix, column-major.
    ///
    /// # Errors
    /// A state whose sizes do not agree with its values.
    pub fn view(&self) -> Result<MatRef<'_, f64>> {
        if self.rows.checked_mul(self.cols) != Some(self.values.len()) {
            return Err(Error::input("the saved state holds a matrix of another size"));
        }
        Ok(MatRef::from_column_major_slice(&self.values, self.rows, self.cols))
    }

    /// Rows times the matrix, `[n, cols]`, all row-major. What comes of a row does not depend on how
    /// many others there are.
    ///
    /// # Errors
    /// A state whose sizes do not agree with its values, or rows of another size.
    pub fn products(&self, rows: &[f64]) -> Result<Vec<f64>> {
        /// Rows of one product, whose shape is always the same, hence its rounding too.
        const ROWS: usize = 32;
        let (d, rank) = (self.view()?.nrows(), self.cols);
        if d == 0 || !rows.len().is_multiple_of(d) {
            let got = rows.len();
            return Err(Error::input(format!("rows expected {d} values each, got {got} in all")));
        }
        let n = rows.len() / d;
        let mut out = vec![0.0; n.next_multiple_of(ROWS) * rank];
        let mut block = vec![0.0; ROWS * d];
        for (rows, out) in rows.chunks(ROWS * d).zip(out.chunks_exact_mut((ROWS * rank).max(1))) {
            block[..rows.len()].copy_from_slice(rows);
            block[rows.len()..].fill(0.0);
            multiply(&block, &self.values, d, out);
        }
        out.truncate(n * rank);
        Ok(out)
    }

    /// A column of a matrix whose sizes are right, as [`Stored::view`] finds out.
    ///
    /// # Panics
    ///
    /// When there is no such column.
    pub fn column(&self, j: usize) -> &[f64] {
        &self.values[j * self.rows..(j + 1) * self.rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_distances_are_mahalanobis_distances() {
        let values = [2.0, 0.0, -2.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        let xs = Matrix::new(&values, 4, 2).unwrap();
        let centre = mean(xs);
        let t = whitening(scatter(xs, |_| &centre).as_ref(), 0.0).unwrap();
        let distances = lengths(xs, &centre, &(&t).into()).unwrap();
        assert!(distances.iter().all(|distance| (distance - 2f64.sqrt()).abs() < 1e-9));
    }

    #[test]
    fn what_varies_in_no_direction_has_no_eigenvalue() {
        let none = whitening(Mat::zeros(3, 3).as_ref(), 0.0).unwrap();
        assert_eq!((none.nrows(), none.ncols()), (3, 0));
        let (values, vectors) = eigen((none.transpose() * &none).as_ref()).unwrap();
        assert!(values.is_empty() && vectors.ncols() == 0);
    }

    #[test]
    fn the_nearest_of_many_points_is_found_for_every_row() {
        let (n, d, m) = (300, 5, 7);
        let value = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
        let values: Vec<f32> = (0..n * d).map(value).collect();
        let xs = Matrix::new(&values, n, d).unwrap();
        let centre = vec![0.25; d];
        let basis = Mat::from_fn(d, 3, |i, j| f64::from(value(3 * i + j + 1)));
        let points = Mat::from_fn(3, m, |i, j| f64::from(value(m * i + j + 50)));
        let (basis, points) = ((&basis).into(), (&points).into());
        let got = nearest_distances(xs, &centre, &basis, &points).unwrap();
        let zs = of_projections(xs, &centre, &basis, |_, z| z.to_vec()).unwrap();
        for (i, (got, z)) in got.iter().zip(&zs).enumerate() {
            for (j, z) in z.iter().enumerate() {
                let terms = (0..d).map(|k| (f64::from(xs.row(i)[k]) - 0.25) * basis.column(j)[k]);
                assert!((z - terms.sum::<f64>()).abs() < 1e-12);
            }
            let distances = (0..m).map(|j| squared_distance(z, points.column(j)));
            let expected = distances.fold(f64::INFINITY, f64::min);
            assert!((got - expected).abs() < 1e-12, "row {i}");
        }
        // A row alone comes to the same.
        let row = Matrix::new(xs.row(n - 1), 1, d).unwrap();
        assert_eq!(nearest_distances(row, &centre, &basis, &points).unwrap(), got[n - 1..]);
    }

    #[test]
    fn directions_without_variance_are_dropped() {
        let values = [1.0, 5.0, -1.0, 5.0];
        let xs = Matrix::new(&values, 2, 2).unwrap();
        let centre = mean(xs);
        assert_eq!(whitening(scatter(xs, |_| &centre).as_ref(), 0.0).unwrap().ncols(), 1);
    }

    #[test]
    fn least_squares_takes_the_shortest_solution() {
        let w = [1.0, 0.0, 1.0, 0.0, 2.0, 0.0];
        let x = least_squares(Matrix::new(&w, 2, 3).unwrap(), &[2.0, 4.0]).unwrap();
        for (got, expected) in x.iter().zip([1.0, 2.0, 1.0]) {
            assert!((got - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn nan_is_an_error() {
        let matrix = Mat::from_fn(2, 2, |_, _| f64::NAN);
        assert!(eigen(matrix.as_ref()).is_err());
    }
}
