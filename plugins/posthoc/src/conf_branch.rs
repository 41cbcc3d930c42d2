//! Learned confidence: a head that was trained to tell when the classifier is wrong.
//!
//! DeVries and Taylor, "Learning Confidence for Out-of-Distribution Detection in Neural Networks",
//! 2018. In training the network may buy hints: its prediction is mixed with the label by as much as
//! it says that it lacks confidence, at a price. Score: `-sigmoid(c)` for the logit `c` of the
//! confidence head.
//!
//! The classifier must have the layer `confidence`, `[n, 1]`, as checkpoints of OpenOOD's
//! `conf_branch_net` give it. OpenOOD returns a column instead of a row of scores.

use oodbench_sdk::prelude::*;

use crate::numeric::further::HeadRows;

/// Learned confidence.
pub struct ConfBranch {
    host: Host,
}

impl Detector for ConfBranch {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "conf_branch",
            title: "Confidence branch",
            family: "heads",
            summary: "the confidence that a head of its own was trained to tell, negated",
            paper: "DeVries and Taylor, Learning Confidence for Out-of-Distribution Detection in Neural Networks",
            year: 2018,
            url: "https://arxiv.org/abs/1802.04865",
            needs: Needs::IMAGES.and(Needs::LAYERS),
            // The logits are 2 and 0.
            example: Example::of_images(&[&[1.0, 0.5, 0.0], &[0.0, 0.5, 1.0]], &[-0.880_797, -0.5])
                .further_head("confidence", &[&[1.0, 2.0, -1.0]], &[0.0]),
            companion_of: "Learning Confidence",
            ..Info::default()
        }
    }

    fn new(_params: NoParams, host: Host) -> Result<Self> {
        Ok(Self { host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let confidences = HeadRows::of_columns(&self.host, batch.images()?, "confidence", 1)?;
        for (score, row) in scores.iter_mut().zip(confidences.rows()) {
            *score = (-1.0 / (1.0 + (-f64::from(row[0])).exp())) as f32;
        }
        Ok(())
    }
}
