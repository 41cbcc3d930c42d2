//! Maximum logit.
//!
//! Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", 2022.
//! Score: `-max_c l_c` for logits `l`.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::maximum;

/// Maximum logit.
pub struct Mls;

impl Detector for Mls {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "mls",
            title: "Maximum logit",
            family: "logits",
            summary: "the greatest logit, negated",
            paper: "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings",
            year: 2022,
            url: "https://arxiv.org/abs/1911.11132",
            needs: Needs::LOGITS,
            example: Example::of_logits(&[&[0.5, 3.0], &[-1.0, -2.0]], &[-3.0, 1.0]),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self)
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = -maximum(logits);
        }
        Ok(())
    }
}
