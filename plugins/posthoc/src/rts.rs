//! Random temperature scaling: a variance that the network gives beside the classes.
//!
//! As in OpenOOD, whose training divides logits by a random temperature, a sum of squared normal
//! numbers with variances from a head of their own, and keeps these near 1. Score `var`: the mean of
//! the variances, negated; `msp`: the greatest probability, negated.
//!
//! The sign of `var` is OpenOOD's, which takes a greater variance for a more in-distribution image.
//! One would expect the opposite of a temperature: on a checkpoint whose AUROC is below 50 %, read
//! it the other way round.
//!
//! The classifier must have the layer `variance`, `[n, degrees]`, as checkpoints of OpenOOD's
//! `rts_net` give it.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::further::HeadRows;
use crate::numeric::reduce::max_probability;

/// What the score is read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum ScoreOf {
    /// The variance head.
    Var,
    /// The classes.
    Msp,
}

/// Parameters of [`Rts`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    ood_score: ScoreOf,
}

impl Default for Params {
    fn default() -> Self {
        Self { ood_score: ScoreOf::Var }
    }
}

/// Random temperature scaling.
pub struct Rts {
    params: Params,
    host: Host,
}

impl Detector for Rts {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "rts",
            title: "Random temperature scaling",
            family: "heads",
            summary: "the mean of the variances that a head of its own gives, negated",
            paper: "OpenOOD v1.5, Random Temperature Scaling",
            year: 2023,
            url: "https://github.com/Jingkang50/OpenOOD",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::LAYERS),
            params: vec![Param::new(
                "ood_score",
                "`var` reads the variances, `msp` the greatest probability",
                "OpenOOD v1.5",
            )],
            // Variances of 1.5 and 0.5.
            example: Example::of_images(&[&[1.0, 0.5, 0.0]], &[-1.0])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .further_head("variance", &[&[1.0, 1.0, 0.0], &[0.0, 1.0, 1.0]], &[0.0, 0.0]),
            companion_of: "RTS",
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.params.ood_score {
            ScoreOf::Var => {
                let variances = HeadRows::of(&self.host, batch.images()?, "variance")?;
                for (score, row) in scores.iter_mut().zip(variances.rows()) {
                    let sum: f64 = row.iter().map(|&variance| f64::from(variance)).sum();
                    *score = (-sum / row.len() as f64) as f32;
                }
            }
            ScoreOf::Msp => {
                for (score, row) in scores.iter_mut().zip(check::logits(batch.logits()?)?.rows()) {
                    *score = -max_probability(row, 1.0) as f32;
                }
            }
        }
        Ok(())
    }
}
