//! Maximum softmax probability.
//!
//! Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
//! in Neural Networks", 2017. Score: `-max_c softmax(l)_c` for logits `l`.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::max_probability;

/// Maximum softmax probability.
pub struct Msp;

impl Detector for Msp {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "msp",
            title: "Maximum softmax probability",
            family: "logits",
            summary: "the probability of the predicted class, negated",
            paper: "Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
            year: 2017,
            url: "https://arxiv.org/abs/1610.02136",
            needs: Needs::LOGITS,
            example: Example::of_logits(&[&[0.0, 0.0], &[2.0, 0.0]], &[-0.5, -0.880_797]),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self)
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = -max_probability(logits, 1.0) as f32;
        }
        Ok(())
    }
}
