//! Noise schedules.
//!
//! `betas` are computed in `f64` and rounded to `f32`; `alpha_bar[t]`, the running product of
//! `1 - betas`, starts from the rounded values: the numbers of the reference, bit for bit where
//! its own product is. A schedule that was published is never changed; another one is added.

use candle_core::{Device, Result, Tensor};
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
        let signal = self.per_image(t, |alpha_bar| alpha_bar.sqrt(), xs.device())?;
        let scale = self.per_image(t, |alpha_bar| (1.0 - alpha_bar).sqrt(), xs.device())?;
        xs.broadcast_mul(&signal)? + noise.broadcast_mul(&scale)?
    }

    fn per_image(&self, t: &[usize], f: impl Fn(f32) -> f32, device: &Device) -> Result<Tensor> {
        let values = t
            .iter()
            .map(|&t| match self.alpha_bar.get(t) {
                Some(&alpha_bar) => Ok(f(alpha_bar)),
                None => candle_core::bail!("step expected below {}, got {t}", self.steps()),
            })
            .collect::<Result<Vec<f32>>>()?;
        Tensor::from_vec(values, (t.len(), 1, 1, 1), device)
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

    fn check(kind: Kind, alpha_bar_last: f32) {
        let schedule = Schedule::new(&ScheduleConfig { kind, ..Default::default() });
        assert_eq!(schedule.steps(), 1000);
        assert!(schedule.alpha_bar().windows(2).all(|w| w[1] < w[0]));
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

    #[test]
    fn a_step_outside_of_the_schedule_is_an_error() {
        let schedule = Schedule::new(&ScheduleConfig::default());
        let xs = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let err = schedule.diffuse(&xs, &[1000], &xs).unwrap_err();
        assert!(err.to_string().contains("below 1000, got 1000"), "{err}");
    }
}
