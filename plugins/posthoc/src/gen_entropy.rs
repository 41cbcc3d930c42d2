//! GEN: generalised entropy.
//!
//! Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", 2023.
//! Score: `sum p^gamma (1 - p)^gamma` over the `M` greatest probabilities `p`. `M` above the
//! number of classes means all of them.
//!
//! OpenOOD computes in `f32`, where `1 - p` loses its digits for `p` near 1, and is 0 for a confident
//! image. That is the default here, so that published numbers can be compared; `double_precision`
//! keeps the digits.

use std::cmp::Ordering;

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::{maximum, softmax};

/// Parameters of [`Gen`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    gamma: f64,
    #[serde(rename = "M")]
    m: usize,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { gamma: 0.1, m: 100, double_precision: false }
    }
}

/// Generalised entropy.
pub struct Gen {
    params: Params,
}

impl Detector for Gen {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "gen",
            title: "GEN",
            family: "logits",
            summary: "a generalised entropy of the greatest probabilities",
            paper: "Liu et al., GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
            year: 2023,
            url: "https://openaccess.thecvf.com/content/CVPR2023/papers/Liu_GEN_Pushing_the_Limits_of_Softmax-Based_Out-of-Distribution_Detection_CVPR_2023_paper.pdf",
            needs: Needs::LOGITS,
            params: vec![
                Param::new("gamma", "the exponent, between 0 and 1 in the paper", "OpenOOD v1.5")
                    .sweep([0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0]),
                Param::new("M", "how many of the greatest probabilities count", "OpenOOD v1.5")
                    .sweep([10, 50, 100, 200, 500, 1000]),
                Param::new(
                    "double_precision",
                    "compute in double precision, which keeps apart what single precision rounds to 1",
                    "OpenOOD v1.5",
                ),
            ],
            example: Example::of_logits(&[&[0.0, 0.0]], &[1.0]).param("gamma", 0.5),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !(params.gamma > 0.0 && params.gamma.is_finite()) {
            return Err(Error::parameter("gamma", "a positive number", params.gamma));
        }
        if params.m == 0 {
            return Err(Error::parameter("M", "at least 1", params.m));
        }
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = self.params.score(logits);
        }
        Ok(())
    }
}

impl Params {
    fn score(&self, logits: &[f32]) -> f32 {
        let gamma = self.gamma;
        if self.double_precision {
            let p = greatest(softmax(logits, 1.0), self.m, f64::total_cmp);
            let term = |p: &f64| p.powf(gamma) * (1.0 - p).max(0.0).powf(gamma);
            return p.iter().map(term).sum::<f64>() as f32;
        }
        let gamma = gamma as f32;
        let p = greatest(softmax_single(logits), self.m, f32::total_cmp);
        p.iter().map(|p| p.powf(gamma) * (1.0 - p).max(0.0).powf(gamma)).sum()
    }
}

/// The `m` greatest values, in any order.
fn greatest<T: Copy>(mut p: Vec<T>, m: usize, compare: fn(&T, &T) -> Ordering) -> Vec<T> {
    if m < p.len() {
        p.select_nth_unstable_by(m, |a, b| compare(b, a));
        p.truncate(m);
    }
    p
}

/// `softmax(xs)` in single precision.
fn softmax_single(xs: &[f32]) -> Vec<f32> {
    let max = maximum(xs);
    let exps: Vec<f32> = xs.iter().map(|&x| (x - max).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_precision_ties_where_double_precision_does_not() {
        let score = |logits: &[f32], double_precision| {
            Params { gamma: 0.5, double_precision, ..Params::default() }.score(logits)
        };
        // p is (1, e^-20): sqrt(p (1 - p)) twice, or once where 1 - p is rounded away.
        let root = (-10f32).exp();
        assert!((score(&[20.0, 0.0], false) / root - 1.0).abs() < 1e-4);
        assert!((score(&[20.0, 0.0], true) / (2.0 * root) - 1.0).abs() < 1e-4);
    }

    #[test]
    fn only_the_greatest_probabilities_count() {
        let params = Params { gamma: 1.0, m: 1, ..Params::default() };
        let p = 1.0 / (1.0 + 2.0 * (-1f32).exp());
        assert!((params.score(&[0.0, 1.0, 0.0]) - p * (1.0 - p)).abs() < 1e-6);
    }

    #[test]
    fn nan_is_not_hidden() {
        for double_precision in [false, true] {
            let params = Params { double_precision, ..Params::default() };
            assert!(params.score(&[1.0, f32::NAN, 0.0]).is_nan());
        }
    }
}
