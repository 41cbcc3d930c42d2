//! A Gaussian mixture of features.
//!
//! Yang et al., "Full-Spectrum Out-of-Distribution Detection", 2022 (SEM), as OpenOOD's `gmm`.
//! Score: `-log sum_j w_j exp(-m_j / 2)` for the squared Mahalanobis distances `m_j` of the feature
//! to the means of a mixture with one covariance, fitted on training features after projection on
//! their principal components. The density's normalising constant is left out.
//!
//! OpenOOD sums such terms over layers, but by default all except the last, which is this one,
//! count 0. It takes the exponential in single precision, which turns to 0 far from all means: all
//! such images share the score 103.28, the logarithm of the 1e-45 that is added. That is the
//! default here, so that its numbers can be compared; `double_precision` tells such images apart.
//! The fit is that of scikit-learn, with other random numbers.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::mixture::Mixture;
use crate::numeric::moments::single;
use crate::numeric::state;

/// Parameters of [`Gmm`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    clusters: usize,
    components: usize,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { clusters: 50, components: 50, double_precision: false }
    }
}

/// A Gaussian mixture.
pub struct Gmm {
    params: Params,
    host: Host,
    mixture: Option<Mixture>,
}

/// Minus the logarithm of a density, given its logarithm, in single precision as OpenOOD.
pub fn single_precision(log_density: f64) -> f64 {
    // The smallest number above 0, which 1e-45 becomes in `f32`.
    let floor = f32::from_bits(1);
    -f64::from(log_density.exp() as f32 + floor).ln()
}

impl Detector for Gmm {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "gmm",
            title: "Gaussian mixture",
            family: "distance",
            summary: "minus the log density of a mixture of Gaussians with one covariance",
            paper: "Yang et al., Full-Spectrum Out-of-Distribution Detection",
            year: 2022,
            url: "https://arxiv.org/abs/2204.05306",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![
                Param::new("clusters", "number of Gaussians", "OpenOOD v1.5"),
                Param::new(
                    "components",
                    "principal components that are kept; all if there are fewer features",
                    "OpenOOD v1.5",
                ),
                Param::new(
                    "double_precision",
                    "tell apart images whose density single precision rounds to 0",
                    "OpenOOD v1.5 computes in single precision",
                )
                .readout(),
            ],
            // Two Gaussians of weight 1/2, half the identity as covariance.
            example: Example::of_features(
                &[&[0.0, 0.0], &[100.0, 3.0], &[50.0, 0.0]],
                &[std::f32::consts::LN_2, 9.693_147, 103.278_93],
            )
            .train(
                &[
                    &[1.0, 0.0],
                    &[-1.0, 0.0],
                    &[0.0, 1.0],
                    &[0.0, -1.0],
                    &[101.0, 0.0],
                    &[99.0, 0.0],
                    &[100.0, 1.0],
                    &[100.0, -1.0],
                ],
                &[0, 0, 0, 0, 1, 1, 1, 1],
            )
            .param("clusters", 2),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        for (name, value) in [("clusters", params.clusters), ("components", params.components)] {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        Ok(Self { params, host, mixture: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let Params { clusters, components, .. } = self.params;
        if clusters > features.n_rows() {
            let expected = format!("at most {}, the number of training images", features.n_rows());
            return Err(Error::parameter("clusters", &expected, clusters));
        }
        let progress = |done, total| self.host.progress(done, total);
        self.mixture =
            Some(Mixture::fit(features, clusters, components, self.host.seed(), progress)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let mixture = state::fitted(self.mixture.as_ref())?;
        let features = check::features(batch.features()?, mixture.n_features()?)?;
        let densities = mixture.log_densities(features)?;
        let of_variants = variants.iter().flat_map(|params| {
            densities.iter().map(|&log_density| {
                if params.double_precision { -log_density } else { single_precision(log_density) }
            })
        });
        for (score, value) in scores.iter_mut().zip(of_variants) {
            *score = single(value);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.mixture.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.mixture = state::load(bytes)?;
        Ok(())
    }
}
