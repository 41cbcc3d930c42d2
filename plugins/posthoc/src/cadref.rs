//! CADRef: how far a feature is from the mean of its predicted class, by the sign of the weights.
//!
//! Ling et al., "CADRef: Robust Out-of-Distribution Detection via Class-Aware Decoupled Relative
//! Feature Leveraging", 2025. Score: `e_p / s(l) + e_n / mean s` for features `h`, logits `l`, the
//! predicted class `y`, the mean `m_y` of the training features that are predicted as `y`, and the
//! head's weights `w_y`: `e_p` is the sum of `|h_d - m_yd|` over those features where `h_d - m_yd`
//! and `w_yd` have the same sign, divided by `|h|_1`, and `e_n` that over those where they have
//! opposite signs. `s` is a score of logits that is great in-distribution, `mean s` its mean over
//! the training images: an excess that speaks for the class counts less where the logits are sure.
//!
//! `decoupled` off is the paper's CARef, `|h - m_y|_1 / |h|_1`. A class that no training image is
//! predicted as has NaN scores in the authors' code; here the mean of all training images stands in,
//! with a warning. A feature of zeros is infinitely far, here the greatest `f32`. OpenOOD lacks it.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::{group_means, mean, plain, single};
use crate::numeric::reduce::{argmax, log_sum_exp, max_probability, maximum, softmax};
use crate::numeric::state;

/// What is read off the logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "snake_case")]
pub enum LogitScore {
    /// `log sum exp(l)`
    #[default]
    Energy,
    /// The greatest logit.
    MaxLogit,
    /// The greatest probability.
    Msp,
    /// One over the generalised entropy, with the exponent 0.1, of the most probable tenth of the
    /// classes, of at least ten.
    Gen,
}

impl LogitScore {
    fn of(self, logits: &[f32]) -> f64 {
        match self {
            Self::Energy => log_sum_exp(logits, 1.0),
            Self::MaxLogit => f64::from(maximum(logits)),
            Self::Msp => max_probability(logits, 1.0),
            Self::Gen => {
                let mut p = softmax(logits, 1.0);
                p.sort_unstable_by(|a, b| b.total_cmp(a));
                let most = (p.len() / 10).max(10);
                let term = |p: &f64| (p * (1.0 - p)).max(0.0).powf(0.1);
                1.0 / p.iter().take(most).map(term).sum::<f64>()
            }
        }
    }
}

/// Parameters of [`Cadref`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    logit_score: LogitScore,
    decoupled: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { logit_score: LogitScore::Energy, decoupled: true }
    }
}

/// CADRef.
pub struct Cadref {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// For each class.
    means: Vec<Vec<f64>>,
    /// The mean over the training images of the score of their logits.
    mean_score: f64,
}

impl Fitted {
    /// What is learned, and the classes that no training image is predicted as.
    fn new(features: Matrix<'_>, logits: Matrix<'_>, score: LogitScore) -> (Self, Vec<usize>) {
        let n_classes = logits.n_cols();
        let predicted: Vec<usize> = logits.rows().map(argmax).collect();
        let raw = plain(features);
        let means = group_means(&raw, n_classes, |i| Some(predicted[i]));
        let all = mean(&raw);
        let never = (0..n_classes).filter(|&class| means[class].is_none()).collect();
        let means = means.into_iter().map(|mean| mean.unwrap_or_else(|| all.clone())).collect();
        let sum: f64 = logits.rows().map(|logits| score.of(logits)).sum();
        (Self { means, mean_score: sum / logits.n_rows() as f64 }, never)
    }

    fn score(&self, h: &[f32], logits: &[f32], weight: Matrix<'_>, params: &Params) -> f32 {
        let class = argmax(logits);
        let (mut with, mut against, mut length, mut distance) = (0.0, 0.0, 0.0, 0.0);
        for ((&h, mean), &w) in h.iter().zip(&self.means[class]).zip(weight.row(class)) {
            let h = f64::from(h);
            let excess = h - mean;
            length += h.abs();
            distance += excess.abs();
            match excess * f64::from(w) {
                product if product > 0.0 => with += excess.abs(),
                product if product < 0.0 => against += excess.abs(),
                _ => {}
            }
        }
        let relative = |error: f64| match error {
            0.0 => 0.0,
            _ => error / length,
        };
        if !params.decoupled {
            return single(relative(distance));
        }
        let scaled = |error: f64, by: f64| match relative(error) {
            0.0 => 0.0,
            error => error / by,
        };
        let score = scaled(with, params.logit_score.of(logits)) + scaled(against, self.mean_score);
        // Infinities of both signs, of a feature of zeros whose logits are below zero.
        if score.is_nan() { f32::MAX } else { single(score) }
    }
}

