//! Temperature scaling.
//!
//! Guo et al., "On Calibration of Modern Neural Networks", 2017. Score: `-max_c softmax(l / T)_c`,
//! where `T` makes the labels of the validation images most likely.
//!
//! OpenOOD looks for `T` with 50 steps of L-BFGS from 1.5, each a hundredth of a whole one, which
//! end on the way to the best one. That is the default here, so that published numbers can be
//! compared; `solver` may be `exact` instead. Where all validation images are classified correctly, a
//! smaller `T` is always better, and nothing keeps L-BFGS from stepping over 0 to a negative `T`, which
//! turns the logits round: the scores are then those of OpenOOD, worth little, with a warning. `exact`
//! refuses validation images that no `T` is best for.
//!
//! Probabilities are summed in single precision by default, as for `msp`.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::reduce::{log_sum_exp, max_probability, max_probability_single, softmax};
use crate::numeric::{check, state};

/// How the temperature is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Solver {
    /// 50 short steps of L-BFGS from 1.5.
    Lbfgs,
    /// The temperature of greatest likelihood.
    Exact,
}

/// Parameters of [`TempScaling`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    solver: Solver,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { solver: Solver::Lbfgs, double_precision: false }
    }
}

impl Params {
    fn score(&self, logits: &[f32], temperature: f64) -> f32 {
        if temperature < 0.0 {
            let turned: Vec<f32> = logits.iter().map(|logit| -logit).collect();
            return self.score(&turned, -temperature);
        }
        if self.double_precision {
            -max_probability(logits, temperature) as f32
        } else {
            -max_probability_single(logits, temperature as f32)
        }
    }
}

/// Temperature scaling.
pub struct TempScaling {
    params: Params,
    host: Host,
    temperature: Option<f64>,
}

impl Detector for TempScaling {
    type Params = Params;

    fn info() -> Info {
        // Of three images with logits (2, 0) two are of class 0: the best probability of it is
        // 2/3, at T = 2 / ln 2.
        let mut example =
            Example::of_logits(&[&[0.0, 0.0], &[4.0, 0.0]], &[-0.5, -0.8]).param("solver", "exact");
        example.0.val = ExampleSplit {
            logits: vec![vec![2.0, 0.0]; 3],
            labels: vec![0, 0, 1],
            ..ExampleSplit::default()
        };
        Info {
            id: "temp_scaling",
            title: "Temperature scaling",
            family: "logits",
            summary: "the probability of the predicted class at the best temperature, negated",
            paper: "Guo et al., On Calibration of Modern Neural Networks",
            year: 2017,
            url: "https://arxiv.org/abs/1706.04599",
            needs: Needs::LOGITS.and(Needs::LABELS).and(Needs::VAL),
            params: vec![
                Param::new(
                    "solver",
                    "how the temperature is found: `lbfgs`, 50 short steps from 1.5, or `exact`",
                    "OpenOOD v1.5",
                ),
                Param::new(
                    "double_precision",
                    "sum in double precision, which tells apart what single precision rounds to 1",
                    "OpenOOD v1.5 sums in single precision",
                ),
            ],
            example,
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { params, host, temperature: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let logits = check::logits(data.val().logits()?)?;
        if logits.n_rows() == 0 {
            return Err(Error::input("there are no validation images"));
        }
        let labels = check::classes(data.val().labels()?, logits.n_cols())?;
        let likelihood = Likelihood { logits, labels: &labels };
        let temperature = match self.params.solver {
            Solver::Lbfgs => likelihood.lbfgs(),
            Solver::Exact => likelihood.exact()?,
        };
        if !(temperature as f32).is_normal() {
            return Err(Error::new(format!(
                "temperature expected a finite number other than 0, got `{temperature}`"
            )));
        }
        if temperature < 0.0 {
            self.host.warn(&format!(
                "the fitted temperature is {temperature:.4}, and a negative one turns the logits \
                 round: the validation images may all be classified correctly; \
                 `temp_scaling.solver=exact` tells"
            ));
        }
        self.temperature = Some(temperature);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let temperature = *state::fitted(self.temperature.as_ref())?;
        for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
            *score = self.params.score(logits, temperature);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.temperature.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.temperature = state::load(bytes)?;
        Ok(())
    }
}

/// The negative logarithm of the likelihood of labels.
struct Likelihood<'a> {
    logits: Matrix<'a>,
    labels: &'a [usize],
}

impl Likelihood<'_> {
    /// The mean over images at the inverse temperature, and its derivative by that.
    fn at(&self, inverse: f64) -> (f64, f64) {
        /// Images of one task. Sums of tasks are added in order, so that the result does not
        /// depend on threads.
        const ROWS: usize = 1024;
        let of_image = |i: usize| {
            let (logits, own) = (self.logits.row(i), f64::from(self.logits.row(i)[self.labels[i]]));
            let temperature = 1.0 / inverse;
            let mean: f64 = softmax(logits, temperature)
                .into_iter()
                .zip(logits)
                .map(|(p, &logit)| p * f64::from(logit))
                .sum();
            (inverse * (log_sum_exp(logits, temperature) - own), mean - own)
        };
        let n = self.logits.n_rows();
        let sums: Vec<(f64, f64)> = (0..n.div_ceil(ROWS))
            .into_par_iter()
            .map(|task| {
                let images = task * ROWS..n.min((task + 1) * ROWS);
                images.map(of_image).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
            })
            .collect();
        let sum = sums.into_iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        (sum.0 / n as f64, sum.1 / n as f64)
    }

