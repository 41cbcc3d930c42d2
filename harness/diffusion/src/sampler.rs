//! Samplers: a *transfer* (how a state moves along a given noise) times a *gradient* (which
//! noise to move along), the factorisation of pseudo-numerical methods.
//!
//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022. DDIM is the
//! transfer with the plain gradient; PNDM2 and PNDM4 take linear multistep gradients.
//!
//! **The reference's index convention** is kept: the state at step `t` has the signal
//! `alpha_bar[t + 1]`, the network is asked at `t`, and the clean end of a trajectory is `t = -1`,
//! that is `alpha_bar[0]`. The noise is added at `t`, one step earlier than the state is read.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// A sampler by its published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// Song et al., "Denoising Diffusion Implicit Models", 2021, deterministic.
    #[serde(rename = "DDIM")]
    Ddim,
    /// Pseudo linear multistep of order 2.
    #[serde(rename = "PNDM2")]
    Pndm2,
    /// Pseudo linear multistep of order 4.
    #[serde(rename = "PNDM4")]
    Pndm4,
}

impl Method {
    pub const ALL: [Self; 3] = [Self::Ddim, Self::Pndm2, Self::Pndm4];

    fn gradient(self) -> Gradient {
        match self {
            Self::Ddim => Gradient::Euler,
            Self::Pndm2 => Gradient::Multistep2,
            Self::Pndm4 => Gradient::Multistep4,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddim => "DDIM",
            Self::Pndm2 => "PNDM2",
            Self::Pndm4 => "PNDM4",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|method| method.to_string().eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("sampler expected one of DDIM, PNDM2, PNDM4, got `{name}`"))
    }
}

/// How the noises of the present and the past steps make the one to move along.
#[derive(Clone, Copy)]
enum Gradient {
    Euler,
    /// Adams-Bashforth of order 2, begun by one improved Euler step.
    Multistep2,
    /// Adams-Bashforth of order 4, begun by three Runge-Kutta steps.
    Multistep4,
}

/// The steps that a trajectory goes through, the last one included.
///
/// From `start` towards `end` in strides of `schedule.steps() / sample_steps`; the last stride is
/// shorter where the distance is no multiple of it. Equal ends give no step.
pub fn trajectory(schedule: &Schedule, sample_steps: usize, start: i64, end: i64) -> Vec<i64> {
    let stride = (schedule.steps() / sample_steps.max(1)).max(1) as i64;
    let mut steps = vec![start];
    let mut t = start;
    while t != end {
        let left = (end - t).abs();
        t += (end - t).signum() * stride.min(left);
        steps.push(t);
    }
    steps
}

/// A sampler over a schedule.
pub struct Sampler<'a> {
    pub schedule: &'a Schedule,
    pub method: Method,
    /// How many steps the whole schedule would be sampled with.
    pub sample_steps: usize,
}

