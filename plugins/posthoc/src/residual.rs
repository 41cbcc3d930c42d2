//! The residual of ViM alone.
//!
//! Wang et al., "ViM: Out-of-Distribution with Virtual-logit Matching", 2022, which compares with
//! it. Score: `|R'(h - u)|` for features `h`, where `u = -pinv(W) b` moves the origin to where the
//! head's bias is absorbed and `R` spans the directions in which in-distribution features vary the
//! least, all but the first `dim`.
//!
//! OpenOOD fits on validation images where the paper has training images, though it names them
//! training; that is the default here, so that its numbers can be compared, and `fit_on` set to
//! `train` is the paper's. Its default `dim` of 512 leaves nothing of 512 features, so that every
//! image scores 0 there; here that is an error, and the default takes half of few features.

use faer::Mat;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::linalg::{Stored, eigen, least_squares, lengths, scatter};
use crate::numeric::moments::single;
use crate::numeric::state;

/// The images that the subspace is fitted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum FitOn {
    /// Validation images, as OpenOOD.
    #[default]
    Val,
    /// Training images, as the paper.
    Train,
}

/// Parameters of [`Residual`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    dim: Option<usize>,
    fit_on: FitOn,
}

/// The residual.
pub struct Residual {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    origin: Vec<f64>,
    /// `[n_features, n_features - dim]`
    basis: Stored,
}

impl Detector for Residual {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "residual",
            title: "Residual",
            family: "features",
            summary: "the length of the feature outside the principal subspace",
            paper: "Wang et al., ViM: Out-of-Distribution with Virtual-logit Matching",
            year: 2022,
            url: "https://arxiv.org/abs/2203.10807",
            needs: Needs::FEATURES.and(Needs::HEAD).and(Needs::TRAIN).and(Needs::VAL),
            params: vec![
                Param::new(
                    "dim",
                    "dimensions of the principal subspace; by default 512, or half the features if those are fewer than 768",
                    "OpenOOD v1.5; the paper's code for few features",
                )
                .integer(),
                Param::new(
                    "fit_on",
                    "`val`, or `train` as in the paper",
                    "OpenOOD v1.5 reads validation images",
                ),
            ],
            // The head's bias moves the origin to (0, -1); training images are not looked at.
            example: Example::of_features(&[&[7.0, -1.0], &[5.0, 2.0]], &[0.0, 3.0])
                .head(&[&[0.0, 1.0], &[0.0, -1.0]], &[1.0, -1.0])
                .train(&[&[0.0, 0.0]], &[0])
                .val(&[&[2.0, -0.5], &[-2.0, -0.5], &[2.0, -1.5], &[-2.0, -1.5]])
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
        let dim = self.params.dim.unwrap_or(if d < 768 { d / 2 } else { 512 });
        if dim >= d {
            return Err(Error::parameter(
                "dim",
                &format!("below {d}, the number of features"),
                dim,
            ));
        }
        let features = match self.params.fit_on {
            FitOn::Val => check::fit_features(data.val().features()?, "validation")?,
            FitOn::Train => check::fit_features(data.train().features()?, "training")?,
        };
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let origin: Vec<f64> = least_squares(weight, head.bias())?.iter().map(|x| -x).collect();
        let (_, vectors) = eigen(scatter(features, |_| &origin).as_ref())?;
        // Eigenvalues ascend, so the residual directions come first.
        let basis = Mat::from_fn(d, d - dim, |i, j| vectors[(i, j)]);
        self.fitted = Some(Fitted { origin, basis: (&basis).into() });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.origin.len())?;
        let residuals = lengths(features, &fitted.origin, &fitted.basis)?;
        for (score, residual) in scores.iter_mut().zip(residuals) {
            *score = single(residual);
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
