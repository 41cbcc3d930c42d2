//! Noise schedules.
//!
//! `betas` are computed in `f64` and rounded to `f32`; `alpha_bar[t]`, the running product of
//! `1 - betas`, starts from the rounded values and is kept in `f64`, as PyTorch does on a CPU. Both
//! are the reference's numbers, bit for bit. A schedule that was published is never changed;
//! another one is added.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// The shape of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Betas evenly spaced.
    Linear,
    /// Square roots of betas evenly spaced.
    Quad,
    /// Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021.
    Cosine,
}

/// A schedule as it is written in a file; names are those of the reference's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    #[serde(rename = "type")]
    pub kind: Kind,
    /// First and last beta; unused by `cosine`.
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    /// Number of steps.
    #[serde(default = "diffusion_step")]
    pub diffusion_step: usize,
}

fn beta_start() -> f64 {
    1e-4
}

fn beta_end() -> f64 {
    0.02
}

fn diffusion_step() -> usize {
    1000
}

impl Default for ScheduleConfig {
    /// The linear schedule of DDPM: 1000 steps from 1e-4 to 0.02.
    fn default() -> Self {
        Self {
            kind: Kind::Linear,
            beta_start: beta_start(),
            beta_end: beta_end(),
            diffusion_step: diffusion_step(),
        }
    }
}

/// A configuration that makes no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {message}")]
pub struct ScheduleError {
    /// The key that is wrong.
    pub key: &'static str,
    /// What was expected, and what it says.
    pub message: String,
}

impl ScheduleConfig {
    /// The longest schedule that is taken: it is held in memory, and a file says how long it is.
    const MOST_STEPS: usize = 1_000_000;

    /// Whether the configuration makes a schedule.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> std::result::Result<(), ScheduleError> {
        if !(2..=Self::MOST_STEPS).contains(&self.diffusion_step) {
            let (most, got) = (Self::MOST_STEPS, self.diffusion_step);
            let message = format!("expected 2 to {most}, got {got}");
            return Err(ScheduleError { key: "diffusion_step", message });
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(ScheduleError {
                    key,
                    message: format!("expected between 0 and 1, got {beta}"),
                });
            }
        }
        Ok(())
    }
}

/// The betas of a schedule and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    betas: Vec<f32>,
    alpha_bar: Vec<f32>,
}

impl Schedule {
    pub fn new(config: &ScheduleConfig) -> Self {
        let steps = config.diffusion_step;
        let betas: Vec<f32> = match config.kind {
            Kind::Linear => linspace(config.beta_start, config.beta_end, steps)
                .map(|beta| beta as f32)
                .collect(),
            Kind::Quad => linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), steps)
                .map(|root| (root * root) as f32)
                .collect(),
            Kind::Cosine => {
                let alpha_bar = |i: usize| {
                    let t = i as f64 / steps as f64;
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                let beta = |i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999);
                (0..steps).map(|i| beta(i) as f32).collect()
            }
        };
        let alpha_bar = betas
            .iter()
            .scan(1.0f64, |product, beta| {
                *product *= f64::from(1.0 - beta);
                Some(*product as f32)
            })
            .collect();
        Self { betas, alpha_bar }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// `beta_t` for `t` from 0.
    pub fn betas(&self) -> &[f32] {
        &self.betas
    }

    /// Whether the betas are evenly spaced, as far as `f32` can tell.
    pub fn is_linear(&self) -> bool {
        let (Some(&first), Some(&last)) = (self.betas.first(), self.betas.last()) else {
            return true;
        };
        let even = linspace(first.into(), last.into(), self.betas.len());
        let off = |(beta, even): (&f32, f64)| (f64::from(*beta) - even).abs();
        self.betas.iter().zip(even).map(off).all(|off| off <= 1e-6 * f64::from(last.max(first)))
    }

    /// The running product of `1 - beta`, for `t` from 0.
    pub fn alpha_bar(&self) -> &[f32] {
        &self.alpha_bar
    }

    /// Adds noise: `sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise`, with a step for each image.
    ///
    /// # Shapes
    /// - `xs`, `noise`: `[batch, channels, height, width]`
    /// - `t`: one step for each image
    ///
    /// # Errors
    /// A step outside of the schedule.
    pub fn diffuse(&self, xs: &Tensor, t: &[usize], noise: &Tensor) -> Result<Tensor> {
        let (signal, scale) = self.factors(t)?;
        let per_image = |values| Tensor::from_vec(values, (t.len(), 1, 1, 1), xs.device());
        xs.broadcast_mul(&per_image(signal)?)? + noise.broadcast_mul(&per_image(scale)?)?
    }

    /// What an image and its noise are multiplied with, for each step.
    pub(crate) fn factors(&self, t: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
        let of_step = |&t: &usize| match self.alpha_bar.get(t) {
            Some(&alpha_bar) => Ok((alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())),
            None => candle_core::bail!("step expected below {}, got {t}", self.steps()),
        };
        t.iter().map(of_step).collect()
    }
}

