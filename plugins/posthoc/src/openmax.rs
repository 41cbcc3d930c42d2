//! OpenMax.
//!
//! Bendale and Boult, "Towards Open Set Deep Networks", 2016. Of the training images of a class
//! that are classified correctly, the mean logits are taken, and a Weibull distribution fitted to
//! the `tail` greatest distances from them. The `alpha` greatest logits of an image are lowered by
//! how likely its distance `d_c` is exceeded by none of its class: `v_c = l_c (1 - w_c omega_c)`,
//! where `w_c` is the distribution at `d_c` and `omega` falls from 1 in steps of `1 / alpha`. What
//! they lose becomes the logit `u` of a class for the unknown. Score: its probability,
//! `exp(u) / (exp(u) + sum_c exp(v_c))`.
//!
//! OpenOOD takes exponentials without a shift, which overflow for great logits, and fails for a
//! class without a correct training image; that is an error here as well. A tail of equal
//! distances, as a single image has, is a step. libmr, which OpenOOD fits with, stops at six
//! digits. `log_odds` tells apart images that are all but surely unknown, whose probabilities are
//! rounded to 1 in `f32` (OpenOOD's are `f64`).

use oodbench_sdk::prelude::*;

use crate::numeric::reduce::argmax;
use crate::numeric::weibull::Weibull;
use crate::numeric::{check, state};

/// Parameters of [`OpenMax`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    alpha: usize,
    tail: usize,
    log_odds: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { alpha: 3, tail: 20, log_odds: false }
    }
}

/// OpenMax.
pub struct OpenMax {
    params: Params,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    classes: Vec<Class>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Class {
    /// Of the logits.
    mean: Vec<f64>,
    distances: Weibull,
}

impl Detector for OpenMax {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "openmax",
            title: "OpenMax",
            family: "logits",
            summary: "the probability of an unknown class, from distances to the classes' mean logits",
            paper: "Bendale and Boult, Towards Open Set Deep Networks",
            year: 2016,
            url: "https://arxiv.org/abs/1511.06233",
            needs: Needs::LOGITS.and(Needs::LABELS).and(Needs::TRAIN),
            params: vec![
                Param::new("alpha", "how many of the greatest logits are lowered", "OpenOOD v1.5"),
                Param::new(
                    "tail",
                    "how many distances a distribution is fitted to",
                    "OpenOOD v1.5",
                ),
                Param::new(
                    "log_odds",
                    "score by the logarithm of the odds, which is not rounded to 1",
                    "OpenOOD v1.5 has probabilities",
                ),
            ],
            // Both tails are equal distances of 1, so that the distributions are steps: 0 for the
            // first image, at a distance of 0 from its class, whose logits stay (3, 0). The second
            // is at a distance of 3: of its logits (6, 0) the first becomes 0, and the unknown's
            // is 6.
            example: Example::of_features(&[&[3.0, 0.0], &[6.0, 0.0]], &[0.045_278, 0.995_067])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .train(&[&[2.0, 0.0], &[4.0, 0.0], &[0.0, 2.0], &[0.0, 4.0]], &[0, 0, 1, 1])
                .param("alpha", 1),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        for (name, value) in [("alpha", params.alpha), ("tail", params.tail)] {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        Ok(Self { params, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let logits = check::logits(train.logits()?)?;
        let n_classes = logits.n_cols();
        let labels = check::classes(train.labels()?, n_classes)?;
        let mut correct = vec![Vec::new(); n_classes];
        for (row, class) in logits.rows().zip(labels) {
            if argmax(row) == class {
                correct[class].push(row);
            }
        }
        let class = |(class, rows): (usize, Vec<&[f32]>)| {
            Class::of(&rows, self.params.tail).ok_or_else(|| {
                Error::input(format!(
                    "class {class} has no training image that is classified correctly"
                ))
            })
        };
        let classes = correct.into_iter().enumerate().map(class).collect::<Result<_>>()?;
        self.fitted = Some(Fitted { classes });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let Fitted { classes } = state::fitted(self.fitted.as_ref())?;
        let logits = check::logits(batch.logits()?)?;
        if logits.n_cols() != classes.len() {
            let (expected, got) = (classes.len(), logits.n_cols());
            return Err(Error::input(format!("logits expected {expected} columns, got {got}")));
        }
        for (score, logits) in scores.iter_mut().zip(logits.rows()) {
            let log_odds = log_odds(classes, logits, self.params.alpha);
            *score = match self.params.log_odds {
                true => log_odds as f32,
                false => (1.0 / (1.0 + (-log_odds).exp())) as f32,
            };
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

impl Class {
    /// The class of these logits; none without any.
    fn of(rows: &[&[f32]], tail: usize) -> Option<Self> {
        let mut mean = vec![0.0; rows.first()?.len()];
        for row in rows {
            for (mean, &logit) in mean.iter_mut().zip(*row) {
                *mean += f64::from(logit) / rows.len() as f64;
            }
        }
        let mut distances: Vec<f64> = rows.iter().map(|row| distance(&mean, row)).collect();
        distances.sort_by(f64::total_cmp);
        let tail = &distances[distances.len().saturating_sub(tail)..];
        Some(Self { distances: Weibull::of_tail(tail)?, mean })
    }
}

fn distance(mean: &[f64], logits: &[f32]) -> f64 {
    mean.iter().zip(logits).map(|(mean, &l)| (f64::from(l) - mean).powi(2)).sum::<f64>().sqrt()
}

/// `u - log sum exp(v)`
fn log_odds(classes: &[Class], logits: &[f32], alpha: usize) -> f64 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let by_logit = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if alpha < order.len() {
        order.select_nth_unstable_by(alpha, by_logit);
        order.truncate(alpha);
    }
    order.sort_unstable_by(by_logit);
    let mut lowered: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let mut unknown = 0.0;
    for (rank, class) in order.into_iter().enumerate() {
        let Class { mean, distances } = &classes[class];
        let omega = (alpha - rank) as f64 / alpha as f64;
        let lost = lowered[class] * distances.cdf(distance(mean, logits)) * omega;
        lowered[class] -= lost;
        unknown += lost;
    }
    let greatest = lowered.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = lowered.iter().map(|v| (v - greatest).exp()).sum();
    unknown - greatest - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<Class> {
        [[[2.0, 0.0], [4.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]]]
            .iter()
            .map(|rows| Class::of(&[&rows[0], &rows[1]], 20).unwrap())
            .collect()
    }

    #[test]
    fn great_logits_do_not_overflow() {
        assert_eq!(log_odds(&classes(), &[1e6, 0.0], 1), 1e6 - 2f64.ln());
    }

    #[test]
    fn more_ranks_than_classes_lower_all_of_them() {
        // 6 loses all, 3 loses two thirds: u = 8, v = (0, 1).
        let expected = 8.0 - (1.0 + 1f64.exp()).ln();
        assert!((log_odds(&classes(), &[6.0, 3.0], 3) - expected).abs() < 1e-12);
    }

    #[test]
    fn a_single_class_has_odds() {
        let class = [Class::of(&[&[1.0]], 20).unwrap()];
        assert!(log_odds(&class, &[1.0], 3).is_finite());
        assert_eq!(log_odds(&class, &[5.0], 3), 5.0);
    }
}
