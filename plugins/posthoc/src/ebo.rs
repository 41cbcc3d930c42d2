//! Energy.
//!
//! Liu et al., "Energy-based Out-of-distribution Detection", 2020. Score:
//! `-T log sum_c exp(l_c / T)` for logits `l` and temperature `T`.

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::log_sum_exp;

/// Parameters of [`Ebo`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    temperature: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

/// Energy.
pub struct Ebo {
    params: Params,
}

impl Detector for Ebo {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "ebo",
            title: "Energy",
            family: "logits",
            summary: "the free energy of the logits",
            paper: "Liu et al., Energy-based Out-of-distribution Detection",
            year: 2020,
            url: "https://arxiv.org/abs/2010.03759",
            needs: Needs::LOGITS,
            params: vec![
                Param::new("temperature", "what the logits are divided by", "OpenOOD v1.5")
                    .sweep([1.0]),
            ],
            example: Example::of_logits(
                &[&[0.0, 0.0], &[2.0, 0.0]],
                &[-std::f32::consts::LN_2, -2.126_928],
            ),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !(params.temperature > 0.0 && params.temperature.is_finite()) {
            return Err(Error::parameter("temperature", "a positive number", params.temperature));
        }
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = -log_sum_exp(logits, self.params.temperature) as f32;
        }
        Ok(())
    }
}
