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
use crate::numeric::state;

/// Mahalanobis distance.
#[derive(Default)]
pub struct Mds {
    fitted: Option<Fitted>,
}

/// Class means, where distances to them are Euclidean.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub(crate) struct Fitted {
    /// The mean of the class means.
    centre: Vec<f64>,
    /// `[n_features, rank]`
    whitening: Stored,
    /// Class means from the centre, whitened, `[rank, n_classes]`.
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

impl Fitted {
    /// Of training features.
    ///
    /// # Errors
    /// A class without rows, a label that is no class; NaN or infinity.
    pub(crate) fn new(features: Matrix<'_>, labels: &[i64], n_classes: usize) -> Result<Self> {
        let means = class_means(features, labels, n_classes)?;
        let covariance = scatter(features, |i| &means[labels[i] as usize]);
        let whitening = whitening(covariance.as_ref())?;
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
    pub(crate) fn nearest(&self, features: Matrix<'_>, scores: &mut [f32]) -> Result<()> {
        let nearest = nearest_distances(features, &self.centre, &self.whitening, &self.means)?;
        for (score, nearest) in scores.iter_mut().zip(nearest) {
            *score = nearest as f32;
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
        state::fitted(self.fitted.as_ref())?.nearest(batch.features()?, scores)
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}
