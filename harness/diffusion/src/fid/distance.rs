//! The Fréchet distance between two normal distributions.
//!
//! What is hard is `tr (C_1 C_2)^(1/2)`. The product is not symmetric, and singular whenever there
//! are fewer images than features; a square root of it by Schur's method, as in pytorch-fid, then
//! loses half the digits, or fails and is tried again with 1e-6 added to both diagonals. Here each
//! covariance is symmetric and factored as `C = B' B` by its eigenvalues, and the trace is the sum
//! of the singular values of `B_1 B_2'`: the same number, to nearly full precision, and nothing
//! need be added to anything.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side};

use super::{FidError, Statistics, StatisticsError};

/// Negative eigenvalues down to this share of the greatest are rounding of a covariance that was
/// computed in `f32`.
const ROUNDING: f64 = 1e-5;

/// The squared Fréchet distance, which is what is reported as FID.
///
/// # Errors
/// Statistics of different sizes, or a `sigma` with eigenvalues below zero.
pub fn frechet_distance(first: &Statistics, second: &Statistics) -> Result<f64, FidError> {
    if first.n_features() != second.n_features() {
        let (first, second) = (first.n_features(), second.n_features());
        return Err(FidError::Sizes { first, second });
    }
    let means = first.mean().iter().zip(second.mean());
    let between_means: f64 = means.map(|(a, b)| (a - b) * (a - b)).sum();
    let (b1, b2) = (factor(first)?, factor(second)?);
    let mut product = Mat::zeros(b1.nrows(), b2.nrows());
    matmul(product.as_mut(), Accum::Replace, b1.as_ref(), b2.transpose(), 1.0, Par::rayon(0));
    let distance = between_means + trace(first) + trace(second) - 2.0 * nuclear_norm(&product)?;
    // No distance is negative but by rounding.
    Ok(distance.max(0.0))
}

fn trace(statistics: &Statistics) -> f64 {
    let covariance = statistics.covariance();
    (0..covariance.nrows()).map(|i| covariance[(i, i)]).sum()
}

/// `B`, `[rank, features]`, with `B' B` the covariance.
fn factor(statistics: &Statistics) -> Result<Mat<f64>, FidError> {
    let size = statistics.n_features();
    let failed = |_| FidError::NoConvergence { decomposition: "eigenvalues", size };
    let eigen = statistics.covariance().self_adjoint_eigen(Side::Lower).map_err(failed)?;
    // In ascending order.
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let least = values.first().copied().unwrap_or(0.0);
    let greatest = values.last().copied().unwrap_or(0.0);
    if least < -ROUNDING * greatest.max(0.0) {
        return Err(StatisticsError::Negative { value: least, greatest }.into());
    }
    // Below this an eigenvalue is nothing but rounding, and its square root would not be small.
    let cutoff = size as f64 * f64::EPSILON * greatest;
    let rank = values.iter().filter(|&&value| value > cutoff).count();
    let vectors = eigen.U();
    let row = |i: usize| size - rank + i;
    Ok(Mat::from_fn(rank, size, |i, j| vectors[(j, row(i))] * values[row(i)].sqrt()))
}

/// The sum of the singular values.
fn nuclear_norm(matrix: &Mat<f64>) -> Result<f64, FidError> {
    if matrix.nrows() == 0 || matrix.ncols() == 0 {
        return Ok(0.0);
    }
    let size = matrix.nrows().max(matrix.ncols());
    let failed = |_| FidError::NoConvergence { decomposition: "singular values", size };
    Ok(matrix.singular_values().map_err(failed)?.iter().sum())
}

#[cfg(test)]
mod tests {
    use oodbench_nn::formula::Stream;

    use super::*;
    use crate::fid::Moments;

    fn statistics(n_features: usize, features: impl Iterator<Item = f64>) -> Statistics {
        let features: Vec<f32> = features.map(|x| x as f32).collect();
        let mut moments = Moments::new(n_features);
        moments.push(&features).unwrap();
        moments.finish().unwrap()
    }

    /// Of `scale * u` and of `scale * (u^2 + shift)`, `u` uniform from the streams `NAME/a` and `NAME/b`.
    fn pair(
        name: &str,
        images: (usize, usize),
        d: usize,
        scale: f64,
        shift: f64,
    ) -> [Statistics; 2] {
        let uniform = |part: &str, n: usize| {
            let mut stream = Stream::new(&format!("{name}/{part}"));
            (0..n * d).map(move |_| stream.next_f64())
        };
        let first = uniform("a", images.0).map(|u| scale * u);
        let second = uniform("b", images.1).map(|u| (u * u + shift) * scale);
        [statistics(d, first), statistics(d, second)]
    }

