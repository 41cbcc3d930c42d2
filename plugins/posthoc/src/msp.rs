//! Maximum softmax probability.
//!
//! Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
//! in Neural Networks", 2017. Score: `-max_c softmax(l)_c` for logits `l`.
//!
//! OpenOOD computes it in single precision, where the probability of a confident image is exactly
//! 1: on CIFAR-10 against MNIST these ties move AUROC by 0.1 points. That is the default here, so
//! that published numbers can be compared; `double_precision` tells such images apart.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::{max_probability, max_probability_single};

/// Parameters of [`Msp`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    double_precision: bool,
}

/// Maximum softmax probability.
pub struct Msp {
    params: Params,
}

impl Detector for Msp {
    type Params = Params;

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
            params: vec![Param::new(
                "double_precision",
                "sum in double precision, which tells apart what single precision rounds to 1",
                "OpenOOD v1.5 sums in single precision",
            )],
            example: Example::of_logits(&[&[0.0, 0.0], &[2.0, 0.0]], &[-0.5, -0.880_797]),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = if self.params.double_precision {
                -max_probability(logits, 1.0) as f32
            } else {
                -max_probability_single(logits, 1.0)
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_precision_ties_where_double_precision_does_not() {
        let (sure, surer) = ([17.0f32, 0.0], [17.5f32, 0.0]);
        assert_eq!(max_probability_single(&sure, 1.0), 1.0);
        assert_eq!(max_probability_single(&surer, 1.0), 1.0);
        assert_ne!(max_probability(&sure, 1.0) as f32, max_probability(&surer, 1.0) as f32);
    }
}