impl Detector for Cadref {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "cadref",
            title: "CADRef",
            family: "features",
            summary: "the relative distance from the predicted class's mean, along and against its weights",
            paper: "Ling et al., CADRef: Robust Out-of-Distribution Detection via Class-Aware Decoupled Relative Feature Leveraging",
            year: 2025,
            url: "https://arxiv.org/abs/2503.00325",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "logit_score",
                    "`energy`, `max_logit`, `msp` or `gen`",
                    "the authors' code",
                )
                .sweep(["energy", "max_logit", "msp", "gen"]),
                Param::new("decoupled", "tell apart the signs of the weights", "the paper"),
            ],
            // The class means are (4, 1) and (1, 5), and the mean greatest logit is 3.5. The first
            // image has (2, 1) more than its class, the second (0, -2).
            example: Example::of_features(
                &[&[6.0, 2.0], &[1.0, 3.0]],
                &[0.098_214_29, 0.142_857_14],
            )
            .head(&[&[1.0, -1.0], &[-1.0, 1.0]], &[0.0, 0.0])
            .train(&[&[3.0, 1.0], &[5.0, 1.0], &[1.0, 3.0], &[1.0, 7.0]], &[0, 0, 1, 1])
            .param("logit_score", "max_logit"),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let logits = check::logits_of(data.train().logits()?, data.n_classes())?;
        let (fitted, never) = Fitted::new(features, logits, self.params.logit_score);
        if let Some(class) = never.first() {
            let others = match never.len() - 1 {
                0 => String::new(),
                1 => ", nor as 1 other".to_owned(),
                n => format!(", nor as {n} others"),
            };
            self.host.warn(&format!(
                "no training image is predicted as class {class}{others}; the mean of all stands in"
            ));
        }
        self.fitted = Some(fitted);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let of_fit = (fitted.means.len(), fitted.means.first().map_or(0, Vec::len));
        if (weight.n_rows(), weight.n_cols()) != of_fit {
            let (expected, got) = (of_fit, (weight.n_rows(), weight.n_cols()));
            return Err(Error::input(format!("head expected {expected:?} weights, got {got:?}")));
        }
        let features = check::features(batch.features()?, weight.n_cols())?;
        let logits = check::logits_of(batch.logits()?, weight.n_rows())?;
        for ((score, h), logits) in scores.iter_mut().zip(features.rows()).zip(logits.rows()) {
            *score = fitted.score(h, logits, weight, &self.params);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = |fitted: &Fitted| {
            let first = fitted.means.first().map(Vec::len);
            fitted.means.iter().all(|mean| Some(mean.len()) == first)
        };
        self.fitted = state::load(bytes)?.filter(whole);
        state::fitted(self.fitted.as_ref()).map(drop)
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
        let scores = |logit_score, decoupled| -> Vec<f32> {
            let (train, test) = (Rows::train(), Rows::test());
            let (fitted, never) = Fitted::new(train.features(), train.logits(), logit_score);
            assert!(never.is_empty());
            let params = Params { logit_score, decoupled };
            let rows = test.features();
            let rows = rows.rows().zip(test.logits().rows());
            rows.map(|(h, logits)| fitted.score(h, logits, weight, &params)).collect()
        };
        assert_scores(
            &scores(LogitScore::Energy, true),
            &[
                0.08666143985,
                0.09367836158,
                0.1387351014,
                0.09630901764,
                0.09514240208,
                0.1526653159,
            ],
        );
        assert_scores(
            &scores(LogitScore::MaxLogit, true),
            &[
                0.08835334306,
                0.09690810478,
                0.1451669235,
                0.09982620525,
                0.09743253978,
                0.1637677805,
            ],
        );
        assert_scores(
            &scores(LogitScore::Msp, true),
            &[0.4040494992, 0.4064753641, 0.5933130135, 0.4213917583, 0.4486810806, 0.5904256172],
        );
        assert_scores(
            &scores(LogitScore::Gen, true),
            &[0.7966485737, 0.8037799011, 1.149418222, 0.8365267566, 0.889456112, 1.1335686],
        );
        assert_scores(
            &scores(LogitScore::Energy, false),
            &[0.3759233316, 0.359274447, 0.5086658551, 0.3691316654, 0.4109472719, 0.487369705],
        );
    }

    #[test]
    fn the_mean_of_all_stands_in_for_a_class_that_is_never_predicted() {
        let features = [1.0, 3.0];
        let logits = [1.0, 0.0, 5.0, 0.0];
        let features = Matrix::new(&features, 2, 1).unwrap();
        let logits = Matrix::new(&logits, 2, 2).unwrap();
        let (fitted, never) = Fitted::new(features, logits, LogitScore::MaxLogit);
        assert_eq!(never, [1]);
        assert_eq!(fitted.means, [[2.0], [2.0]]);
        assert_eq!(fitted.mean_score, 3.0);
    }
}