/// numpy's `linspace`: `n` values from `start` to `end`, both included.
fn linspace(start: f64, end: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = (end - start) / (n.max(2) - 1) as f64;
    (0..n).map(move |i| if i + 1 == n && n > 1 { end } else { start + i as f64 * step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn check(kind: Kind, alpha_bar_last: f32) {
        let schedule = Schedule::new(&ScheduleConfig { kind, ..Default::default() });
        assert_eq!(schedule.steps(), 1000);
        assert!(schedule.alpha_bar().windows(2).all(|w| w[1] < w[0]));
        assert_eq!(schedule.is_linear(), kind == Kind::Linear);
        let last = schedule.alpha_bar()[999];
        assert!((last / alpha_bar_last - 1.0).abs() < 1e-3, "{kind:?}: {last}");
    }

    #[test]
    fn signal_falls_from_one_to_almost_nothing() {
        // From PyTorch: `(1 - betas).cumprod(0)[-1]`.
        check(Kind::Linear, 4.0358e-5);
        check(Kind::Quad, 7.3341e-4);
        check(Kind::Cosine, 2.4286e-9);
    }

    /// Digests of the bits that PyTorch 2.15 computes on a CPU as the reference does.
    fn check_bits(kind: Kind, steps: usize, ends: (f64, f64), betas: u64, alpha_bar: u64) {
        let (beta_start, beta_end) = ends;
        let config = ScheduleConfig { kind, beta_start, beta_end, diffusion_step: steps };
        let schedule = Schedule::new(&config);
        let digest = |values: &[f32]| {
            let add = |sum: u64, x: &f32| sum.wrapping_mul(31).wrapping_add(x.to_bits().into());
            values.iter().fold(0, add)
        };
        assert_eq!(digest(schedule.betas()), betas, "betas of {kind:?}, {steps} steps");
        assert_eq!(digest(schedule.alpha_bar()), alpha_bar, "signal of {kind:?}, {steps} steps");
    }

    #[test]
    fn bits_are_those_of_the_reference() {
        let usual = (1e-4, 0.02);
        check_bits(Kind::Linear, 1, usual, 0x38d1b717, 0x3f7ff972);
        check_bits(Kind::Linear, 2, usual, 0x71e0902d3, 0x7effa0faa);
        check_bits(Kind::Linear, 10, usual, 0xb1328fe5744b50a0, 0xdc0e555cedae40bd);
        check_bits(Kind::Linear, 400, (5e-4, 0.05), 0xec61563445de176a, 0x06db8c19bf6a928d);
        check_bits(Kind::Linear, 1000, usual, 0x02c4fc4ed10b0e48, 0x571a85b5d340f593);
        check_bits(Kind::Linear, 4000, (2.5e-5, 5e-3), 0x3f8ea2fd55c7a84b, 0x6a29a1dccd3d9289);
        check_bits(Kind::Quad, 400, (5e-4, 0.05), 0xe2c10b883228f10f, 0xc4ac196585630bbc);
        check_bits(Kind::Quad, 1000, usual, 0x728908658baa0ad1, 0x36415e2ee3fbde97);
        check_bits(Kind::Quad, 4000, usual, 0x8d17d8e1ee04c42c, 0x56c53d964787c2cd);
        check_bits(Kind::Cosine, 10, usual, 0xaa6512ee9ec2550b, 0x1bd87c648d04184a);
        check_bits(Kind::Cosine, 400, usual, 0x680ea7ff7d5e2603, 0x73df61d8b3dbe1ef);
        check_bits(Kind::Cosine, 1000, usual, 0xef853b83b76a24eb, 0x8533413c746343d4);
        check_bits(Kind::Cosine, 4000, usual, 0x866ff18c318d352a, 0xa14d22978bfb5861);
    }

    #[test]
    fn a_configuration_that_makes_no_schedule_names_its_key() {
        let usual = ScheduleConfig::default();
        assert_eq!(usual.check(), Ok(()));
        let check = |config: ScheduleConfig, expected: &str| {
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        };
        for steps in [0, 1, 1_000_001] {
            let expected = format!("`diffusion_step` expected 2 to 1000000, got {steps}");
            check(ScheduleConfig { diffusion_step: steps, ..usual.clone() }, &expected);
        }
        let config = ScheduleConfig { beta_end: 1.5, ..usual };
        check(config, "`beta_end` expected between 0 and 1, got 1.5");
    }

    #[test]
    fn a_step_outside_of_the_schedule_is_an_error() {
        let schedule = Schedule::new(&ScheduleConfig::default());
        let xs = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let err = schedule.diffuse(&xs, &[1000], &xs).unwrap_err();
        assert!(err.to_string().contains("below 1000, got 1000"), "{err}");
    }
}
