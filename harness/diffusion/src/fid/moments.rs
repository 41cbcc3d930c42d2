//! Mean and covariance of features that go by, in `f64`.
//!
//! Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
//! Variances", 1979: each block of rows is centred by its own mean, and joined to what is there
//! by the difference of the means. Nothing is lost to cancellation, as it is when sums of squares
//! are subtracted. Memory is two matrices, whatever the number of images.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::{FidError, Statistics};

/// Rows that are joined at a time. They are counted off from the first row, so that the result
/// does not depend on how the caller cuts the features into batches.
const ROWS: usize = 128;

/// What is known of the rows so far.
#[derive(Clone, Debug)]
pub struct Moments {
    n_features: usize,
    /// Rows that are joined already.
    n: u64,
    mean: Vec<f64>,
    /// The sum of `(x - mean) (x - mean)'`.
    scatter: Mat<f64>,
    /// Rows that are not, fewer than [`ROWS`].
    waiting: Vec<f64>,
}

impl Moments {
    pub fn new(n_features: usize) -> Self {
        Self {
            n_features,
            n: 0,
            mean: vec![0.0; n_features],
            scatter: Mat::zeros(n_features, n_features),
            waiting: Vec::new(),
        }
    }

    /// How many images there were.
    pub fn n_images(&self) -> u64 {
        self.n + (self.waiting.len() / self.n_features.max(1)) as u64
    }

    /// Takes in the features of some images.
    ///
    /// # Shapes
    /// `features`: `[images, n_features]`, row by row
    ///
    /// # Errors
    /// Numbers that are not finite, or that do not fill the last row. Nothing is taken in then.
    pub fn push(&mut self, features: &[f32]) -> Result<(), FidError> {
        let d = self.n_features;
        if d == 0 || !features.len().is_multiple_of(d) {
            return Err(FidError::Ragged { expected: d, got: features.len() });
        }
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            let image = self.n_images() + (at / d) as u64;
            return Err(FidError::NotFinite { image, feature: at % d, value: features[at] });
        }
        for row in features.chunks_exact(d) {
            self.waiting.extend(row.iter().map(|&value| f64::from(value)));
            if self.waiting.len() == ROWS * d {
                self.join_waiting();
            }
        }
        Ok(())
    }

    fn join_waiting(&mut self) {
        let d = self.n_features;
        let rows = self.waiting.len() / d;
        if rows == 0 {
            return;
        }
        let mut mean = vec![0.0; d];
        for row in self.waiting.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= rows as f64);
        let (n, m) = (self.n as f64, rows as f64);
        let difference: Vec<f64> =
            mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        // The difference of the means counts as one more row of this weight.
        let weight = (n * m / (n + m)).sqrt();
        let waiting = std::mem::take(&mut self.waiting);
        let block = Mat::from_fn(rows + 1, d, |i, j| match i {
            0 => weight * difference[j],
            i => waiting[(i - 1) * d + j] - mean[j],
        });
        let total = self.scatter.as_mut();
        matmul(total, Accum::Add, block.transpose(), block.as_ref(), 1.0, Par::rayon(0));
        for (mean, difference) in self.mean.iter_mut().zip(&difference) {
            *mean += difference * m / (n + m);
        }
        self.n += rows as u64;
        self.waiting = waiting;
        self.waiting.clear();
    }

    /// Mean, and covariance over `n - 1`, as `numpy.cov` computes it.
    ///
    /// # Errors
    /// Fewer than two images.
    pub fn finish(mut self) -> Result<Statistics, FidError> {
        self.join_waiting();
        if self.n < 2 {
            return Err(FidError::TooFewImages { got: self.n });
        }
        let scale = 0.5 / (self.n - 1) as f64;
        let d = self.n_features;
        let scatter = &self.scatter;
        let covariance = Mat::from_fn(d, d, |i, j| (scatter[(i, j)] + scatter[(j, i)]) * scale);
        Ok(Statistics::of_moments(self.mean, covariance))
    }
}

#[cfg(test)]
mod tests {
    use oodbench_nn::formula;

    use super::*;

    const D: usize = 7;

    fn features(n: usize, offset: f64) -> Vec<f32> {
        formula::uniform("features", n * D, offset, offset + 1.0)
    }

    fn statistics(features: &[f32], batch: usize) -> Statistics {
        let mut moments = Moments::new(D);
        for batch in features.chunks(batch * D) {
            moments.push(batch).unwrap();
        }
        assert_eq!(moments.n_images(), (features.len() / D) as u64);
        moments.finish().unwrap()
    }

    /// In two passes over all rows.
    fn by_definition(features: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let rows: Vec<Vec<f64>> =
            features.chunks(D).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        let n = rows.len() as f64;
        let mean: Vec<f64> = (0..D).map(|j| rows.iter().map(|r| r[j]).sum::<f64>() / n).collect();
        let covariance = (0..D * D).map(|at| {
            let (i, j) = (at / D, at % D);
            let products = rows.iter().map(|r| (r[i] - mean[i]) * (r[j] - mean[j]));
            products.sum::<f64>() / (n - 1.0)
        });
        let covariance = covariance.collect();
        (mean, covariance)
    }

    #[test]
    fn agrees_with_the_definition_far_from_zero_too() {
        for (n, offset) in [(2, 0.0), (127, 0.0), (128, 0.0), (129, 0.0), (1000, 0.0), (1000, 1e4)]
        {
            let features = features(n, offset);
            let (mean, covariance) = by_definition(&features);
            let got = statistics(&features, 10);
            for (got, expected) in got.mean().iter().zip(&mean) {
                assert!((got - expected).abs() <= 1e-12 * expected.abs(), "{n} {offset}");
            }
            for (i, expected) in covariance.iter().enumerate() {
                let got = got.covariance()[(i / D, i % D)];
                assert!((got - expected).abs() < 1e-12, "{n} {offset}: {got} {expected}");
            }
        }
    }

    #[test]
    fn the_size_of_a_batch_changes_nothing() {
        let features = features(500, 3.0);
        let one = statistics(&features, 1);
        for batch in [2, 50, 128, 500] {
            assert_eq!(statistics(&features, batch), one, "{batch}");
        }
    }

    #[test]
    fn what_is_no_set_of_features_is_refused() {
        let mut moments = Moments::new(D);
        moments.push(&features(3, 0.0)).unwrap();
        assert!(matches!(moments.push(&[0.0; D + 1]), Err(FidError::Ragged { .. })));
        let mut bad = vec![0.0; 2 * D];
        bad[D + 2] = f32::NAN;
        let error = moments.push(&bad).unwrap_err().to_string();
        assert!(error.ends_with("got `NaN` in feature 2 of image 4"), "{error}");
        assert_eq!(moments.n_images(), 3);
        let mut one = Moments::new(D);
        one.push(&features(1, 0.0)).unwrap();
        assert!(matches!(one.finish(), Err(FidError::TooFewImages { got: 1 })));
    }
}
