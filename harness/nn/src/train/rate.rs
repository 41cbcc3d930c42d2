//! Learning rates by the step: a linear rise, and then one of the ways down.

use std::f64::consts::PI;

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// At the end of the rise.
    pub base: f64,
    /// Steps over which it rises from 0 in a line; step 0 has the rate 0 then.
    pub warmup: u64,
    pub fall: Fall,
}

/// What follows the rise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fall {
    /// It stays.
    None,
    /// Multiplied by `factor` each time that `every` steps have passed since the rise.
    Steps { every: u64, factor: f64 },
    /// Half a cosine over the last `length` of `total` steps, down to 0; none for 0.
    End { total: u64, length: u64 },
    /// Half a cosine over all of `total` steps, down to the rate `last`.
    Cosine { total: u64, last: f64 },
}

impl Rates {
    /// The rate of a step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.base * self.end(step, step as f64 / self.warmup as f64);
        }
        match self.fall {
            Fall::None => self.base,
            Fall::Steps { every, factor } => {
                let times = (step - self.warmup) / every.max(1);
                self.base * factor.powf(times as f64)
            }
            Fall::End { .. } => self.base * self.end(step, 1.0),
            Fall::Cosine { total, last } => {
                let done = step as f64 / total.max(1) as f64;
                last + (self.base - last) * 0.5 * (1.0 + (PI * done).cos())
            }
        }
    }

    /// `rise`, and the fall at the end where a short training has both at once.
    fn end(&self, step: u64, rise: f64) -> f64 {
        let Fall::End { total, length } = self.fall else { return rise };
        let left = total.saturating_sub(step) as f64;
        let fall = if length == 0 { 1.0 } else { (left / length as f64).min(1.0) };
        rise * 0.5 * (1.0 - (PI * fall).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(warmup: u64, fall: Fall, steps: &[u64]) -> Vec<f64> {
        let rates = Rates { base: 0.1, warmup, fall };
        steps.iter().map(|&step| rates.at(step)).collect()
    }

    #[track_caller]
    fn check(got: Vec<f64>, expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "expected {expected}, got {got}");
        }
    }

    #[test]
    fn it_rises_from_nothing_and_stays() {
        check(at(4, Fall::None, &[0, 1, 3, 4, 1000]), &[0.0, 0.025, 0.075, 0.1, 0.1]);
        check(at(0, Fall::None, &[0]), &[0.1]);
    }

    #[test]
    fn it_falls_in_steps_after_the_rise() {
        let fall = Fall::Steps { every: 10, factor: 0.7 };
        check(at(5, fall, &[4, 5, 14, 15, 25]), &[0.08, 0.1, 0.1, 0.07, 0.049]);
    }

    #[test]
    fn it_falls_at_the_end() {
        let fall = Fall::End { total: 100, length: 20 };
        check(at(10, fall, &[0, 5, 50, 80, 90, 100]), &[0.0, 0.05, 0.1, 0.1, 0.05, 0.0]);
    }

    #[test]
    fn it_follows_a_cosine_to_the_last_rate() {
        // OpenOOD: cosine_annealing(step, total, 1, 1e-6 / lr) times lr.
        let fall = Fall::Cosine { total: 100, last: 1e-6 };
        check(at(0, fall, &[0, 50, 100]), &[0.1, 0.5 * (0.1 + 1e-6), 1e-6]);
    }
}
