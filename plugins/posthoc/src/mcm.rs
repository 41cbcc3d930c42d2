//! MCM: maximum concept matching.
//!
//! Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations",
//! 2022. Score: `-max_c softmax(l / tau)_c`. The paper's `l` are the cosine similarities of CLIP's
//! embedding of an image with those of the classes' names; with the logits of a classifier, as
//! here, `tau` of 1 is the maximum softmax probability.
//!
//! Single precision is the default as for `msp`: at `tau` of 0.01 most probabilities are exactly 1
//! in OpenOOD.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::{max_probability, max_probability_single};

/// Parameters of [`Mcm`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    tau: f64,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { tau: 1.0, double_precision: false }
    }
}

/// Maximum concept matching.
pub struct Mcm {
    params: Params,
}

impl Detector for Mcm {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "mcm",
            title: "Maximum concept matching",
            family: "logits",
            summary: "the probability of the predicted class at a temperature, negated",
            paper: "Ming et al., Delving into Out-of-Distribution Detection with Vision-Language Representations",
            year: 2022,
            url: "https://arxiv.org/abs/2211.13445",
            needs: Needs::LOGITS,
            params: vec![
                Param::new("tau", "what the logits are divided by", "OpenOOD v1.5")
                    .sweep([0.01, 1.0, 10.0]),
                Param::new(
                    "double_precision",
                    "sum in double precision, which tells apart what single precision rounds to 1",
                    "OpenOOD v1.5 sums in single precision",
                ),
            ],
            // At a temperature of 2 the second is 1 / (1 + exp(-1)).
            example: Example::of_logits(&[&[0.0, 0.0], &[2.0, 0.0]], &[-0.5, -0.731_059])
                .param("tau", 2.0),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        // In single precision the temperature must not round to 0.
        if !(params.tau as f32 > 0.0 && (params.tau as f32).is_finite()) {
            return Err(Error::parameter("tau", "a positive number", params.tau));
        }
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let Params { tau, double_precision } = self.params;
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = if double_precision {
                -max_probability(logits, tau) as f32
            } else {
                -max_probability_single(logits, tau as f32)
            };
        }
        Ok(())
    }
}
