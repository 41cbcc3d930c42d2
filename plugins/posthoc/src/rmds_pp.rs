//! Relative Mahalanobis++: relative Mahalanobis distance between features of length 1.
//!
//! Mueller and Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", 2025, which
//! scales the features of [`crate::rmds`] as [`crate::mds_pp`] does those of [`crate::mds`]. Score:
//! `min_c (z - mu_c)' P (z - mu_c) - (z - mu_0)' P_0 (z - mu_0)` for features scaled to length 1,
//! `z = h / |h|`; `mu_0` and `P_0` are mean and pseudo-inverse covariance of all scaled training
//! features, whatever their class.
//!
//! As in the authors' code, which fits in double precision; features of zeros stay zeros, where it
//! gives NaN. OpenOOD lacks it. A class without training images is an error.

use oodbench_sdk::prelude::*;

use crate::mds_pp::{fit_unit, nearest_unit};
use crate::numeric::check;
use crate::numeric::linalg::whitening;
use crate::numeric::moments::{Whitened, moments, rounding_noise, single, units};
use crate::numeric::state;

/// Relative Mahalanobis++.
#[derive(Default)]
pub struct RmdsPp {
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    classes: Whitened,
    all: Whitened,
}

impl Fitted {
    fn new(features: Matrix<'_>, classes: &[usize], n_classes: usize) -> Result<Self> {
        let classes = fit_unit(features, classes, n_classes)?;
        let (mean, covariance) = moments(&units(features));
        let noise = rounding_noise(features.n_rows(), &mean);
        let root = whitening(covariance.as_ref(), noise)?;
        let all = Whitened::new(mean.clone(), root.as_ref(), &[mean]);
        Ok(Self { classes, all })
    }

    fn scores(&self, features: Matrix<'_>) -> impl Iterator<Item = f32> {
        let of_classes = nearest_unit(&self.classes, features);
        let of_all = nearest_unit(&self.all, features);
        of_classes.into_iter().zip(of_all).map(|(of_classes, of_all)| single(of_classes - of_all))
    }
}

impl Detector for RmdsPp {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "rmds_pp",
            title: "Relative Mahalanobis++",
            family: "distance",
            summary: "Mahalanobis distance to the nearest class mean, less that to the mean of all, of features scaled to length 1",
            paper: "Mueller and Hein, Mahalanobis++: Improving OOD Detection via Feature Normalization",
            year: 2025,
            url: "https://arxiv.org/abs/2505.18032",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            // As in `mds_pp`; the mean of all is (0, 0.5), and their covariance has 1/2 and 1/4 on
            // its diagonal.
            example: Example::of_features(
                &[&[5.0, 0.0], &[0.0, -2.0], &[0.0, 0.0]],
                &[-1.0, 1.0, 1.0],
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
        self.fitted = Some(Fitted::new(features, &classes, n_classes)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.classes.n_cols())?;
        for (score, value) in scores.iter_mut().zip(fitted.scores(features)) {
            *score = value;
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = |fitted: &Fitted| {
            let Fitted { classes, all } = fitted;
            classes.is_whole() && all.is_whole() && classes.n_cols() == all.n_cols()
        };
        self.fitted = state::load(bytes)?.filter(whole);
        state::fitted(self.fitted.as_ref()).map(drop)
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
        let fitted = Fitted::new(train.features(), &train.classes(), N_CLASSES).unwrap();
        let got: Vec<f32> = fitted.scores(test.features()).collect();
        assert_scores(
            &got,
            &[-0.5751609796, 0.1797526476, 3.026421199, -1.888970386, 0.7668072735, -0.7474926075],
        );
    }
}
