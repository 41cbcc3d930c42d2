//! GEN: generalised entropy.
//!
//! Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", 2023.
//! Score: `sum p^gamma (1 - p)^gamma` over the `M` greatest probabilities `p`. `M` above the
//! number of classes means all of them.
//!
//! OpenOOD takes `1 - p` in `f32`, where it loses its digits for `p` near 1; here it is exact.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::softmax;

/// Parameters of [`Gen`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    gamma: f64,
    #[serde(rename = "M")]
    m: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { gamma: 0.1, m: 100 }
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
        let Params { gamma, m } = self.params;
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            let mut p = softmax(logits, 1.0);
            if m < p.len() {
                p.select_nth_unstable_by(m, |a, b| b.total_cmp(a));
                p.truncate(m);
            }
            *score = p.iter().map(|p| p.powf(gamma) * (1.0 - p).powf(gamma)).sum::<f64>() as f32;
        }
        Ok(())
    }
}
