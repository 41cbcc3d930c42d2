//! The sections `Train` and `Optim`: how a diffusion network is trained.

use serde::{Deserialize, Serialize};

use super::dataset::positive;
use super::keys::KeyError;

/// Section `Train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct TrainConfig {
    /// Passes over the data.
    pub epoch: usize,
    /// Without effect where `Dataset.batch_size` is given, as in the reference; see
    /// [`super::Config::batch_size`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Without effect: one of the reference's files has it, and `Model.num_classes` is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Batches whose gradients are added up for one step of the optimiser.
    #[serde(default = "one")]
    pub accum_num: usize,
    /// Fraction of images whose class a conditional network is told; the others bear "no class".
    #[serde(default = "cond_ratio")]
    pub cond_ratio: f64,
    /// What an iteration does; there is one kind.
    #[serde(default)]
    pub iter_type: IterType,
    /// Steps of the schedule that are trained on: `t` is drawn from 0 to below this.
    #[serde(default = "iter_interval")]
    pub iter_interval: usize,
    /// How steps are drawn; there is one way.
    #[serde(default)]
    pub t_type: TimestepType,
    /// The loss of an image: summed over its values, averaged over the batch.
    #[serde(default)]
    pub loss_type: LossType,
    /// Weight of the past in the moving average of the weights.
    #[serde(default = "ema_rate")]
    pub ema_rate: f64,
    /// Whether the moving average is kept.
    #[serde(default = "yes")]
    pub ema: bool,
}

/// What an iteration of the training does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IterType {
    /// Noises images and predicts the noise.
    #[default]
    Diffusion,
}

/// How the steps of a batch are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepType {
    /// Half of them uniformly, the other half mirrored: `iter_interval - 1 - t`.
    #[default]
    Symmetry,
}

/// The loss of a predicted noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossType {
    /// Sum of squared differences.
    #[default]
    Square,
    /// Sum of absolute differences.
    Linear,
}

impl TrainConfig {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        positive("epoch", Some(self.epoch))?;
        positive("batch_size", self.batch_size)?;
        positive("accum_num", Some(self.accum_num))?;
        positive("iter_interval", Some(self.iter_interval))?;
        in_range("cond_ratio", self.cond_ratio, 0.0, 1.0)?;
        in_range("ema_rate", self.ema_rate, 0.0, 1.0)
    }
}

/// Section `Optim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct OptimConfig {
    pub optimizer: OptimizerType,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decay of the weights in a step; `adam` adds it to the gradient, `adamw` decouples it, and
    /// it has no effect on `sgd`, to which the reference does not give it.
    #[serde(default)]
    pub weight_decay: f64,
    /// Steps over which the learning rate rises from 0.
    #[serde(default)]
    pub warmup: usize,
    /// Whether the learning rate falls after the warm-up: by `lr_gamma` every `lr_step` steps.
    #[serde(default)]
    pub lr_decay: bool,
    /// See `lr_decay`.
    #[serde(default = "lr_step")]
    pub lr_step: usize,
    /// See `lr_decay`.
    #[serde(default = "lr_gamma")]
    pub lr_gamma: f64,
    /// Weight of the past in Adam's mean of gradients; that of their squares is 0.999. Without
    /// effect on `sgd`, whose momentum is 0.9.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Whether Adam divides by the largest second moment so far.
    #[serde(default)]
    pub amsgrad: bool,
    /// Added to Adam's denominator.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Largest L2 norm of all gradients together.
    #[serde(default = "one_f64")]
    pub grad_clip: f64,
}

/// The rule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerType {
    Adam,
    Adamw,
    /// With a momentum of 0.9.
    Sgd,
}

impl OptimConfig {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        positive("lr_step", Some(self.lr_step))?;
        if !(0.0..1.0).contains(&self.beta1) {
            let message = format!("expected at least 0 and below 1, got {}", self.beta1);
            return Err(KeyError::refused("beta1", message, None));
        }
        let positives = [
            ("lr", self.lr),
            ("lr_gamma", self.lr_gamma),
            ("grad_clip", self.grad_clip),
            ("eps", self.eps),
        ];
        for (key, value) in positives {
            if !(value > 0.0 && value.is_finite()) {
                let message = format!("expected above 0, got {value}");
                return Err(KeyError::refused(key, message, None));
            }
        }
        in_range("weight_decay", self.weight_decay, 0.0, f64::MAX)
    }
}

fn in_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), KeyError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let range =
        if high == f64::MAX { format!("at least {low}") } else { format!("{low} to {high}") };
    let message = format!("expected {range}, got {value}");
    Err(KeyError::refused(key, message, None))
}

fn one() -> usize {
    1
}

fn one_f64() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn cond_ratio() -> f64 {
    0.9
}

fn iter_interval() -> usize {
    1000
}

fn ema_rate() -> f64 {
    0.9999
}

fn lr_step() -> usize {
    60_000
}

fn lr_gamma() -> f64 {
    0.7
}

fn beta1() -> f64 {
    0.9
}

fn eps() -> f64 {
    1e-8
}
