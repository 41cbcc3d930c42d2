//! ViM: virtual-logit matching.
//!
//! Wang et al., "ViM: Out-of-Distribution with Virtual-logit Matching", 2022. Score:
//! `alpha |R'(h - u)| - log sum exp(l)` for features `h` and logits `l`, where `u = -pinv(W) b`
//! moves the origin to where the head's bias is absorbed, `R` spans the training features'
//! directions of least variance, all but the first `dim`, and `alpha` scales the residual to the
//! mean greatest logit of the training images.
//!
//! OpenOOD's default `dim` is 256, which needs more than 256 features; below 512 features half of
//! them is taken here, which is the rule of the paper's own code for small features.
//! `dim` at or above the number of features leaves no residual: NaN scores there, an error here.

use faer::Mat;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::{Stored, eigen, least_squares, lengths, scatter};
use crate::numeric::moments::single;
use crate::numeric::reduce::{log_sum_exp, maximum};
use crate::numeric::state;

/// Parameters of [`Vim`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    dim: Option<usize>,
}

/// Virtual-logit matching.
pub struct Vim {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    origin: Vec<f64>,
    /// `[n_features, n_features - dim]`
    residual: Stored,
    alpha: f64,
}

impl Fitted {
    /// The length of each row's residual.
    fn residuals(&self, features: Matrix<'_>) -> Result<Vec<f64>> {
        lengths(features, &self.origin, &self.residual)
    }
}

impl Detector for Vim {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "vim",
            title: "Virtual-logit matching",
            family: "features",
            summary: "the feature's residual outside the principal subspace, as a virtual logit",
            paper: "Wang et al., ViM: Out-of-Distribution with Virtual-logit Matching",
            year: 2022,
            url: "https://arxiv.org/abs/2203.10807",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "dim",
                    "dimensions of the principal subspace; by default 256, or half the features if those are fewer than 512",
                    "OpenOOD v1.5; the paper's code for few features",
                )
                .integer()
                .sweep([256, 1000]),
            ],
            // The residual is the second feature, 0.5 for each training image; their mean greatest
            // logit is 1, so alpha is 2.
            example: Example::of_features(&[&[1.0, 0.0], &[1.0, 2.0]], &[-1.313_262, 2.686_738])
                .head(&[&[1.0, 0.0], &[0.0, 0.0]], &[0.0, 0.0])
                .train(&[&[2.0, 0.5], &[-2.0, 0.5], &[2.0, -0.5], &[-2.0, -0.5]], &[0, 1, 0, 1])
                .param("dim", 1),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if params.dim == Some(0) {
            return Err(Error::parameter("dim", "at least 1", 0));
        }
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let d = data.n_features();
        let dim = self.params.dim.unwrap_or(256.min(d / 2));
        if dim >= d {
            return Err(Error::parameter(
                "dim",
                &format!("below {d}, the number of features"),
                dim,
            ));
        }
        let head = self.host.head()?;
        let origin: Vec<f64> =
            least_squares(head.weight(), head.bias())?.iter().map(|x| -x).collect();
        let (features, logits) = (data.train().features()?, data.train().logits()?);
        let (_, vectors) = eigen(scatter(features, |_| &origin).as_ref())?;
        // Eigenvalues ascend, so the residual directions come first.
        let residual = Mat::from_fn(d, d - dim, |i, j| vectors[(i, j)]);
        let mut fitted = Fitted { origin, residual: (&residual).into(), alpha: 1.0 };
        let n = features.n_rows().max(1) as f64;
        let mean_residual = fitted.residuals(features)?.iter().sum::<f64>() / n;
        let mean_logit = logits.rows().map(|row| f64::from(maximum(row))).sum::<f64>() / n;
        if mean_residual <= 0.0 {
            return Err(Error::input(format!(
                "training features leave no residual outside of {dim} dimensions"
            )));
        }
        fitted.alpha = mean_logit / mean_residual;
        self.fitted = Some(fitted);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::finite(batch.features()?, "features")?;
        let logits = check::logits(batch.logits()?)?;
        let residuals = fitted.residuals(features)?;
        for ((score, residual), logits) in scores.iter_mut().zip(residuals).zip(logits.rows()) {
            *score = single(fitted.alpha * residual - log_sum_exp(logits, 1.0));
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
