//! CoRP: what principal components leave of a feature, for the cosine-Gaussian kernel.
//!
//! Fang et al., "Kernel PCA for Out-of-Distribution Detection", 2024. Score:
//! `|(I - U U') (phi(z) - m)|` for features scaled to length 1, `z = h / |h|`, `dim` random Fourier
//! features `phi(z) = sqrt(2 / dim) cos(W z + u)` with normal `W` of variance `2 gamma` and phases
//! `u`, which stand for the kernel `exp(-gamma |z - z'|^2)`, their mean `m` over the training images,
//! and the fewest of their principal components `U` that explain the part `explained` of their
//! variance.
//!
//! Defaults are those of the authors' code for CIFAR-10; for a ResNet-50 on ImageNet it has `gamma`
//! 3, 4096 dimensions and half of the variance. Its random numbers are numpy's; here they follow
//! from the run's seed. One direction at least is left out, as there. OpenOOD lacks it.

use oodbench_sdk::prelude::*;

use crate::cop::{Subspace, check_part};
use crate::numeric::check;
use crate::numeric::moments::{Source, subtract, unit};
use crate::numeric::products::multiply;
use crate::numeric::random::Random;
use crate::numeric::state;

/// Parameters of [`Corp`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    gamma: f64,
    dim: usize,
    explained: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { gamma: 2.0, dim: 2048, explained: 0.8 }
    }
}

/// Kernel PCA with the cosine-Gaussian kernel.
pub struct Corp {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

/// The map by random Fourier features.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fourier {
    n_features: usize,
    /// `[dim, n_features]`
    weight: Vec<f64>,
    phases: Vec<f64>,
}

impl Fourier {
    fn new(seed: u64, n_features: usize, dim: usize, gamma: f64) -> Self {
        let mut random = Random::new(seed);
        let (mut weight, mut phases) = (Vec::with_capacity(dim * n_features), Vec::new());
        let tau = std::f64::consts::TAU;
        for _ in 0..dim {
            for _ in 0..n_features {
                // Box and Muller's transformation.
                let (radius, angle) = (-2.0 * (1.0 - random.unit()).ln(), tau * random.unit());
                weight.push((2.0 * gamma).sqrt() * radius.sqrt() * angle.cos());
            }
            phases.push(tau * random.unit());
        }
        Self { n_features, weight, phases }
    }
}

/// Mapped features, less a mean.
struct Mapped<'a> {
    features: Matrix<'a>,
    fourier: &'a Fourier,
    mean: &'a [f64],
}

impl Source for Mapped<'_> {
    fn n_rows(&self) -> usize {
        self.features.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.fourier.phases.len()
    }

    fn fill(&self, first: usize, n: usize, out: &mut [f64]) {
        let (d, dim) = (self.fourier.n_features, self.n_cols());
        let mut units = vec![0.0; out.len() / dim * d];
        for (i, z) in (first..first + n).zip(units.chunks_exact_mut(d)) {
            unit(self.features.row(i), z);
        }
        multiply(&units, &self.fourier.weight, d, out);
        let scale = (2.0 / dim as f64).sqrt();
        for row in out[..n * dim].chunks_exact_mut(dim) {
            for (x, phase) in row.iter_mut().zip(&self.fourier.phases) {
                *x = scale * (*x + phase).cos();
            }
            subtract(row, self.mean);
        }
        out[n * dim..].fill(0.0);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    fourier: Fourier,
    subspace: Subspace,
}

impl Fitted {
    fn new(features: Matrix<'_>, params: &Params, seed: u64) -> Result<Self> {
        let fourier = Fourier::new(seed, features.n_cols(), params.dim, params.gamma);
        let subspace = Subspace::new(&Mapped { features, fourier: &fourier, mean: &[] })?;
        Ok(Self { fourier, subspace })
    }

    fn is_whole(&self) -> bool {
        let Self { fourier, subspace } = self;
        let dim = fourier.phases.len();
        dim > 0
            && fourier.n_features > 0
            && dim.checked_mul(fourier.n_features) == Some(fourier.weight.len())
            && subspace.mean.len() == dim
            && subspace.is_whole()
    }

