//! OptFS: features shaped by how much each size of them says for the predicted class.
//!
//! Zhao et al., "Towards Optimal Feature-Shaping Methods for Out-of-Distribution Detection", 2024.
//! The range of the training features, from the 0.1st to the 99.9th percentile, is divided into
//! `bins` of equal width. `theta_k` is the mean over the training images of `sum_d w_yd h_d` over
//! the features `h_d` in bin `k`, for the head's weights `w_y` of the predicted class `y`, and
//! `theta` is scaled to length 1000. Score: `-sum_d w_yd h_d theta(h_d)`, where features outside
//! of the range count 0. Of all functions that are constant in each bin it is the one that makes
//! the score of training images greatest, and no OOD image is looked at.
//!
//! With `energy` the score is minus the log-sum-exp of the head's outputs for the shaped features,
//! the paper's second variant. Bins are found by division, where the authors' code compares with
//! bounds that it adds up; a feature within rounding of a bound may fall to the other side of it.
//! OpenOOD lacks it.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::head::EnergyHead;
use crate::numeric::moments::single;
use crate::numeric::reduce::{argmax, percentile};
use crate::numeric::state;

/// Parameters of [`OptFs`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    bins: usize,
    energy: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { bins: 100, energy: false }
    }
}

/// Optimal feature shaping.
pub struct OptFs {
    params: Params,
    host: Host,
    shaping: Option<Shaping>,
}

/// A function that is constant in each bin.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Shaping {
    left: f64,
    width: f64,
    theta: Vec<f64>,
}

impl Shaping {
    fn new(
        features: Matrix<'_>,
        logits: Matrix<'_>,
        weight: Matrix<'_>,
        bins: usize,
    ) -> Result<Self> {
        /// Rows whose sums are added up apart, so that the result does not depend on the threads.
        const ROWS: usize = 512;
        let values = features.values();
        let (left, right) = (percentile(values, 0.1), percentile(values, 99.9));
        let (left, right) = (f64::from(left), f64::from(right));
        if left >= right {
            return Err(Error::input(format!("training features are all {left} but for a few")));
        }
        let width = (right - left) / bins as f64;
        let mut shaping = Self { left, width, theta: vec![0.0; bins] };
        let part = |first: usize| {
            let mut sums = vec![0.0; bins];
            for i in first..features.n_rows().min(first + ROWS) {
                let weight = weight.row(argmax(logits.row(i)));
                for (&h, &w) in features.row(i).iter().zip(weight) {
                    if let Some(bin) = shaping.bin(h) {
                        sums[bin] += f64::from(w) * f64::from(h);
                    }
                }
            }
            sums
        };
        let firsts: Vec<usize> = (0..features.n_rows()).step_by(ROWS).collect();
        let parts: Vec<Vec<f64>> = firsts.into_par_iter().map(part).collect();
        for sums in parts {
            for (theta, sum) in shaping.theta.iter_mut().zip(sums) {
                *theta += sum;
            }
        }
        // The number of images cancels with the length.
        let length = shaping.theta.iter().map(|theta| theta * theta).sum::<f64>().sqrt();
        if length > 0.0 {
            shaping.theta.iter_mut().for_each(|theta| *theta *= 1000.0 / length);
        }
        Ok(shaping)
    }

    fn bin(&self, h: f32) -> Option<usize> {
        let place = (f64::from(h) - self.left) / self.width;
        (place >= 0.0 && place < self.theta.len() as f64).then_some(place as usize)
    }

    fn shaped(&self, h: f32) -> f64 {
        self.bin(h).map_or(0.0, |bin| f64::from(h) * self.theta[bin])
    }

    /// The shaped features' part in the logit of the predicted class, negated.
    fn score(&self, h: &[f32], weight: &[f32]) -> f32 {
        let terms = h.iter().zip(weight).map(|(&h, &w)| f64::from(w) * self.shaped(h));
        single(-terms.sum::<f64>())
    }

    /// Minus the free energy of the shaped features' logits.
    fn energies(&self, head: &EnergyHead, features: Matrix<'_>, scores: &mut [f32]) -> Result<()> {
        let shape = |row: &[f32], out: &mut [f64]| {
            for (out, &h) in out.iter_mut().zip(row) {
                *out = self.shaped(h);
            }
        };
        head.energies(&head.products(features, shape)?, |_| 1.0, scores);
        Ok(())
    }
}

