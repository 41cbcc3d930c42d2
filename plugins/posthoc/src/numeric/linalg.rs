//! Linear algebra in `f64` over rows of features.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use oodbench_sdk::{Error, Matrix, Result};

/// The mean of the rows.
pub fn mean(xs: Matrix<'_>) -> Vec<f64> {
    let mut sum = vec![0.0; xs.n_cols()];
    for row in xs.rows() {
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let n = xs.n_rows().max(1) as f64;
    sum.iter().map(|sum| sum / n).collect()
}

/// The mean of `(x - centre) (x - centre)'` over the rows, where the centre may differ from row
/// to row.
pub fn scatter<'c>(xs: Matrix<'_>, centre: impl Fn(usize) -> &'c [f64]) -> Mat<f64> {
    /// Rows that are centred at a time: enough for the product, little enough memory.
    const ROWS: usize = 512;
    let d = xs.n_cols();
    let mut total = Mat::<f64>::zeros(d, d);
    for first in (0..xs.n_rows()).step_by(ROWS) {
        let n = ROWS.min(xs.n_rows() - first);
        let block =
            Mat::from_fn(n, d, |i, j| f64::from(xs.row(first + i)[j]) - centre(first + i)[j]);
        matmul(total.as_mut(), Accum::Add, block.transpose(), block.as_ref(), 1.0, Par::rayon(0));
    }
    let n = xs.n_rows().max(1) as f64;
    Mat::from_fn(d, d, |i, j| total[(i, j)] / n)
}

/// Eigenvalues in ascending order and eigenvectors as columns of a symmetric matrix.
///
/// # Errors
/// A matrix with values that are not finite.
pub fn eigen(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
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
/// Eigenvalues below `d * epsilon(f32)` times the greatest are dropped, as scipy's `pinvh` does
/// with the reference's `f32` covariance.
///
/// # Errors
/// A covariance with values that are not finite.
pub fn whitening(covariance: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let d = covariance.nrows();
    let (values, vectors) = eigen(covariance)?;
    let greatest = values.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    let cutoff = d as f64 * f64::from(f32::EPSILON) * greatest;
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

/// `(xs - centre) * basis`, `[n, basis columns]`, row-major.
pub fn project(xs: Matrix<'_>, centre: &[f64], basis: MatRef<'_, f64>) -> Mat<f64> {
    let centred =
        Mat::from_fn(xs.n_rows(), xs.n_cols(), |i, j| f64::from(xs.row(i)[j]) - centre[j]);
    let mut out = Mat::zeros(xs.n_rows(), basis.ncols());
    matmul(out.as_mut(), Accum::Replace, centred.as_ref(), basis, 1.0, Par::rayon(0));
    out
}

/// The length of each row of `(xs - centre) * basis`.
pub fn lengths(xs: Matrix<'_>, centre: &[f64], basis: MatRef<'_, f64>) -> Vec<f64> {
    let along = project(xs, centre, basis);
    (0..along.nrows()).map(|i| along.row(i).squared_norm_l2().sqrt()).collect()
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_distances_are_mahalanobis_distances() {
        let values = [2.0, 0.0, -2.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        let xs = Matrix::new(&values, 4, 2).unwrap();
        let centre = mean(xs);
        let t = whitening(scatter(xs, |_| &centre).as_ref()).unwrap();
        let z = project(xs, &centre, t.as_ref());
        for i in 0..4 {
            let distance: f64 = (0..z.ncols()).map(|j| z[(i, j)] * z[(i, j)]).sum();
            assert!((distance - 2.0).abs() < 1e-9);
        }
    }

    #[test]
    fn directions_without_variance_are_dropped() {
        let values = [1.0, 5.0, -1.0, 5.0];
        let xs = Matrix::new(&values, 2, 2).unwrap();
        let centre = mean(xs);
        assert_eq!(whitening(scatter(xs, |_| &centre).as_ref()).unwrap().ncols(), 1);
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
