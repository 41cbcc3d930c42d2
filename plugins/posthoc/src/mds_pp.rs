//! Mahalanobis++: Mahalanobis distance between features of length 1.
//!
//! Mueller and Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", 2025.
//! Score: `min_c (z - mu_c)' P (z - mu_c)` for features scaled to length 1, `z = h / |h|`, the means
//! `mu_c` of each class's scaled training features, and the pseudo-inverse `P` of the covariance
//! that all classes share (divided by N). Lengths of features vary more than a Gaussian allows, and
//! those of many OOD images are small, which [`crate::mds`] takes for in-distribution.
//!
//! As in the authors' code, which fits in double precision and drops what scipy's `pinvh` drops
//! there; a feature of zeros has no direction, stays one, and has NaN scores there. OpenOOD lacks
//! it. A class without training images is an error.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::whitening;
use crate::numeric::moments::{
    Changed, Whitened, class_means, mean, rounding_noise, scatter, single, subtract, unit, units,
};
use crate::numeric::state;

/// Mahalanobis++.
#[derive(Default)]
pub struct MdsPp {
    classes: Option<Whitened>,
}

/// The classes' means of features of length 1, where distances to them are Euclidean.
///
/// # Errors
/// A class without training images.
pub(crate) fn fit_unit(
    features: Matrix<'_>,
    classes: &[usize],
    n_classes: usize,
) -> Result<Whitened> {
    let scaled = units(features);
    let means = class_means(&scaled, n_classes, classes)?;
    let centred = Changed {
        rows: features,
        change: |i: usize, row: &[f32], z: &mut [f64]| {
            unit(row, z);
            subtract(z, &means[classes[i]]);
        },
    };
    let mean = mean(&scaled);
    let noise = rounding_noise(features.n_rows(), &mean);
    let root = whitening(scatter(&centred).as_ref(), noise)?;
    Ok(Whitened::new(mean, root.as_ref(), &means))
}

/// The squared distance of each feature, scaled to length 1, to the nearest point.
pub(crate) fn nearest_unit(points: &Whitened, features: Matrix<'_>) -> Vec<f64> {
    points.nearest(&units(features))
}

impl Detector for MdsPp {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "mds_pp",
            title: "Mahalanobis++",
            family: "distance",
            summary: "Mahalanobis distance to the nearest class mean, of features scaled to length 1",
            paper: "Mueller and Hein, Mahalanobis++: Improving OOD Detection via Feature Normalization",
            year: 2025,
            url: "https://arxiv.org/abs/2505.18032",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            // Scaled, the class means are (0.5, 0.5) and (-0.5, 0.5), and the covariance is a
            // quarter of the identity.
            example: Example::of_features(
                &[&[5.0, 0.0], &[0.0, -2.0], &[0.0, 0.0]],
                &[2.0, 10.0, 2.0],
            )
            .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
            .train(&[&[2.0, 0.0], &[0.0, 3.0], &[-4.0, 0.0], &[0.0, 1.0]], &[0, 0, 1, 1]),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let (train, n_classes) = (data.train(), data.n_classes());
        let features = check::fit_features(train.features()?, "training")?;
        let classes = check::classes(train.labels()?, n_classes)?;
        self.classes = Some(fit_unit(features, &classes, n_classes)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let classes = state::fitted(self.classes.as_ref())?;
        let features = check::features(batch.features()?, classes.n_cols())?;
        for (score, distance) in scores.iter_mut().zip(nearest_unit(classes, features)) {
            *score = single(distance);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.classes.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.classes = state::load(bytes)?.filter(Whitened::is_whole);
        state::fitted(self.classes.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{N_CLASSES, Rows, assert_scores};

    /// Expected scores: the authors' formula with sklearn's `EmpiricalCovariance`, from the same
    /// data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let (train, test) = (Rows::train(), Rows::test());
        let classes = fit_unit(train.features(), &train.classes(), N_CLASSES).unwrap();
        let got: Vec<f32> =
            nearest_unit(&classes, test.features()).into_iter().map(single).collect();
        assert_scores(
            &got,
            &[5.467699755, 8.750475784, 9.345842667, 7.748185665, 7.532847268, 11.46911366],
        );
    }

    #[test]
    fn the_length_of_a_feature_does_not_count() {
        let train = Rows::train();
        let classes = fit_unit(train.features(), &train.classes(), N_CLASSES).unwrap();
        let short: Vec<f32> = train.features().values().iter().map(|h| h / 1024.0).collect();
        let short = Matrix::new(&short, 60, train.features().n_cols()).unwrap();
        assert_eq!(nearest_unit(&classes, short), nearest_unit(&classes, train.features()));
    }
}
