//! NECO: how much of a feature lies in the principal components of the training features.
//!
//! Ammar et al., "NECO: NEural Collapse Based Out-of-distribution Detection", 2024. Score:
//! `-|P z| / |z| * max_c l_c` for logits `l`, standardised features `z = (h - m) / s` with the
//! training features' means and standard deviations, and the projection `P` on the first `dim`
//! principal components of the standardised training features. As a network is trained to its
//! end, classes gather at the corners of a simplex in few dimensions, and OOD images fall to its
//! centre.
//!
//! The authors choose `dim` by hand for each case; where it is not given, it is the least that
//! explains the part `explained` of the variance, which is how Mueller and Hein run NECO on
//! forty-four networks. The authors leave out the greatest logit for ResNets, and the standardising
//! where classes are well apart (ViT on CIFAR); then `z` is `h` below and `h - m` above, as sklearn
//! projects. A feature at the mean has no direction: NaN there, the least like the training images
//! here. OpenOOD lacks it.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::{Changed, Principal, moments, plain, single, subtract, unchanged};
use crate::numeric::reduce::maximum;
use crate::numeric::state;

/// Parameters of [`Neco`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    dim: Option<usize>,
    explained: f64,
    max_logit: bool,
    standardise: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { dim: None, explained: 0.9, max_logit: true, standardise: true }
    }
}

/// NECO.
pub struct Neco {
    params: Params,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    mean: Vec<f64>,
    /// What each centred feature is divided by; 1 where features are not standardised.
    scale: Vec<f64>,
    principal: Principal,
}

impl Fitted {
    fn new(features: Matrix<'_>, standardise: bool) -> Result<Self> {
        let (mean, covariance) = moments(&plain(features));
        let n = features.n_rows() as f64;
        let deviation = |d: usize| {
            // What rounding makes of a constant feature, by sklearn's rule.
            let (variance, eps) = (covariance[(d, d)], f64::EPSILON);
            let is_constant = variance <= n * eps * variance + (n * mean[d] * eps).powi(2);
            if is_constant || !standardise { 1.0 } else { variance.sqrt() }
        };
        let scale: Vec<f64> = (0..mean.len()).map(deviation).collect();
        let d = mean.len();
        let scaled = faer::Mat::from_fn(d, d, |i, j| covariance[(i, j)] / (scale[i] * scale[j]));
        Ok(Self { mean, scale, principal: Principal::of(scaled.as_ref())? })
    }

    /// How many components these parameters mean.
    fn dim(&self, params: &Params) -> usize {
        params.dim.unwrap_or_else(|| self.principal.explaining(params.explained))
    }

    /// For each of the variants, the scores.
    fn scores(&self, features: Matrix<'_>, logits: Matrix<'_>, variants: &[Params]) -> Vec<f32> {
        let centred = |_, row: &[f32], z: &mut [f64]| {
            unchanged(row, z);
            subtract(z, &self.mean);
            z.iter_mut().zip(&self.scale).for_each(|(z, scale)| *z /= scale);
        };
        let dims: Vec<usize> = variants.iter().map(|params| self.dim(params)).collect();
        let energies = self.principal.energies(&Changed { rows: features, change: centred }, &dims);
        let rows = energies.chunks_exact(1 + dims.len());
        let mut scores = vec![0.0; variants.len() * features.n_rows()];
        for (i, (row, (h, logits))) in rows.zip(features.rows().zip(logits.rows())).enumerate() {
            for (nth, params) in variants.iter().enumerate() {
                let all = if params.standardise {
                    row[0]
                } else {
                    h.iter().map(|&h| f64::from(h).powi(2)).sum()
                };
                let ratio = if all > 0.0 { (row[1 + nth] / all).sqrt() } else { 0.0 };
                let factor = if params.max_logit { f64::from(maximum(logits)) } else { 1.0 };
                scores[nth * features.n_rows() + i] = single(-ratio * factor);
            }
        }
        scores
    }
}

