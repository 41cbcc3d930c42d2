//! T2FNorm: train-time feature normalisation. The score of classifiers that are trained so.
//!
//! Regmi et al., "T2FNorm: Extremely Simple Scaled Train-time Feature Normalization for OOD
//! Detection", 2024. Training divides features by their length and by `tau`; scoring leaves out
//! the length. Score: `-max_c softmax(W h / tau + b)_c` for features `h` as they are before
//! normalisation, which the checkpoint must give.
//!
//! `tau` is that of the training. OpenOOD leaves it out for 1000 classes, whose checkpoints are
//! tuned from ones that were trained without: say `tau` of 1 there. It sums in single precision,
//! the default here as for `msp`.

use oodbench_sdk::prelude::*;

use crate::numeric::head::EnergyHead;
use crate::numeric::moments::single;
use crate::numeric::reduce::{max_probability, max_probability_single};

/// Parameters of [`T2fNorm`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    tau: f64,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { tau: 0.1, double_precision: false }
    }
}

/// Train-time feature normalisation.
pub struct T2fNorm {
    params: Params,
    host: Host,
}

impl Detector for T2fNorm {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "t2fnorm",
            title: "T2FNorm",
            family: "logits",
            summary: "the predicted class's probability of a classifier trained on normalised features",
            paper: "Regmi et al., T2FNorm: Extremely Simple Scaled Train-time Feature Normalization for OOD Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2305.17797",
            needs: Needs::FEATURES.and(Needs::HEAD),
            params: vec![
                Param::new(
                    "tau",
                    "what the features are divided by, as in training",
                    "OpenOOD v1.5's training",
                ),
                Param::new(
                    "double_precision",
                    "sum in double precision, which tells apart what single precision rounds to 1",
                    "OpenOOD v1.5 sums in single precision",
                ),
            ],
            // The logits are 2 and 0 at a temperature of 0.5.
            example: Example::of_features(&[&[1.0, 0.5]], &[-0.880_797])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, -1.0])
                .param("tau", 0.5),
            companion_of: "T2FNorm",
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        // Below it, what features are divided by would make them infinite.
        if !(params.tau >= f64::from(f32::MIN_POSITIVE) && params.tau.is_finite()) {
            return Err(Error::parameter("tau", "a positive number", params.tau));
        }
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let Params { tau, double_precision } = self.params;
        let head = self.host.head()?;
        let n_classes = head.bias().len();
        let head = EnergyHead::new(&head)?;
        let products = head.products(batch.features()?, |features, scaled| {
            for (scaled, &h) in scaled.iter_mut().zip(features) {
                *scaled = f64::from(h) / tau;
            }
        })?;
        for (score, products) in scores.iter_mut().zip(products.chunks_exact(n_classes)) {
            let logits: Vec<f32> = head.logits(products).map(single).collect();
            *score = if double_precision {
                -max_probability(&logits, 1.0) as f32
            } else {
                -max_probability_single(&logits, 1.0)
            };
        }
        Ok(())
    }
}
