//! A detector for tests of the parameter search: some of the values that it suggests fail.

use oodbench_sdk::prelude::*;

use crate::max_logit;

/// What it does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Wrong {
    #[default]
    Nothing,
    Error,
    Panic,
}

/// Parameters of [`Sweep`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    wrong: Wrong,
    factor: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { wrong: Wrong::Nothing, factor: 1 }
    }
}

/// The negative greatest logit times `factor`: the wrong way round for -1, NaN for 0, refused for
/// more than 2.
pub struct Sweep {
    params: Params,
}

impl Detector for Sweep {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "faulty-sweep",
            title: "faulty-sweep",
            family: "faulty",
            summary: "the negative greatest logit, times a factor that may be wrong",
            needs: Needs::LOGITS,
            params: vec![
                Param::new("wrong", "what goes wrong in score", "the tests of the search")
                    .sweep(["error", "nothing", "panic"]),
                Param::new("factor", "what the logit is multiplied by", "the tests of the search")
                    .sweep([-1, 0, 2, 1, 3])
                    .readout(),
            ],
            example: Example::of_logits(&[&[2.0, 1.0], &[0.5, 3.0]], &[-2.0, -3.0]),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        Ok(Self { params })
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        if params.factor > 2 {
            return Err(Error::parameter("factor", "at most 2", params.factor));
        }
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = [self.params.clone()];
        self.score_variants(batch, &own, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        match self.params.wrong {
            Wrong::Nothing => {}
            Wrong::Error => return Err(Error::new("this value always fails")),
            Wrong::Panic => panic!("this value always panics"),
        }
        let mut logits = vec![0.0; batch.len()];
        max_logit(batch, &mut logits)?;
        for (nth, score) in scores.iter_mut().enumerate() {
            let factor = variants[nth / batch.len()].factor as f32;
            *score = if factor == 0.0 { f32::NAN } else { logits[nth % batch.len()] * factor };
        }
        Ok(())
    }
}