impl Detector for Neco {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "neco",
            title: "NECO",
            family: "features",
            summary: "the part of the standardised feature within the principal components, times the greatest logit, negated",
            paper: "Ammar et al., NECO: NEural Collapse Based Out-of-distribution Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2310.06823",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::TRAIN),
            params: vec![
                Param::new("dim", "principal components; by default those of `explained`", "-")
                    .integer()
                    .readout(),
                Param::new(
                    "explained",
                    "part of the variance that the components explain, where there is no `dim`",
                    "Mueller and Hein's NECO",
                )
                .sweep([0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
                .readout(),
                Param::new(
                    "max_logit",
                    "multiply by the greatest logit",
                    "the authors' code, ResNets excepted",
                )
                .sweep([true, false])
                .readout(),
                Param::new(
                    "standardise",
                    "give each feature mean 0 and variance 1",
                    "the authors' code",
                ),
            ],
            // Standardised by (2, 1), the features correlate by 1/2: the first component, along
            // (1, 1), explains three quarters.
            example: Example::of_features(
                &[&[2.0, 1.0], &[2.0, -1.0], &[2.0, 0.0]],
                &[-2.0, 0.0, -std::f32::consts::SQRT_2],
            )
            .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
            .train(
                &[
                    &[2.0, 1.0],
                    &[2.0, 1.0],
                    &[2.0, 1.0],
                    &[-2.0, -1.0],
                    &[-2.0, -1.0],
                    &[-2.0, -1.0],
                    &[2.0, -1.0],
                    &[-2.0, 1.0],
                ],
                &[0, 0, 0, 1, 1, 1, 0, 1],
            )
            .param("explained", 0.7),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if params.dim == Some(0) {
            return Err(Error::parameter("dim", "at least 1", 0));
        }
        if !(params.explained > 0.0 && params.explained <= 1.0) {
            return Err(Error::parameter("explained", "above 0, at most 1", params.explained));
        }
        Ok(Self { params, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        self.fitted = Some(Fitted::new(features, self.params.standardise)?);
        Ok(())
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        let d = state::fitted(self.fitted.as_ref())?.mean.len();
        match params.dim {
            Some(dim) if dim > d => {
                Err(Error::parameter("dim", &format!("at most {d}, the number of features"), dim))
            }
            _ => Ok(()),
        }
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
        let features = check::features(batch.features()?, fitted.mean.len())?;
        let logits = check::logits(batch.logits()?)?;
        scores.copy_from_slice(&fitted.scores(features, logits, variants));
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = |fitted: &Fitted| {
            fitted.principal.fits(fitted.mean.len()) && fitted.scale.len() == fitted.mean.len()
        };
        self.fitted = state::load(bytes)?.filter(whole);
        state::fitted(self.fitted.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{Rows, assert_scores};

    /// Expected scores: the authors' formula with sklearn's `StandardScaler` and `PCA`, from the
    /// same data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let (train, test) = (Rows::train(), Rows::test());
        let fitted = Fitted::new(train.features(), true).unwrap();
        let ratio = Params { max_logit: false, ..Params::default() };
        let plane = Params { dim: Some(2), ..Params::default() };
        let got = fitted.scores(test.features(), test.logits(), &[Params::default(), ratio, plane]);
        assert_scores(
            &got[..6],
            &[-4.468290431, -3.593328232, -3.178959014, -3.608815897, -4.5410126, -2.216363927],
        );
        assert_scores(
            &got[6..12],
            &[
                -0.9744822039,
                -0.9708839998,
                -0.9948560578,
                -0.9780513238,
                -0.9552858146,
                -0.8692973417,
            ],
        );
        assert_scores(
            &got[12..],
            &[-4.372809356, -3.077656133, -2.991276868, -3.053154061, -3.752656649, -2.183681377],
        );
        let raw = Params { standardise: false, ..Params::default() };
        let fitted = Fitted::new(train.features(), false).unwrap();
        let got = fitted.scores(test.features(), test.logits(), &[raw]);
        assert_scores(
            &got,
            &[-3.207836194, -2.078824881, -2.340920093, -2.260527861, -2.710140274, -1.65389836],
        );
    }
}