    fn errors(&self, features: Matrix<'_>, parts: &[f64], scores: &mut [f32]) {
        let Self { fourier, subspace } = self;
        subspace.errors(&Mapped { features, fourier, mean: &subspace.mean }, parts, scores);
    }
}

impl Detector for Corp {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "corp",
            title: "CoRP",
            family: "features",
            summary: "what the principal components of random Fourier features leave of the feature",
            paper: "Fang et al., Kernel PCA for Out-of-Distribution Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2402.02949",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "gamma",
                    "how narrow the Gaussian kernel is",
                    "the authors' code for CIFAR-10",
                )
                .sweep([0.5, 1.0, 2.0, 3.0]),
                Param::new(
                    "dim",
                    "number of random Fourier features",
                    "the authors' code for CIFAR-10",
                ),
                Param::new(
                    "explained",
                    "part of the variance that the components explain",
                    "the authors' code for CIFAR-10",
                )
                .sweep([0.5, 0.6, 0.7, 0.8, 0.9])
                .readout(),
            ],
            // For the random numbers of seed 0 a program of a few lines gives these.
            example: Example::of_features(
                &[&[5.0, 0.0], &[0.0, -2.0], &[3.0, 4.0]],
                &[0.1105251, 1.2831297, 0.40488497],
            )
            .train(&[&[2.0, 0.0], &[-3.0, 0.0], &[0.0, 1.0], &[3.0, 4.0]], &[0, 0, 1, 1])
            .param("dim", 4)
            .param("explained", 0.5),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        /// Far more than the authors ever take; a covariance of so many fills gigabytes.
        const MOST: usize = 1 << 14;
        if !(params.gamma > 0.0 && params.gamma.is_finite()) {
            return Err(Error::parameter("gamma", "a positive number", params.gamma));
        }
        if !(1..=MOST).contains(&params.dim) {
            return Err(Error::parameter("dim", &format!("from 1 to {MOST}"), params.dim));
        }
        check_part(params.explained)?;
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        self.fitted = Some(Fitted::new(features, &self.params, self.host.seed())?);
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
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.fourier.n_features)?;
        let parts: Vec<f64> = variants.iter().map(|params| params.explained).collect();
        fitted.errors(features, &parts, scores);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?.filter(Fitted::is_whole);
        state::fitted(self.fitted.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{N_FEATURES, Rows, assert_scores};

    /// Expected scores: the authors' formula with the random numbers of seed 0, components by
    /// numpy's `svd`, from the same data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let params = Params { gamma: 0.5, dim: 100, explained: 0.5 };
        let fitted = Fitted::new(Rows::train().features(), &params, 0).unwrap();
        let mut got = [0.0; 12];
        fitted.errors(Rows::test().features(), &[0.5, 0.8], &mut got);
        assert_scores(
            &got[..6],
            &[0.2042502477, 0.2949401021, 0.235000855, 0.244223227, 0.2705247617, 0.3379959354],
        );
        assert_scores(
            &got[6..],
            &[0.1878435221, 0.2734955787, 0.2344311946, 0.2315879624, 0.2591419052, 0.2628964193],
        );
    }

    #[test]
    fn products_of_mapped_features_are_the_gaussian_kernel() {
        let (train, gamma) = (Rows::train(), 1.5);
        let fourier = Fourier::new(7, N_FEATURES, 20_000, gamma);
        let mapped = Mapped { features: train.features(), fourier: &fourier, mean: &[] };
        let mut out = vec![0.0; 64 * 20_000];
        mapped.fill(0, 5, &mut out);
        let rows: Vec<&[f64]> = out.chunks_exact(20_000).take(5).collect();
        for (i, x) in rows.iter().enumerate() {
            for (j, y) in rows.iter().enumerate() {
                let product: f64 = x.iter().zip(*y).map(|(x, y)| x * y).sum();
                let (mut a, mut b) = ([0.0; N_FEATURES], [0.0; N_FEATURES]);
                unit(train.features().row(i), &mut a);
                unit(train.features().row(j), &mut b);
                let squared: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                // Four standard deviations of a mean of so many cosines.
                assert!((product - (-gamma * squared).exp()).abs() < 0.03, "{i}, {j}: {product}");
            }
        }
    }
}
