//! Mean and covariance of a set of images, in memory and in files.
//!
//! Files are those of pytorch-fid and of the TensorFlow code before it: an `.npz` archive with
//! `mu`, `[features]`, and `sigma`, `[features, features]`, both `float64`.

use std::path::Path;

use faer::{Mat, MatRef};
use oodbench_nn::npz::{Npz, NpzWriter, Values};

use super::{FidError, StatisticsError};

/// How far two entries that should be equal may lie apart, relative to the greatest: what
/// remains of a covariance that was computed in `f32`.
const SYMMETRY: f64 = 1e-5;

/// The first two moments of the features of a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    mean: Vec<f64>,
    covariance: Mat<f64>,
}

impl Statistics {
    /// Statistics that somebody else computed.
    ///
    /// # Shapes
    /// `mean`: `[features]`; `covariance`: `[features, features]`, row by row
    ///
    /// # Errors
    /// Shapes that do not fit, values that are not finite, a matrix that is not symmetric. Its two
    /// halves are averaged, so rounding in them does no harm.
    pub fn new(mean: Vec<f64>, covariance: &[f64]) -> Result<Self, StatisticsError> {
        let d = mean.len();
        if d == 0 || covariance.len() != d * d {
            let (mean, covariance) = (vec![d], vec![covariance.len()]);
            return Err(StatisticsError::Shape { mean, covariance });
        }
        for (array, values) in [("mu", mean.as_slice()), ("sigma", covariance)] {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(StatisticsError::NotFinite { array, index, value: values[index] });
            }
        }
        let greatest = covariance.iter().fold(0.0f64, |max, value| max.max(value.abs()));
        for row in 0..d {
            for column in 0..row {
                let (value, mirrored) =
                    (covariance[row * d + column], covariance[column * d + row]);
                if (value - mirrored).abs() > SYMMETRY * greatest {
                    return Err(StatisticsError::NotSymmetric { row, column, value, mirrored });
                }
            }
        }
        let at = |i: usize, j: usize| covariance[i * d + j] / 2.0 + covariance[j * d + i] / 2.0;
        Ok(Self { covariance: Mat::from_fn(d, d, at), mean })
    }

    /// A mean and a covariance that are known to fit, be finite and symmetric.
    pub(super) fn of_moments(mean: Vec<f64>, covariance: Mat<f64>) -> Self {
        Self { mean, covariance }
    }

    /// `[features]`
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// `[features, features]`, symmetric
    pub fn covariance(&self) -> MatRef<'_, f64> {
        self.covariance.as_ref()
    }

    /// How many features there are.
    pub fn n_features(&self) -> usize {
        self.mean.len()
    }

    /// Reads an `.npz` file.
    ///
    /// # Errors
    /// A file that is not one, without `mu` or `sigma`, or as [`Statistics::new`].
    pub fn read(path: &Path) -> Result<Self, FidError> {
        let fail = |source| FidError::Statistics { path: path.to_owned(), source };
        let mut npz = Npz::open(path)?;
        let (mean, covariance) = (npz.shape("mu")?, npz.shape("sigma")?);
        if mean.len() != 1 || covariance != [mean[0], mean[0]] {
            return Err(fail(StatisticsError::Shape { mean, covariance }));
        }
        let mean = npz.read("mu")?.to_f64();
        let covariance = npz.read("sigma")?.to_f64();
        Self::new(mean, &covariance).map_err(fail)
    }

    /// Writes an `.npz` file. The same statistics give the same bytes.
    ///
    /// # Errors
    /// A folder or disk that cannot be written to.
    pub fn write(&self, path: &Path) -> Result<(), FidError> {
        let d = self.n_features();
        let mut sigma = Vec::with_capacity(d * d);
        // Symmetric: columns are rows.
        for j in 0..d {
            sigma.extend(self.covariance.col(j).iter());
        }
        let mut npz = NpzWriter::create(path)?;
        npz.array("mu", &[d], Values::F64(&self.mean))?;
        npz.array("sigma", &[d, d], Values::F64(&sigma))?;
        Ok(npz.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_the_statistics_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let statistics = Statistics::new(vec![0.1, -2.0], &[1.0, 0.3, 0.3, 7.0 / 3.0]).unwrap();
        statistics.write(&path).unwrap();
        assert_eq!(Statistics::read(&path).unwrap(), statistics);
    }

    #[test]
    fn what_is_no_mean_and_covariance_is_refused() {
        let check = |mean: &[f64], covariance: &[f64], part: &str| {
            let error = Statistics::new(mean.to_vec(), covariance).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(&[], &[], "`mu` expected [features]");
        check(&[1.0, 2.0], &[1.0, 0.0, 1.0], "got [2] and [3]");
        check(
            &[1.0, f64::NAN],
            &[1.0, 0.0, 0.0, 1.0],
            "`mu` expected finite values, got `NaN` at 1",
        );
        check(
            &[1.0, 2.0],
            &[1.0, 0.0, 0.0, f64::INFINITY],
            "`sigma` expected finite values, got `inf`",
        );
        check(&[1.0, 2.0], &[1.0, 0.1, 0.2, 1.0], "got `0.2` at [1, 0] and `0.1` at [0, 1]");
        assert!(Statistics::new(vec![1.0, 2.0], &[1.0, 0.1, 0.100_001, 1.0]).is_ok());
    }

    #[test]
    fn shapes_in_a_file_are_checked_before_the_numbers_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array("mu", &[2, 1], Values::F64(&[0.0, 0.0])).unwrap();
        npz.array("sigma", &[2, 1], Values::F64(&[0.0, 0.0])).unwrap();
        npz.finish().unwrap();
        let error = Statistics::read(&path).unwrap_err();
        let FidError::Statistics { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains("got [2, 1] and [2, 1]"), "{source}");
    }
}
