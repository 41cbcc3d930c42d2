//! NNGuide: energy guided by nearest neighbours.
//!
//! Park et al., "Nearest Neighbor Guidance for Out-of-Distribution Detection", 2023. Score:
//! `-E(l) g`, where `E(l) = log sum exp(l)` for logits `l` and `g` is the mean of the `K` greatest
//! of `E(l_i) z . z_i` over a bank of training images, for features `z` scaled to length 1.
//!
//! The paper's bank is a random part `alpha` of the training images. OpenOOD takes whole batches
//! from the start of the list until there are more than `alpha` of the images, so that its bank
//! depends on the batch size and on the order: a list sorted by class gives a bank of one class.
//! `bank` set to `first` does the same for batches of `batch` images, which is the default, and
//! `spread` takes `alpha` of the images evenly spaced over the list. Where `K` is above the size of
//! the bank OpenOOD gives every image nearly the same score; here that is an error.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::single;
use crate::numeric::neighbours::{Greatest, normalise};
use crate::numeric::reduce::log_sum_exp;
use crate::numeric::state;
use crate::numeric::tiles::{Panels, scan};

/// Which training images make the bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum BankRule {
    /// Batches from the start of the list.
    #[default]
    First,
    /// Evenly spaced over the list.
    Spread,
}

/// Parameters of [`NnGuide`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    #[serde(rename = "K")]
    k: usize,
    alpha: f64,
    bank: BankRule,
    batch: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { k: 100, alpha: 0.01, bank: BankRule::First, batch: 200 }
    }
}

impl Params {
    /// The bank's rows among `n` training images.
    fn rows(&self, n: usize) -> Vec<usize> {
        let part = ((n as f64 * self.alpha) as usize).min(n);
        match self.bank {
            BankRule::First => {
                let n_batches = part / self.batch + 1;
                (0..n_batches.saturating_mul(self.batch).min(n)).collect()
            }
            BankRule::Spread => {
                let part = part.max(1).min(n);
                (0..part).map(|i| i * n / part).collect()
            }
        }
    }
}

/// Energy guided by nearest neighbours.
pub struct NnGuide {
    params: Params,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// Features of length 1 times their image's energy.
    bank: Panels,
}

impl Detector for NnGuide {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "nnguide",
            title: "NNGuide",
            family: "distance",
            summary: "the energy times the likeness to the nearest training images, negated",
            paper: "Park et al., Nearest Neighbor Guidance for Out-of-Distribution Detection",
            year: 2023,
            url: "https://arxiv.org/abs/2309.14888",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::TRAIN),
            params: vec![
                Param::new("K", "how many neighbours count", "OpenOOD v1.5").sweep([100]).readout(),
                Param::new(
                    "alpha",
                    "which part of the training images makes the bank",
                    "OpenOOD v1.5",
                )
                .sweep([0.01]),
                Param::new(
                    "bank",
                    "`first`, batches from the start of the list, or `spread` over it",
                    "OpenOOD v1.5 takes the first",
                ),
                Param::new("batch", "the images of a batch, for `first`", "OpenOOD v1.5"),
            ],
            // One class, so that the energy is the logit, the sum of the features: 7 for the image,
            // 5 (1, 0) and 2 (0, 1) in the bank. The products with (0.6, 0.8) are 3 and 1.6.
            example: Example::of_features(&[&[3.0, 4.0], &[0.0, 0.0]], &[-16.1, 0.0])
                .head(&[&[1.0, 1.0]], &[0.0])
                .train(&[&[5.0, 0.0], &[0.0, 2.0]], &[0, 0])
                .param("K", 2),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if params.k == 0 {
            return Err(Error::parameter("K", "at least 1", params.k));
        }
        if !(params.alpha > 0.0 && params.alpha <= 1.0) {
            return Err(Error::parameter("alpha", "above 0, up to 1", params.alpha));
        }
        if params.batch == 0 {
            return Err(Error::parameter("batch", "at least 1", params.batch));
        }
        Ok(Self { params, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let features = check::fit_features(train.features()?, "training")?;
        let logits = check::logits(train.logits()?)?;
        let rows = self.params.rows(features.n_rows());
        let bank = Panels::new(rows.len(), features.n_cols(), |i, row| {
            normalise(features.row(rows[i]), row);
            let energy = log_sum_exp(logits.row(rows[i]), 1.0);
            row.iter_mut().for_each(|z| *z = (f64::from(*z) * energy) as f32);
        });
        self.fitted = Some(Fitted { bank });
        Ok(())
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        let n_bank = self.fitted.as_ref().map_or(0, |fitted| fitted.bank.n_rows());
        if params.k > n_bank {
            let expected = format!("at most {n_bank}, the number of images in the bank");
            return Err(Error::parameter("K", &expected, params.k));
        }
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    /// One search for the greatest `K` finds the neighbours for all.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let Fitted { bank } = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, bank.depth())?;
        let logits = check::logits(batch.logits()?)?;
        let greatest = variants.iter().map(|params| params.k).max().unwrap_or(1);
        let nearest = scan(
            features.n_rows(),
            bank,
            |i, row| normalise(features.row(i), row),
            || Greatest::new(greatest),
            Greatest::offer,
            |_, nearest| nearest.sorted(),
        );
        let n = batch.len();
        for (i, (nearest, logits)) in nearest.into_iter().zip(logits.rows()).enumerate() {
            let energy = log_sum_exp(logits, 1.0);
            for (variant, params) in variants.iter().enumerate() {
                let sum: f64 = nearest.iter().take(params.k).map(|&x| f64::from(x)).sum();
                scores[variant * n + i] = single(-(energy * sum / params.k as f64));
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bank_is_made_of_whole_batches_until_there_are_more_than_the_part() {
        let rows = |n, alpha| Params { alpha, ..Params::default() }.rows(n).len();
        assert_eq!(rows(2000, 0.01), 200);
        assert_eq!(rows(2000, 0.5), 1200);
        assert_eq!(rows(2000, 1.0), 2000);
        assert_eq!(rows(30, 0.01), 30);
    }

    #[test]
    fn a_spread_bank_takes_from_the_whole_list() {
        let params = Params { alpha: 0.5, bank: BankRule::Spread, ..Params::default() };
        assert_eq!(params.rows(6), [0, 2, 4]);
        assert_eq!(params.rows(1), [0]);
    }
}
