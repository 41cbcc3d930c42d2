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

use crate::numeric::linalg::{Stored, project, scatter, whitening};
use crate::numeric::state;

/// Mahalanobis distance.
#[derive(Default)]
pub struct Mds {
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// `[n_features, rank]`
    whitening: Stored,
    /// Whitened class means, `[n_classes, rank]`.
    means: Stored,
}

/// The mean of each class's rows.
///
/// # Errors
/// A class without rows, a label that is no class.
pub(crate) fn class_means(
    features: Matrix<'_>,
    labels: &[i64],
    n_classes: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut sums = vec![vec![0.0; features.n_cols()]; n_classes];
    let mut counts = vec![0usize; n_classes];
    for (i, (row, &label)) in features.rows().zip(labels).enumerate() {
        let class = usize::try_from(label).ok().filter(|class| *class < n_classes);
        let Some(class) = class else {
            return Err(Error::input(format!(
                "label of training image {i} expected 0 to {}, got {label}",
                n_classes - 1
            )));
        };
        counts[class] += 1;
        for (sum, &x) in sums[class].iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    for (class, (sum, &count)) in sums.iter_mut().zip(&counts).enumerate() {
        if count == 0 {
            return Err(Error::input(format!("class {class} has no training image")));
        }
        sum.iter_mut().for_each(|sum| *sum /= count as f64);
    }
    Ok(sums)
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
        let means = class_means(features, labels, data.n_classes())?;
        let covariance = scatter(features, |i| &means[labels[i] as usize]);
        let whitening = whitening(covariance.as_ref())?;
        let means = Mat::from_fn(means.len(), whitening.ncols(), |class, j| {
            (0..features.n_cols()).map(|i| means[class][i] * whitening[(i, j)]).sum::<f64>()
        });
        self.fitted = Some(Fitted { whitening: (&whitening).into(), means: (&means).into() });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let (whitening, means) = (fitted.whitening.view()?, fitted.means.view()?);
        let features = batch.features()?;
        if features.n_cols() != whitening.nrows() {
            let (expected, got) = (whitening.nrows(), features.n_cols());
            return Err(Error::input(format!("features expected {expected} columns, got {got}")));
        }
        let z = project(features, &vec![0.0; features.n_cols()], whitening);
        for (i, score) in scores.iter_mut().enumerate() {
            let distance = |class: usize| -> f64 {
                (0..z.ncols()).map(|j| (z[(i, j)] - means[(class, j)]).powi(2)).sum()
            };
            let nearest = (0..means.nrows()).map(distance).fold(f64::INFINITY, |min, d| {
                if d < min || d.is_nan() { d } else { min }
            });
            *score = nearest as f32;
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
