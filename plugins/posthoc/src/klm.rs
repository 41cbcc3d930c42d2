//! KL matching.
//!
//! Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", 2022. Score:
//! `min_c KL(p || q_c)` for the probabilities `p` of an image, and for each class the mean `q_c`
//! of the probabilities of those validation images that are predicted as it.
//!
//! A class that is predicted for no validation image is left out. OpenOOD gives it a distribution
//! that is 1 for it and 0 for others, which is infinitely far from all images but those whose
//! probability is rounded to 1 in single precision. A mean that `f64` rounds to 0 counts as the
//! least positive number, so that scores are finite.

use oodbench_sdk::prelude::*;

use crate::numeric::head::products;
use crate::numeric::reduce::{argmax, log_sum_exp, softmax};
use crate::numeric::{check, state};

/// KL matching.
#[derive(Default)]
pub struct Klm {
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    n_classes: usize,
    /// `log q_c` of each class that was predicted, row by row.
    logs: Vec<f64>,
}

impl Detector for Klm {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "klm",
            title: "KL matching",
            family: "logits",
            summary: "the divergence of the predicted distribution from the nearest class's mean one",
            paper: "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings",
            year: 2022,
            url: "https://arxiv.org/abs/1911.11132",
            needs: Needs::LOGITS.and(Needs::VAL),
            // The only validation image of each class is at (0.75, 0.25) and (0.25, 0.75): the
            // first image is between them, 0.5 ln(0.5 / 0.75) + 0.5 ln(0.5 / 0.25), the second is
            // one of them.
            example: Example::of_features(&[&[0.0, 0.0], &[1.098_612_3, 0.0]], &[0.143_841, 0.0])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .val(&[&[1.098_612_3, 0.0], &[0.0, 1.098_612_3]]),
            ..Info::default()
        }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let logits = check::logits(data.val().logits()?)?;
        if logits.n_rows() == 0 {
            return Err(Error::input("there are no validation images"));
        }
        let n_classes = logits.n_cols();
        let mut sums = vec![0.0; n_classes * n_classes];
        let mut counts = vec![0usize; n_classes];
        for row in logits.rows() {
            let class = argmax(row);
            counts[class] += 1;
            let sums = &mut sums[class * n_classes..][..n_classes];
            for (sum, p) in sums.iter_mut().zip(softmax(row, 1.0)) {
                *sum += p;
            }
        }
        let predicted = sums.chunks_exact(n_classes).zip(counts).filter(|(_, count)| *count > 0);
        let logs = predicted.flat_map(|(sums, count)| {
            sums.iter().map(move |sum| (sum / count as f64).max(f64::MIN_POSITIVE).ln())
        });
        self.fitted = Some(Fitted { n_classes, logs: logs.collect() });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let Fitted { n_classes, logs } = state::fitted(self.fitted.as_ref())?;
        let n_predicted = logs.len().checked_div(*n_classes).unwrap_or(0);
        if n_predicted == 0 || n_predicted * n_classes != logs.len() {
            return Err(Error::input("the saved state holds a matrix of another size"));
        }
        let logits = check::logits(batch.logits()?)?;
        if logits.n_cols() != *n_classes {
            let got = logits.n_cols();
            return Err(Error::input(format!("logits expected {n_classes} columns, got {got}")));
        }
        // KL(p || q) = sum p log p - sum p log q, and the latter is a product of matrices.
        let crossed = products(logits, logs, n_predicted, |logits, p| {
            p.copy_from_slice(&softmax(logits, 1.0));
        });
        for ((score, logits), crossed) in
            scores.iter_mut().zip(logits.rows()).zip(crossed.chunks_exact(n_predicted))
        {
            let normaliser = log_sum_exp(logits, 1.0);
            let own = |(p, &logit): (f64, &f32)| p * (f64::from(logit) - normaliser);
            let own: f64 = softmax(logits, 1.0).into_iter().zip(logits).map(own).sum();
            let nearest = crossed.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // A distribution that is one of the means may be rounded to below 0.
            *score = (own - nearest).max(0.0) as f32;
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}
