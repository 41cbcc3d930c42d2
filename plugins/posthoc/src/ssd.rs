//! SSD: Mahalanobis distance with one cluster.
//!
//! Sehwag et al., "SSD: A Unified Framework for Self-Supervised Outlier Detection", 2021. Score:
//! `(z - m)' P (z - m)` for features `z` scaled to length 1, their mean `m` over the training
//! images and the pseudo-inverse `P` of their covariance. No labels are read. The paper takes
//! features that were trained by contrast; here they are those that the classifier gives.
//!
//! OpenOOD's `ssd` cannot run: its set-up fails at the first label above 0. This is what its name
//! and configuration intend, Mahalanobis distance with one cluster, on features scaled as in the
//! paper's code; `normalise` off takes them as they are.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::{Stored, mean, of_projections, scatter, squared_length, whitening};
use crate::numeric::moments::single;
use crate::numeric::neighbours::normalised;
use crate::numeric::state;

/// Parameters of [`Ssd`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    normalise: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { normalise: true }
    }
}

/// Mahalanobis distance with one cluster.
pub struct Ssd {
    params: Params,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    mean: Vec<f64>,
    /// `[n_features, rank]`
    whitening: Stored,
}

impl Ssd {
    /// The features, scaled if they are to be.
    fn scaled(&self, features: Matrix<'_>) -> Vec<f32> {
        if self.params.normalise { normalised(features) } else { features.values().to_vec() }
    }
}

impl Detector for Ssd {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "ssd",
            title: "SSD",
            family: "distance",
            summary: "Mahalanobis distance to the mean of all training images",
            paper: "Sehwag et al., SSD: A Unified Framework for Self-Supervised Outlier Detection",
            year: 2021,
            url: "https://arxiv.org/abs/2103.12051",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![Param::new(
                "normalise",
                "scale features to length 1",
                "the paper's code; OpenOOD's cannot run",
            )],
            // Scaled, the training features have mean 0 and half the identity as covariance.
            example: Example::of_features(&[&[3.0, 4.0], &[0.0, 0.0]], &[2.0, 0.0])
                .train(&[&[2.0, 0.0], &[-1.0, 0.0], &[0.0, 3.0], &[0.0, -1.0]], &[0, 0, 1, 1]),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        Ok(Self { params, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let scaled = self.scaled(features);
        let scaled = Matrix::new(&scaled, features.n_rows(), features.n_cols())?;
        let mean = mean(scaled);
        let whitening = whitening(scatter(scaled, |_| &mean).as_ref(), 0.0)?;
        self.fitted = Some(Fitted { mean, whitening: (&whitening).into() });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.mean.len())?;
        let scaled = self.scaled(features);
        let scaled = Matrix::new(&scaled, features.n_rows(), features.n_cols())?;
        let of_row = |_: usize, z: &[f64]| single(squared_length(z));
        let distances = of_projections(scaled, &fitted.mean, &fitted.whitening, of_row)?;
        scores.copy_from_slice(&distances);
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
