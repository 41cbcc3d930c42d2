//! Relative Mahalanobis distance.
//!
//! Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021.
//! Score: `min_c (h - mu_c)' P (h - mu_c) - (h - mu_0)' P_0 (h - mu_0)` for features `h`, where the
//! first term is that of [`crate::mds`], and `mu_0` and `P_0` are the mean and the pseudo-inverse
//! covariance of all training images, whatever their class. Directions in which all images vary
//! alike cancel.
//!
//! OpenOOD computes in `f32`, here in `f64`. A class without training images is an error, as there.

use faer::{Mat, MatRef};
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::{
    Stored, mean, nearest_distances, of_projections, scatter, squared_length, whitening,
};
use crate::numeric::moments::{class_means, plain, single};
use crate::numeric::state;

/// Relative Mahalanobis distance.
#[derive(Default)]
pub struct Rmds {
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// The mean of all training features.
    centre: Vec<f64>,
    /// For the covariance within classes, `[n_features, rank]`.
    within: Stored,
    /// Class means from the centre, whitened by it, `[rank, n_classes]`.
    means: Stored,
    /// For the covariance of all, `[n_features, rank]`.
    total: Stored,
}

/// `means - centre`, whitened, as columns.
fn whitened_means(means: &[Vec<f64>], centre: &[f64], whitening: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(whitening.ncols(), means.len(), |j, class| {
        (0..centre.len()).map(|i| (means[class][i] - centre[i]) * whitening[(i, j)]).sum::<f64>()
    })
}

impl Detector for Rmds {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "rmds",
            title: "Relative Mahalanobis distance",
            family: "distance",
            summary: "Mahalanobis distance to the nearest class mean, less that to the mean of all",
            paper: "Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
            year: 2021,
            url: "https://arxiv.org/abs/2106.09022",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            // Within classes the covariance is half the identity; that of all has 9.5 and 0.5 on
            // its diagonal, around (4, 0): 0 - 9 / 9.5, 20 - (36 / 9.5 + 2) and 18 - 0.
            example: Example::of_features(
                &[&[1.0, 0.0], &[10.0, 1.0], &[4.0, 0.0]],
                &[-0.947_368, 14.210_526, 18.0],
            )
            .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
            .train(
                &[
                    &[2.0, 0.0],
                    &[0.0, 0.0],
                    &[1.0, 1.0],
                    &[1.0, -1.0],
                    &[8.0, 0.0],
                    &[6.0, 0.0],
                    &[7.0, 1.0],
                    &[7.0, -1.0],
                ],
                &[0, 0, 0, 0, 1, 1, 1, 1],
            ),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let features = check::fit_features(train.features()?, "training")?;
        let labels = check::classes(train.labels()?, data.n_classes())?;
        let means = class_means(&plain(features), data.n_classes(), &labels)?;
        let centre = mean(features);
        let within = whitening(scatter(features, |i| &means[labels[i]]).as_ref(), 0.0)?;
        let total = whitening(scatter(features, |_| &centre).as_ref(), 0.0)?;
        let means = whitened_means(&means, &centre, within.as_ref());
        self.fitted = Some(Fitted {
            centre,
            within: (&within).into(),
            means: (&means).into(),
            total: (&total).into(),
        });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.centre.len())?;
        let Fitted { centre, within, means, total } = fitted;
        let nearest = nearest_distances(features, centre, within, means)?;
        let to_centre = of_projections(features, centre, total, |_, z| squared_length(z))?;
        for ((score, nearest), to_centre) in scores.iter_mut().zip(nearest).zip(to_centre) {
            *score = single(nearest - to_centre);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}
