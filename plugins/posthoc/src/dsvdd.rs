//! Deep SVDD: distance to the centre of all training images.
//!
//! Ruff et al., "Deep One-Class Classification", 2018. Training pulls all images towards one point.
//! Score: `|h - c|^2` for features `h` and the mean `c` of the training features, whose numbers
//! nearer to 0 than `margin` are moved to `margin` or its negative.
//!
//! OpenOOD returns this distance where it returns confidences elsewhere, and so takes what is far
//! off for in-distribution; here it is as in the paper. Its networks for this training, small LeNets,
//! are not among the architectures: export their outputs as features.

use oodbench_sdk::prelude::*;

use crate::numeric::linalg::mean;
use crate::numeric::moments::single;
use crate::numeric::{check, state};

/// Parameters of [`Dsvdd`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    margin: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { margin: 0.1 }
    }
}

/// Deep SVDD.
pub struct Dsvdd {
    params: Params,
    centre: Option<Vec<f64>>,
}

impl Detector for Dsvdd {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "dsvdd",
            title: "Deep SVDD",
            family: "distance",
            summary: "distance to the mean of all training images",
            paper: "Ruff et al., Deep One-Class Classification",
            year: 2018,
            url: "https://proceedings.mlr.press/v80/ruff18a.html",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![Param::new(
                "margin",
                "how far from 0 each number of the centre is at least, unless it is 0",
                "OpenOOD v1.5, as the authors",
            )],
            // The mean is (1, 0.05), the centre (1, 0.1).
            example: Example::of_features(&[&[1.0, 0.1], &[2.0, -0.4]], &[0.0, 1.25])
                .train(&[&[0.0, 0.0], &[2.0, 0.1]], &[0, 0]),
            companion_of: "Deep SVDD",
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !(params.margin >= 0.0 && params.margin.is_finite()) {
            return Err(Error::parameter("margin", "a number from 0", params.margin));
        }
        Ok(Self { params, centre: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let margin = self.params.margin;
        let moved = |x: f64| if x != 0.0 && x.abs() < margin { margin.copysign(x) } else { x };
        self.centre = Some(mean(features).into_iter().map(moved).collect());
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let centre = state::fitted(self.centre.as_ref())?;
        let features = check::features(batch.features()?, centre.len())?;
        for (score, row) in scores.iter_mut().zip(features.rows()) {
            let squares = row.iter().zip(centre).map(|(&h, c)| (f64::from(h) - c).powi(2));
            *score = single(squares.sum());
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.centre.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.centre = state::load(bytes)?;
        Ok(())
    }
}
