//! VRA: variational rectified activations.
//!
//! Xu et al., "VRA: Variational Rectified Activation for Out-of-distribution Detection", 2023.
//! Score: the energy of the head's logits for features that are clipped at the percentile
//! `percentile_high` and suppressed below `percentile_low`, both of all features of the validation
//! images (validation as in OpenOOD).
//!
//! The paper sets features below the lower percentile to 0; OpenOOD raises them to it, which is
//! the default here, so that published numbers can be compared: `below` says `zero` or `raise`.
//! Where more features than `percentile_low` are 0, as after a ReLU, both are ReAct.

use oodbench_sdk::prelude::*;

use crate::numeric::head::EnergyHead;
use crate::numeric::reduce::percentile;
use crate::numeric::{check, state};

/// What becomes of features below the lower percentile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Below {
    /// They become the percentile.
    Raise,
    /// They become 0.
    Zero,
}

/// Parameters of [`Vra`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    percentile_high: f64,
    percentile_low: f64,
    below: Below,
}

impl Default for Params {
    fn default() -> Self {
        Self { percentile_high: 90.0, percentile_low: 10.0, below: Below::Raise }
    }
}

/// Variational rectified activations.
pub struct Vra {
    params: Params,
    host: Host,
    thresholds: Option<Thresholds>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Thresholds {
    low: f32,
    high: f32,
}

impl Detector for Vra {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "vra",
            title: "Variational rectified activations",
            family: "shaping",
            summary: "the energy after features are clipped at one percentile and suppressed below another",
            paper: "Xu et al., VRA: Variational Rectified Activation for Out-of-distribution Detection",
            year: 2023,
            url: "https://arxiv.org/abs/2302.11716",
            needs: Needs::FEATURES.and(Needs::HEAD).and(Needs::VAL),
            params: vec![
                Param::new("percentile_high", "where features are clipped, of 100", "OpenOOD v1.5")
                    .sweep([85, 90, 95, 99]),
                Param::new(
                    "percentile_low",
                    "below which features are suppressed, of 100",
                    "OpenOOD v1.5",
                )
                .sweep([1, 5, 10, 15]),
                Param::new(
                    "below",
                    "what becomes of the features below: `raise` to the percentile or `zero`",
                    "OpenOOD v1.5; the paper has `zero`",
                ),
            ],
            // Between 1 and 4 the features are 1 and 4, and the logits 2 and 9.
            example: Example::of_features(&[&[0.5, 9.0]], &[-9.000_912])
                .head(&[&[2.0, 0.0], &[0.0, 2.0]], &[0.0, 1.0])
                .val(&[&[0.0, 1.0], &[2.0, 3.0], &[4.0, 5.0]])
                .param("percentile_high", 80.0)
                .param("percentile_low", 20.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        let Params { percentile_high, percentile_low, .. } = params;
        if !(0.0..=100.0).contains(&percentile_high) {
            return Err(Error::parameter("percentile_high", "0 to 100", percentile_high));
        }
        if !(0.0..=percentile_high).contains(&percentile_low) {
            let expected = format!("0 to {percentile_high}, the upper percentile");
            return Err(Error::parameter("percentile_low", &expected, percentile_low));
        }
        Ok(Self { params, host, thresholds: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.val().features()?, "validation")?;
        let values = features.values();
        self.thresholds = Some(Thresholds {
            low: percentile(values, self.params.percentile_low),
            high: percentile(values, self.params.percentile_high),
        });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let &Thresholds { low, high } = state::fitted(self.thresholds.as_ref())?;
        let floor = match self.params.below {
            Below::Raise => low,
            Below::Zero => 0.0,
        };
        let head = EnergyHead::new(&self.host.head()?)?;
        let products = head.products(batch.features()?, |features, shaped| {
            for (shaped, &h) in shaped.iter_mut().zip(features) {
                *shaped = f64::from(if h < low { floor } else { h.min(high) });
            }
        })?;
        head.energies(&products, |_| 1.0, scores);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.thresholds.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.thresholds = state::load(bytes)?;
        Ok(())
    }
}
