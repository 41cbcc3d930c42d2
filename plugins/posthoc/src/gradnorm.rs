//! GradNorm: the size of the head's gradient.
//!
//! Huang et al., "On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
//! 2021. Score: minus the L1 norm of the gradient, with respect to the head's weight, of the
//! cross-entropy between the uniform distribution and the softmax `p` of the `K` logits. For
//! features `h` that is `-|p - 1 / K|_1 |h|_1`, so no gradient is taken.
//!
//! OpenOOD sums the cross-entropy over classes where the paper has its mean, so its scores are `K`
//! times greater; it goes image by image through autograd. That scale is the default here, so that
//! scores can be compared, and `mean` is the paper's. The order of scores is the same.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::single;
use crate::numeric::reduce::softmax;

/// Parameters of [`GradNorm`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    mean: bool,
}

/// The size of the head's gradient.
pub struct GradNorm {
    params: Params,
}

impl Detector for GradNorm {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "gradnorm",
            title: "GradNorm",
            family: "features",
            summary: "the L1 norm of the head's gradient towards uniform probabilities, negated",
            paper: "Huang et al., On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
            year: 2021,
            url: "https://arxiv.org/abs/2110.00218",
            needs: Needs::FEATURES.and(Needs::LOGITS),
            params: vec![Param::new(
                "mean",
                "the mean over classes, as in the paper, in place of the sum",
                "OpenOOD v1.5 takes the sum",
            )],
            // Probabilities are 3/4 and 1/4 for the first, equal for the second.
            example: Example::of_features(&[&[1.098_612_3, -1.0], &[0.0, 5.0]], &[-2.098_612, 0.0])
                .head(&[&[1.0, 0.0], &[0.0, 0.0]], &[0.0, 0.0]),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let features = check::finite(batch.features()?, "features")?;
        let logits = check::logits(batch.logits()?)?;
        for ((score, h), logits) in scores.iter_mut().zip(features.rows()).zip(logits.rows()) {
            let k = logits.len() as f64;
            let of_logits: f64 = softmax(logits, 1.0).iter().map(|p| (k * p - 1.0).abs()).sum();
            let of_features: f64 = h.iter().map(|&h| f64::from(h).abs()).sum();
            let scale = if self.params.mean { 1.0 / k } else { 1.0 };
            *score = single(-(of_logits * of_features * scale));
        }
        Ok(())
    }
}
