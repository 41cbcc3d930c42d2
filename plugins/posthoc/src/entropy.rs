//! Predictive entropy.
//!
//! Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
//! Ensembles", 2017, which tells unknown classes by the entropy of the predicted distribution;
//! here of a single network. Score: `-sum_c p_c log p_c` for `p = softmax(l)`.
//!
//! OpenOOD has no such detector. pytorch-ood's `Entropy` raises probabilities below 1e-7 to it,
//! which adds 1.6e-6 for each of them to the entropy of a confident image; `floor` does the same.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::{log_sum_exp, softmax};

/// Parameters of [`Entropy`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    floor: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { floor: 0.0 }
    }
}

/// Predictive entropy.
pub struct Entropy {
    params: Params,
}

impl Detector for Entropy {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "entropy",
            title: "Predictive entropy",
            family: "logits",
            summary: "the entropy of the predicted distribution",
            paper: "Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
            year: 2017,
            url: "https://arxiv.org/abs/1612.01474",
            needs: Needs::LOGITS,
            params: vec![Param::new(
                "floor",
                "lower probabilities are raised to it",
                "the definition of entropy; pytorch-ood has 1e-7",
            )],
            // ln 2, and 0.880797 and 0.119203.
            example: Example::of_logits(
                &[&[0.0, 0.0], &[2.0, 0.0]],
                &[std::f32::consts::LN_2, 0.365_334],
            ),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !(0.0..1.0).contains(&params.floor) {
            return Err(Error::parameter("floor", "0 to below 1", params.floor));
        }
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let floor = self.params.floor;
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = entropy(logits, floor) as f32;
        }
        Ok(())
    }
}

/// The entropy of `softmax(logits)` with probabilities raised to `floor`.
fn entropy(logits: &[f32], floor: f64) -> f64 {
    let normaliser = log_sum_exp(logits, 1.0);
    let term = |(p, &logit): (f64, &f32)| {
        if p < floor {
            return -floor * floor.ln();
        }
        // From the logit, because a probability that is rounded to 0 has no logarithm.
        p * (normaliser - f64::from(logit))
    };
    softmax(logits, 1.0).into_iter().zip(logits).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_zero_count_for_nothing() {
        assert_eq!(entropy(&[2000.0, 0.0], 0.0), 0.0);
        assert_eq!(entropy(&[5.0], 0.0), 0.0);
        assert!(entropy(&[f32::NAN, 0.0], 0.0).is_nan());
    }

    #[test]
    fn a_floor_is_added_for_each_probability_below_it() {
        let off = entropy(&[2000.0, 0.0, 0.0], 1e-7) - 2.0 * 1e-7 * 1e7f64.ln();
        assert!(off.abs() < 1e-18);
    }
}
