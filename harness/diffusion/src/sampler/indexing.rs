//! Which signal a state has, and what the network is asked about it.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// What the state at step `s` of a trajectory means to the DDIM transfer.
///
/// The two differ in the step that the network is told. It was trained to see the signal
/// `alpha_bar[t]` together with `t`.
///
/// The probability-flow methods (NDM1, NDM4, PF) know times instead, `(s + 1) / n` for a schedule
/// of `n` steps. The signal there is that of `alpha_bar[s]` and the network is asked about
/// `s` or thereabouts, so they have no need of the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Indexing {
    /// As the reference: the signal of state `s` is `alpha_bar[s + 1]`, the network is asked
    /// about `s`, one step too early, and the clean end, `s = -1`, still has the little noise of
    /// `alpha_bar[0]`. An image that was diffused to step `t` is the state `t - 1`.
    #[default]
    Reference,
    /// The signal of state `s` is `alpha_bar[s]`, the network is asked about `s`, and the end,
    /// `s = -1`, is clean. An image that was diffused to step `t` is the state `t`.
    ///
    /// Between two steps the signal is interpolated, where the reference rounds. The network is
    /// not asked about steps before 0: encoding begins with the question about 0.
    Aligned,
}

impl Indexing {
    /// The state that an image is in after [`Schedule::diffuse`] took it to step `t`.
    pub fn state_of(self, t: usize) -> i64 {
        match self {
            Self::Reference => t as i64 - 1,
            Self::Aligned => t as i64,
        }
    }

    /// The last state of a schedule.
    pub(super) fn last(self, schedule: &Schedule) -> i64 {
        match self {
            Self::Reference => schedule.steps() as i64 - 2,
            Self::Aligned => schedule.steps() as i64 - 1,
        }
    }

    /// The step that the network is told in state `s`.
    pub(super) fn asked(self, s: f64) -> f64 {
        match self {
            Self::Reference => s,
            Self::Aligned => s.max(0.0),
        }
    }

    /// The share of the image in the variance of state `s`.
    ///
    /// # Errors
    /// A state outside of the schedule.
    pub(super) fn signal(self, schedule: &Schedule, s: f64) -> Result<f64> {
        let at = |index: i64| match usize::try_from(index) {
            Ok(index) => schedule.alpha_bar().get(index).map(|&signal| f64::from(signal)),
            // The clean end.
            Err(_) => (index == -1 && self == Self::Aligned).then_some(1.0),
        };
        let signal = match self {
            // The reference's cast rounds towards zero.
            Self::Reference => at(s.trunc() as i64 + 1),
            Self::Aligned => {
                let (below, share) = (s.floor(), s - s.floor());
                let ends = (at(below as i64), at(s.ceil() as i64));
                match ends {
                    (Some(a), Some(b)) => Some(a + share * (b - a)),
                    _ => None,
                }
            }
        };
        match signal {
            Some(signal) => Ok(signal),
            None => {
                candle_core::bail!("step expected between -1 and {}, got {s}", self.last(schedule))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    #[test]
    fn an_image_is_read_with_the_noise_that_it_was_given() {
        let schedule = Schedule::new(&ScheduleConfig::default());
        for indexing in [Indexing::Reference, Indexing::Aligned] {
            for t in [0, 1, 360, 999] {
                let read = indexing.signal(&schedule, indexing.state_of(t) as f64).unwrap();
                assert_eq!(read, f64::from(schedule.alpha_bar()[t]), "{indexing:?} {t}");
            }
            assert_eq!(indexing.state_of(999), indexing.last(&schedule));
            let err = indexing.signal(&schedule, 1000.0).unwrap_err().to_string();
            assert!(err.contains("between -1 and 99"), "{err}");
            assert!(indexing.signal(&schedule, -2.0).is_err());
        }
    }

    #[test]
    fn between_steps_one_rounds_and_the_other_interpolates() {
        let schedule = Schedule::new(&ScheduleConfig::default());
        let alpha_bar = |t: usize| f64::from(schedule.alpha_bar()[t]);
        let signal = |indexing: Indexing, s| indexing.signal(&schedule, s).unwrap();
        assert_eq!(signal(Indexing::Reference, 9.5), alpha_bar(10));
        assert_eq!(signal(Indexing::Reference, -0.5), alpha_bar(1));
        let middle = 0.5 * (alpha_bar(9) + alpha_bar(10));
        assert!((signal(Indexing::Aligned, 9.5) - middle).abs() < 1e-12);
        assert_eq!(signal(Indexing::Aligned, -1.0), 1.0);
        assert!((signal(Indexing::Aligned, -0.5) - 0.5 * (1.0 + alpha_bar(0))).abs() < 1e-12);
    }
}
