//! ReAct: rectified activations.
//!
//! Sun et al., "ReAct: Out-of-distribution Detection With Rectified Activations", 2021. Score: the
//! energy of the head's logits for features clipped at `c`, the given percentile of all features
//! of the validation images (validation as in OpenOOD; the paper takes training images).

use oodbench_sdk::prelude::*;

use crate::numeric::head::EnergyHead;
use crate::numeric::reduce::percentile;
use crate::numeric::{check, state};

/// Parameters of [`React`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    percentile: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { percentile: 90.0 }
    }
}

/// Rectified activations.
pub struct React {
    params: Params,
    host: Host,
    threshold: Option<f32>,
}

impl Detector for React {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "react",
            title: "ReAct",
            family: "shaping",
            summary: "the energy after features are clipped at a percentile",
            paper: "Sun et al., ReAct: Out-of-distribution Detection With Rectified Activations",
            year: 2021,
            url: "https://arxiv.org/abs/2111.12797",
            needs: Needs::FEATURES.and(Needs::HEAD).and(Needs::VAL),
            params: vec![
                Param::new("percentile", "where features are clipped, of 100", "OpenOOD v1.5")
                    .sweep([85, 90, 95, 99]),
            ],
            // Clipped at 4, the logits are 2 and 9.
            example: Example::of_features(&[&[1.0, 9.0]], &[-9.000_912])
                .head(&[&[2.0, 0.0], &[0.0, 2.0]], &[0.0, 1.0])
                .val(&[&[0.0, 1.0], &[2.0, 3.0], &[4.0, 5.0]])
                .param("percentile", 80.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(0.0..=100.0).contains(&params.percentile) {
            return Err(Error::parameter("percentile", "0 to 100", params.percentile));
        }
        Ok(Self { params, host, threshold: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.val().features()?, "validation")?;
        self.threshold = Some(percentile(features.values(), self.params.percentile));
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let threshold = *state::fitted(self.threshold.as_ref())?;
        let head = EnergyHead::new(&self.host.head()?)?;
        let products = head.products(batch.features()?, |features, clipped| {
            for (clipped, &h) in clipped.iter_mut().zip(features) {
                *clipped = f64::from(h.min(threshold));
            }
        })?;
        head.energies(&products, |_| 1.0, scores);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.threshold.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.threshold = state::load(bytes)?;
        Ok(())
    }
}