    /// What PyTorch's `LBFGS(lr=0.01, max_iter=50)` makes of a temperature of 1.5, in single
    /// precision as there. With one parameter the direction is the gradient over the latest
    /// difference quotient of gradients.
    fn lbfgs(&self) -> f64 {
        const STEPS: usize = 50;
        const RATE: f64 = 0.01;
        const GRADIENT_TOLERANCE: f64 = 1e-7;
        const CHANGE_TOLERANCE: f64 = 1e-9;
        let single = |x: f64| f64::from(x as f32);
        let at = |temperature: f64| {
            let (loss, by_inverse) = self.at(1.0 / temperature);
            (single(loss), single(-by_inverse / (temperature * temperature)))
        };
        let mut temperature = 1.5;
        let (mut loss, mut gradient) = at(temperature);
        if gradient.abs() <= GRADIENT_TOLERANCE {
            return temperature;
        }
        let mut rate = RATE * (1.0 / gradient.abs()).min(1.0);
        let mut direction = -gradient;
        let mut curvature = 1.0;
        for step in 1..=STEPS {
            if gradient * direction > -CHANGE_TOLERANCE {
                break;
            }
            let moved = single(rate * direction);
            temperature = single(temperature + moved);
            if step == STEPS {
                break;
            }
            let (last_loss, last_gradient) = (loss, gradient);
            (loss, gradient) = at(temperature);
            let stopped = gradient.abs() <= GRADIENT_TOLERANCE
                || moved.abs() <= CHANGE_TOLERANCE
                || (loss - last_loss).abs() < CHANGE_TOLERANCE;
            // A temperature of 0 or below goes nowhere from here.
            if stopped || !gradient.is_finite() {
                break;
            }
            let difference = single(gradient - last_gradient);
            if difference * moved > 1e-10 {
                curvature = difference / moved;
            }
            direction = -gradient / curvature;
            rate = RATE;
        }
        temperature
    }

    /// The temperature of greatest likelihood. The derivative by the inverse temperature grows
    /// with it, so that its root is found by halving.
    fn exact(&self) -> Result<f64> {
        let none = |why: &str| {
            Error::input(format!("no temperature is best for validation images that are {why}"))
        };
        let slope = |inverse: f64| self.at(inverse).1;
        let [mut low, mut high] = [1.0; 2];
        while slope(low) > 0.0 {
            low /= 2.0;
            if low < 1e-6 {
                return Err(none("classified no better than by chance"));
            }
        }
        while slope(high) <= 0.0 {
            high *= 2.0;
            if high > 1e6 {
                return Err(none("all classified correctly"));
            }
        }
        while high - low > 1e-12 * high {
            let middle = 0.5 * (low + high);
            *(if slope(middle) > 0.0 { &mut high } else { &mut low }) = middle;
        }
        Ok(2.0 / (low + high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n_right` of `n` images with logits `(2, 0)` are of class 0.
    fn temperature(n_right: usize, n: usize, solver: Solver) -> Result<f64> {
        let values = [2.0, 0.0].repeat(n);
        let labels: Vec<usize> = (0..n).map(|i| usize::from(i >= n_right)).collect();
        let logits = Matrix::new(&values, n, 2)?;
        let likelihood = Likelihood { logits, labels: &labels };
        match solver {
            Solver::Lbfgs => Ok(likelihood.lbfgs()),
            Solver::Exact => likelihood.exact(),
        }
    }

    #[test]
    fn the_exact_temperature_gives_the_frequency_of_the_label() {
        for (n_right, n) in [(2, 3), (9, 10), (51, 100)] {
            let odds = n_right as f64 / (n - n_right) as f64;
            let got = temperature(n_right, n, Solver::Exact).unwrap();
            assert!((got / (2.0 / odds.ln()) - 1.0).abs() < 1e-9, "{n_right} of {n}: {got}");
        }
    }

    #[test]
    fn where_no_temperature_is_best_the_error_says_why() {
        let message = |n_right| temperature(n_right, 4, Solver::Exact).unwrap_err().to_string();
        assert!(message(4).ends_with("all classified correctly"));
        assert!(message(2).ends_with("no better than by chance"));
        assert!(message(0).ends_with("no better than by chance"));
    }

    #[test]
    fn a_negative_temperature_turns_the_logits_round() {
        for double_precision in [false, true] {
            let params = Params { double_precision, ..Params::default() };
            // softmax((100, 0) / -50) = (1, e^2) / (1 + e^2)
            let expected = -1.0 / (1.0 + (-2f32).exp());
            assert!((params.score(&[100.0, 0.0], -50.0) - expected).abs() < 1e-6);
            assert!(params.score(&[1e30, -1e30], -1e-3).is_finite());
        }
    }

    /// Of `torch.optim.LBFGS` in PyTorch 2.15, on the CPU. Near the best temperature, 0.910 for the
    /// second, it ends with the first step that does not change the loss in single precision, which
    /// is up to the order of its sums.
    #[test]
    fn lbfgs_stops_where_pytorchs_does() {
        for (n_right, n, expected, tolerance) in [
            (2, 3, 1.697_991_251_945_495_6, 1e-6),
            (9, 10, 0.943_744_301_795_959_5, 2e-3),
            (1, 4, 1.840_604_662_895_202_6, 1e-6),
            (4, 4, 1.404_556_632_041_931_2, 1e-6),
        ] {
            let got = temperature(n_right, n, Solver::Lbfgs).unwrap();
            assert!((got - expected).abs() < tolerance, "{n_right} of {n}: {got}, not {expected}");
        }
    }
}