    fn diagonal(mean: f64, variances: &[f64]) -> Statistics {
        let d = variances.len();
        let at = |i: usize| if i / d == i % d { variances[i / d] } else { 0.0 };
        let covariance: Vec<f64> = (0..d * d).map(at).collect();
        Statistics::new(vec![mean; d], &covariance).unwrap()
    }

    /// Expected: pytorch-fid's formula with `scipy.linalg.sqrtm` (scipy 1.17.1, numpy 2.4.6), and
    /// the same from the features in 50 digits (mpmath 1.3.0).
    #[test]
    fn agrees_with_scipy_and_better_with_fifty_digits() {
        let check = |name, images, d, scale, shift, scipy: f64, exact: f64| {
            let [a, b] = pair(name, images, d, scale, shift);
            let got = frechet_distance(&a, &b).unwrap();
            assert!((got / scipy - 1.0).abs() < 1e-6, "{name}: scipy {scipy}, got {got}");
            assert!((got / exact - 1.0).abs() < 1e-12, "{name}: exactly {exact}, got {got}");
            let back = frechet_distance(&b, &a).unwrap();
            assert!((back / exact - 1.0).abs() < 1e-12, "{name}: exactly {exact}, got {back}");
        };
        let (full, both, one) = ((200, 300), (10, 12), (10, 100));
        check("full", full, 16, 1.0, 0.25, 0.19149430341107943, 0.1914943034110817);
        check("both deficient", both, 24, 1.0, 0.25, 2.618952594438433, 2.618952642061263);
        check("one deficient", one, 24, 1.0, 0.25, 2.0265097385116873, 2.026509769785913);
        check("tiny", full, 16, 1e-4, 0.25, 1.401502201025805e-9, 1.4015022010258173e-9);
        check("same mean", (50, 50), 40, 1.0, 0.0, 2.508233276582006, 2.5082332765820134);
    }

    #[test]
    fn commuting_covariances_have_a_closed_form() {
        let got = frechet_distance(&diagonal(1.0, &[4.0, 9.0]), &diagonal(3.0, &[1.0, 25.0]));
        assert!((got.unwrap() - (8.0 + 1.0 + 4.0)).abs() < 1e-12);
        let got = frechet_distance(&diagonal(0.0, &[0.0, 0.0]), &diagonal(0.0, &[0.0, 25.0]));
        assert!((got.unwrap() - 25.0).abs() < 1e-12);
    }

    #[test]
    fn a_set_has_no_distance_to_itself() {
        for images in [(200, 300), (10, 12)] {
            for statistics in pair("identical", images, 24, 10.0, 0.5) {
                let distance = frechet_distance(&statistics, &statistics).unwrap();
                assert!(distance < 1e-11 * trace(&statistics), "{distance}");
            }
        }
    }

    #[test]
    fn a_shift_of_one_mean_adds_its_square() {
        let [a, b] = pair("shift", (50, 60), 12, 1.0, 0.0);
        let d = a.n_features();
        let covariance: Vec<f64> = (0..d * d).map(|i| b.covariance()[(i / d, i % d)]).collect();
        let mut mean = b.mean().to_vec();
        let before: f64 = (a.mean()[3] - mean[3]).powi(2);
        mean[3] += 2.0;
        let after: f64 = (a.mean()[3] - mean[3]).powi(2);
        let shifted = Statistics::new(mean, &covariance).unwrap();
        let [old, new] = [&b, &shifted].map(|b| frechet_distance(&a, b).unwrap());
        assert!((new - old - (after - before)).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_distance_is_an_error() {
        let error = frechet_distance(&diagonal(0.0, &[1.0]), &diagonal(0.0, &[1.0, 1.0]));
        assert!(matches!(error, Err(FidError::Sizes { first: 1, second: 2 })));
        let error = frechet_distance(&diagonal(0.0, &[5.0, -0.25]), &diagonal(0.0, &[1.0, 1.0]));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("got the eigenvalue `-2.5e-1` beside the greatest, `5e0`"),
            "{error}"
        );
        // What `f32` leaves of a zero.
        assert!(
            frechet_distance(&diagonal(0.0, &[5.0, -1e-6]), &diagonal(0.0, &[1.0, 1.0])).is_ok()
        );
    }
}
