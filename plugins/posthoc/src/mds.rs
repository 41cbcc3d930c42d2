//! Mahalanobis distance to the nearest class.
//!
//! Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
//! Adversarial Attacks", 2018, on penultimate features alone, as OpenOOD's `mds`. Score:
//! `min_c (h - mu_c)' P (h - mu_c)` for features `h`, class means `mu_c` and the pseudo-inverse
//! `P` of the covariance that all classes share (divided by N).
//!
//! The reference computes in `f32` and forms a batch x batch matrix to read its diagonal; here
//! features are whitened once, in `f64`, and distances taken between whitened vectors.

use faer::Mat;
use oodbench_sdk::prelude::*;

use crate::numeric::linalg::{Stored, nearest_distances, scatter, whitening};
use crate::numeric::moments::{class_means, plain, single};
use crate::numeric::{check, state};

/// Mahalanobis distance.
#[derive(Default)]
pub struct Mds {
    fitted: Option<Fitted>,
}

/// Class means, where distances to them are Euclidean.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// The mean of the class means.
    centre: Vec<f64>,
    /// `[n_features, rank]`
    whitening: Stored,
    /// Class means from the centre, whitened, `[rank, n_classes]`.
    means: Stored,
}

impl Fitted {
    /// Of training features.
    ///
    /// # Errors
    /// A class without rows, a label that is no class; NaN or infinity.
    fn new(features: Matrix<'_>, labels: &[i64], n_classes: usize) -> Result<Self> {
        let classes = check::classes(labels, n_classes)?;
        let means = class_means(&plain(features), n_classes, &classes)?;
        let covariance = scatter(features, |i| &means[classes[i]]);
        let whitening = whitening(covariance.as_ref(), 0.0)?;
        let n = means.len().max(1) as f64;
        let centre: Vec<f64> = (0..features.n_cols())
            .map(|i| means.iter().map(|mean| mean[i]).sum::<f64>() / n)
            .collect();
        let means = Mat::from_fn(whitening.ncols(), means.len(), |j, class| {
            (0..centre.len())
                .map(|i| (means[class][i] - centre[i]) * whitening[(i, j)])
                .sum::<f64>()
        });
        Ok(Self { centre, whitening: (&whitening).into(), means: (&means).into() })
    }

    /// Writes the squared distance of each row to the nearest mean.
    ///
    /// # Errors
    /// Another number of columns.
    fn nearest(&self, features: Matrix<'_>, scores: &mut [f32]) -> Result<()> {
        let nearest = nearest_distances(features, &self.centre, &self.whitening, &self.means)?;
        for (score, nearest) in scores.iter_mut().zip(nearest) {
            *score = single(nearest);
        }
        Ok(())
    }
}

impl Detector for Mds {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "mds",
            title: "Mahalanobis distance",
            family: "distance",
            summary: "Mahalanobis distance to the nearest class mean",
            paper: "Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
            year: 2018,
            url: "https://arxiv.org/abs/1807.03888",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            example: Example::of_features(&[&[1.0, 0.0], &[4.0, 1.0]], &[0.0, 10.0])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .train(
                    &[
                        &[2.0, 0.0],
                        &[0.0, 0.0],
                        &[1.0, 1.0],
                        &[1.0, -1.0],
                        &[7.0, 0.0],
                        &[5.0, 0.0],
                        &[6.0, 1.0],
                        &[6.0, -1.0],
                    ],
                    &[0, 0, 0, 0, 1, 1, 1, 1],
                )
                // The shared covariance is half the identity.
                .tolerance(1e-5),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let (features, labels) = (train.features()?, train.labels()?);
        self.fitted = Some(Fitted::new(features, labels, data.n_classes())?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.centre.len())?;
        fitted.nearest(features, scores)
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}