impl Detector for OptFs {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "optfs",
            title: "OptFS",
            family: "shaping",
            summary: "the logit of the predicted class after features are shaped to make it greatest in-distribution, negated",
            paper: "Zhao et al., Towards Optimal Feature-Shaping Methods for Out-of-Distribution Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2402.00865",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new("bins", "parts of the range of features", "the paper"),
                Param::new("energy", "the energy of all shaped logits", "the authors' code")
                    .sweep([false, true])
                    .readout(),
            ],
            // The range is 0.003 to 3.997, and both training images are taken for class 1: 1 falls
            // into the first bin and 3 into the second, 0 and 4 into none. So theta goes as (1, 3).
            example: Example::of_features(&[&[1.5, 1.0], &[1.5, -1.0]], &[-790.569_4, -474.341_65])
                .head(&[&[1.0, 0.0], &[1.0, 1.0]], &[0.0, 0.0])
                .train(&[&[0.0, 1.0], &[3.0, 4.0]], &[1, 1])
                .param("bins", 2),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        /// Far more than the range has use for; each thread holds sums of so many.
        const MOST: usize = 10_000;
        if !(1..=MOST).contains(&params.bins) {
            return Err(Error::parameter("bins", &format!("from 1 to {MOST}"), params.bins));
        }
        Ok(Self { params, host, shaping: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let features = check::features(features, weight.n_cols())?;
        let logits = check::logits_of(data.train().logits()?, weight.n_rows())?;
        self.shaping = Some(Shaping::new(features, logits, weight, self.params.bins)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let shaping = state::fitted(self.shaping.as_ref())?;
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let features = check::features(batch.features()?, weight.n_cols())?;
        let logits = check::logits_of(batch.logits()?, weight.n_rows())?;
        for (scores, params) in scores.chunks_exact_mut(batch.len().max(1)).zip(variants) {
            if params.energy {
                shaping.energies(&EnergyHead::new(&head)?, features, scores)?;
                continue;
            }
            scores.par_iter_mut().enumerate().for_each(|(i, score)| {
                *score = shaping.score(features.row(i), weight.row(argmax(logits.row(i))));
            });
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.shaping.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.shaping = state::load(bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{N_CLASSES, N_FEATURES, Rows, assert_scores, weight};

    /// Expected scores: the authors' formula in numpy, from the same data.
    #[test]
    fn scores_are_those_of_the_authors_formula() {
        let weight = weight();
        let weight = Matrix::new(&weight, N_CLASSES, N_FEATURES).unwrap();
        let (train, test) = (Rows::train(), Rows::test());
        let scores = |bins| -> Vec<f32> {
            let shaping = Shaping::new(train.features(), train.logits(), weight, bins).unwrap();
            let rows = test.features();
            let rows = rows.rows().zip(test.logits().rows());
            rows.map(|(h, logits)| shaping.score(h, weight.row(argmax(logits)))).collect()
        };
        assert_scores(
            &scores(100),
            &[-921.0879169, -422.7438084, -561.7410704, -359.1083616, -1201.820216, -183.9597984],
        );
        assert_scores(
            &scores(10),
            &[-2325.580875, -1390.307966, -1450.512638, -1532.742214, -2262.993011, -875.4159234],
        );
    }

    #[test]
    fn no_other_function_of_the_bins_makes_training_scores_greater() {
        let weight = weight();
        let weight = Matrix::new(&weight, N_CLASSES, N_FEATURES).unwrap();
        let train = Rows::train();
        let (features, logits) = (train.features(), train.logits());
        let sum = |shaping: &Shaping| -> f64 {
            let rows = features.rows().zip(logits.rows());
            let score =
                |(h, logits): (&[f32], &[f32])| shaping.score(h, weight.row(argmax(logits)));
            rows.map(score).map(f64::from).sum()
        };
        let mut shaping = Shaping::new(features, logits, weight, 10).unwrap();
        let best = sum(&shaping);
        for (from, to) in [(0, 1), (3, 9), (8, 2), (5, 6)] {
            // Turned a little, which keeps its length.
            let (x, y) = (shaping.theta[from], shaping.theta[to]);
            let (sin, cos) = 0.1f64.sin_cos();
            (shaping.theta[from], shaping.theta[to]) = (cos * x - sin * y, sin * x + cos * y);
            assert!(sum(&shaping) > best);
            (shaping.theta[from], shaping.theta[to]) = (x, y);
        }
    }
}