impl Sampler<'_> {
    /// How often `eps` is asked on the way from `start` to `end`.
    pub fn evaluations(&self, start: i64, end: i64) -> usize {
        let steps = trajectory(self.schedule, self.sample_steps, start, end).len() - 1;
        match self.method.gradient() {
            Gradient::Euler => steps,
            Gradient::Multistep2 => steps + steps.min(1),
            Gradient::Multistep4 => steps + 3 * steps.min(3),
        }
    }

    /// Moves `x` from step `start` to step `end`, down (denoising) or up (encoding), and returns
    /// every state on the way, the first one included.
    ///
    /// `eps(x, t)` is asked for the noise in `x` at step `t`, which lies between two steps inside
    /// of a Runge-Kutta step.
    ///
    /// # Errors
    /// A step outside of `-1 ..= steps - 2`, or what `eps` says.
    pub fn states(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        mut eps: impl FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut states = vec![x.clone()];
        self.walk(x, start, end, &mut eps, |state| states.push(state.clone()))?;
        Ok(states)
    }

    /// The last of [`Sampler::states`], without keeping the others.
    pub fn run(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        mut eps: impl FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.walk(x, start, end, &mut eps, |_| ())
    }

    fn walk(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        eps: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
        mut visit: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        let mut x = x.clone();
        let mut past = VecDeque::new();
        for pair in trajectory(self.schedule, self.sample_steps, start, end).windows(2) {
            let (t, next) = (pair[0] as f64, pair[1] as f64);
            let noise = self.gradient(&x, t, next, &mut past, eps)?;
            x = self.transfer(&x, &noise, t, next)?.detach();
            visit(&x);
        }
        Ok(x)
    }

    /// The noise to move along from `t` to `next`; the newest of `past` comes first.
    fn gradient(
        &self,
        x: &Tensor,
        t: f64,
        next: f64,
        past: &mut VecDeque<Tensor>,
        eps: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let e1 = eps(x, t)?;
        let noise = match self.method.gradient() {
            Gradient::Euler => e1.clone(),
            Gradient::Multistep2 => match past.front() {
                Some(previous) => (((&e1 * 3.0)? - previous)? * 0.5)?,
                None => {
                    let e2 = eps(&self.transfer(x, &e1, t, next)?, next)?;
                    ((&e1 + e2)? * 0.5)?
                }
            },
            Gradient::Multistep4 if past.len() >= 3 => {
                let newer = ((&e1 * 55.0)? - (&past[0] * 59.0)?)?;
                let older = ((&past[1] * 37.0)? - (&past[2] * 9.0)?)?;
                ((newer + older)? * (1.0 / 24.0))?
            }
            Gradient::Multistep4 => {
                let middle = 0.5 * (t + next);
                let e2 = eps(&self.transfer(x, &e1, t, middle)?, middle)?;
                let e3 = eps(&self.transfer(x, &e2, t, middle)?, middle)?;
                let e4 = eps(&self.transfer(x, &e3, t, next)?, next)?;
                ((((&e1 + (e2 * 2.0)?)? + (e3 * 2.0)?)? + e4)? * (1.0 / 6.0))?
            }
        };
        past.push_front(e1);
        past.truncate(3);
        Ok(noise)
    }

    /// The DDIM transfer from `t` to `next` along `noise`.
    fn transfer(&self, x: &Tensor, noise: &Tensor, t: f64, next: f64) -> Result<Tensor> {
        let (a, b) = (self.signal(t)?, self.signal(next)?);
        let along_x = 1.0 / (a.sqrt() * (a.sqrt() + b.sqrt()));
        let along_noise = 1.0 / (a.sqrt() * (((1.0 - b) * a).sqrt() + ((1.0 - a) * b).sqrt()));
        let delta = ((x * along_x)? - (noise * along_noise)?)?;
        x + (delta * (b - a))?
    }

    /// `alpha_bar[t + 1]`; a step between two is rounded towards zero, as the reference's cast does.
    fn signal(&self, t: f64) -> Result<f64> {
        let index = t.trunc() as i64 + 1;
        match usize::try_from(index).ok().and_then(|i| self.schedule.alpha_bar().get(i)) {
            Some(&alpha_bar) => Ok(f64::from(alpha_bar)),
            None => {
                let last = self.schedule.steps() as i64 - 2;
                candle_core::bail!("step expected between -1 and {last}, got {t}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    fn schedule() -> Schedule {
        Schedule::new(&ScheduleConfig::default())
    }

    #[test]
    fn the_last_stride_may_be_shorter() {
        assert_eq!(trajectory(&schedule(), 50, 119, -1), [119, 99, 79, 59, 39, 19, -1]);
        assert_eq!(trajectory(&schedule(), 50, 50, -1), [50, 30, 10, -1]);
        assert_eq!(trajectory(&schedule(), 20, -1, 99), [-1, 49, 99]);
        assert_eq!(trajectory(&schedule(), 50, -1, -1), [-1]);
    }

    #[test]
    fn a_perfect_model_gives_the_image_back() {
        let device = candle_core::Device::Cpu;
        let clean = Tensor::full(0.5f32, (1, 3, 2, 2), &device).unwrap();
        let noise = Tensor::full(-1.25f32, (1, 3, 2, 2), &device).unwrap();
        let schedule = schedule();
        // The state at t has the signal of t + 1.
        let x = schedule.diffuse(&clean, &[360], &noise).unwrap();
        for method in Method::ALL {
            let sampler = Sampler { schedule: &schedule, method, sample_steps: 50 };
            let end = sampler.run(&x, 359, -1, |_, _| Ok(noise.clone())).unwrap();
            let a0 = f64::from(schedule.alpha_bar()[0]);
            let expected = a0.sqrt() * 0.5 - (1.0 - a0).sqrt() * 1.25;
            let got = end.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
            assert!((f64::from(got) - expected).abs() < 1e-5, "{method}: {got} {expected}");
        }
    }

    #[test]
    fn evaluations_are_counted_beforehand() {
        let schedule = schedule();
        let x = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &candle_core::Device::Cpu);
        let x = x.unwrap();
        for method in Method::ALL {
            let sampler = Sampler { schedule: &schedule, method, sample_steps: 50 };
            for start in [-1, 0, 39, 119] {
                let mut asked = 0;
                let count = |x: &Tensor, _| {
                    asked += 1;
                    Ok(x.clone())
                };
                sampler.run(&x, start, -1, count).unwrap();
                assert_eq!(sampler.evaluations(start, -1), asked, "{method} from {start}");
            }
        }
    }

    #[test]
    fn a_step_outside_of_the_schedule_is_an_error() {
        let x = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &candle_core::Device::Cpu);
        let schedule = schedule();
        let sampler = Sampler { schedule: &schedule, method: Method::Ddim, sample_steps: 50 };
        let err = sampler.run(&x.unwrap(), 999, -1, |x, _| Ok(x.clone())).unwrap_err();
        assert!(err.to_string().contains("between -1 and 998, got 999"), "{err}");
    }
}
