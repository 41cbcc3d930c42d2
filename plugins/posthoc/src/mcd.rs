//! Maximum classifier discrepancy: how far two heads disagree.
//!
//! Yu and Aizawa, "Unsupervised Out-of-Distribution Detection by Maximum Classifier Discrepancy",
//! 2019. Two heads are trained to agree on classes and to disagree on unlabelled images. Score:
//! `sum_c |p1_c - p2_c|` for the probabilities `p1` and `p2` of the two.
//!
//! The classifier must have the layer `logits2`, `[n, n_classes]`, as checkpoints of OpenOOD's
//! `mcd_net` give it; the first head makes its logits.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::further::HeadRows;
use crate::numeric::reduce::softmax;

/// Maximum classifier discrepancy.
pub struct Mcd {
    host: Host,
}

impl Detector for Mcd {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "mcd",
            title: "Maximum classifier discrepancy",
            family: "heads",
            summary: "sum of the differences between the probabilities of two heads",
            paper: "Yu and Aizawa, Unsupervised Out-of-Distribution Detection by Maximum Classifier Discrepancy",
            year: 2019,
            url: "https://arxiv.org/abs/1908.04951",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::LAYERS),
            // Probabilities of 0.7311 and 0.2689 against the same the other way round, then equal.
            example: Example::of_images(&[&[1.0, 0.0, 0.0], &[0.5, 0.5, 0.0]], &[0.924_234, 0.0])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .further_head("logits2", &[&[0.0, 1.0, 0.0], &[1.0, 0.0, 0.0]], &[0.0, 0.0]),
            companion_of: "MCD",
            ..Info::default()
        }
    }

    fn new(_params: NoParams, host: Host) -> Result<Self> {
        Ok(Self { host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (logits, images) = (check::logits(batch.logits()?)?, batch.images()?);
        let others = HeadRows::of_columns(&self.host, images, "logits2", logits.n_cols())?;
        for ((score, row), other) in scores.iter_mut().zip(logits.rows()).zip(others.rows()) {
            let (p1, p2) = (softmax(row, 1.0), softmax(other, 1.0));
            *score = p1.iter().zip(p2).map(|(p1, p2)| (p1 - p2).abs()).sum::<f64>() as f32;
        }
        Ok(())
    }
}
