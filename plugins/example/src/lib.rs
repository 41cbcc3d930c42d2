//! The difference between the two greatest logits: the smallest detector that has a parameter.
//!
//! Score: `-(l_1 - l_2)^power` for the greatest logit `l_1` and the second greatest `l_2`. Higher
//! means more out-of-distribution, as everywhere: an image between two classes scores near 0.

use oodbench_sdk::prelude::*;

/// What may be set with `--set logit-gap.NAME=VALUE`.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    power: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { power: 1.0 }
    }
}

pub struct LogitGap {
    params: Params,
}

impl Detector for LogitGap {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "logit-gap",
            title: "Logit gap",
            family: "logits",
            summary: "how far the greatest logit is ahead of the second, negated",
            needs: Needs::LOGITS,
            params: vec![
                Param::new("power", "exponent of the difference", "made up").sweep([0.5, 1.0, 2.0]),
            ],
            // Worked out by hand: 3 - 1 = 2, and 5 - 5 = 0.
            example: Example::of_logits(&[&[3.0, 1.0, 0.0], &[5.0, 2.0, 5.0]], &[-2.0, 0.0]),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if params.power.is_nan() || params.power <= 0.0 {
            return Err(Error::parameter("power", "a positive number", params.power));
        }
        Ok(Self { params })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
            for logit in logits.iter().map(|&logit| f64::from(logit)) {
                second = second.max(logit.min(first));
                first = first.max(logit);
            }
            *score = -(first - second).powf(self.params.power) as f32;
        }
        Ok(())
    }
}

oodbench_sdk::export_pack!(LogitGap);
