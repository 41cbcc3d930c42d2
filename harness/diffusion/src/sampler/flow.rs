//! The probability-flow ODE of the variance-preserving diffusion.
//!
//! Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
//! equations 13 and 33: with `beta(u)` growing linearly from `n beta_first` to `n beta_last` while
//! the time `u` goes from 0 to 1,
//!
//! ```text
//! dx/du = -beta(u) x / 2 + beta(u) eps(x, u) / (2 sigma(u))
//! sigma(u)^2 = 1 - exp(-n (u^2 (beta_last - beta_first) / 2 + u beta_first))
//! ```
//!
//! The reference's conventions: state `s` of a schedule of `n` steps lies at time `(s + 1) / n`,
//! and the network is asked about `u (n - 1)`. Everything about time is computed in `f32`, as the
//! reference does, whose rounding shows near the clean end.

use candle_core::{Result, Tensor};

use crate::schedule::Schedule;

/// Where the ODE ends in place of 0, where `sigma` is 0 and nothing can be divided by it.
const FIRST_TIME: f64 = 1e-3;

/// The ODE of a schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    beta_first: f32,
    beta_last: f32,
    n_steps: usize,
}

impl Flow {
    /// # Errors
    /// A schedule without steps.
    pub(super) fn new(schedule: &Schedule) -> Result<Self> {
        match schedule.betas() {
            [beta_first, .., beta_last] => Ok(Self {
                beta_first: *beta_first,
                beta_last: *beta_last,
                n_steps: schedule.steps(),
            }),
            _ => candle_core::bail!("schedule expected two steps at least, got fewer"),
        }
    }

    /// The time of state `s`.
    pub(super) fn time(&self, s: i64) -> f32 {
        ((s + 1) as f64 / self.n_steps as f64) as f32
    }

    /// The time of state `s`, as an end of an interval of integration: 0.001 at least.
    pub(super) fn end(&self, s: i64) -> f64 {
        ((s + 1) as f64 / self.n_steps as f64).max(FIRST_TIME)
    }

    /// `dx/du` at time `u`; at 0 that of 0.001, where the reference divides by zero.
    pub(super) fn derivative(
        &self,
        x: &Tensor,
        u: f32,
        eps: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let u = if u == 0.0 { FIRST_TIME as f32 } else { u };
        let n = self.n_steps as f32;
        let growth = self.beta_last - self.beta_first;
        let beta = (self.beta_first + u * growth) * n;
        let log_mean = (-0.25 * (u * u) * growth - 0.5 * u * self.beta_first) * n;
        let sigma = (1.0 - (2.0 * log_mean).exp()).sqrt();
        let eps = eps(x, f64::from(u * (n - 1.0)))?;
        (x * f64::from(-0.5 * beta))? + (eps * f64::from(0.5 * beta / sigma))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    #[test]
    fn times_are_those_of_the_reference() {
        let flow = Flow::new(&Schedule::new(&ScheduleConfig::default())).unwrap();
        assert_eq!([flow.time(999), flow.time(499), flow.time(-1)], [1.0, 0.5, 0.0]);
        assert_eq!(flow.end(999), 1.0);
        assert_eq!(flow.end(119), 0.12);
        assert_eq!(flow.end(-1), 1e-3);
    }

    #[test]
    fn the_signal_is_that_of_the_schedule() {
        // exp(2 log_mean) is alpha_bar[s] up to the step's width.
        let schedule = Schedule::new(&ScheduleConfig::default());
        let flow = Flow::new(&schedule).unwrap();
        for s in [19, 239, 499, 999] {
            let u = f64::from(flow.time(s));
            let (first, last) = (f64::from(flow.beta_first), f64::from(flow.beta_last));
            let signal = (-1000.0 * (0.5 * u * u * (last - first) + u * first)).exp();
            let expected = f64::from(schedule.alpha_bar()[s as usize]);
            assert!((signal / expected - 1.0).abs() < 0.1, "{s}: {signal} {expected}");
        }
    }
}
