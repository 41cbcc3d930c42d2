//! How a diffusion network is trained: what a step needs to know, and the files that say it.

use oodbench_nn::examples::Augmentation;
use oodbench_nn::optim::Rule;
use oodbench_nn::precision::Precision;
use oodbench_nn::train::{Fall, Rates};
use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError, LossType, OptimConfig, OptimizerType};

/// How a diffusion network is trained, whichever file says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub length: Length,
    /// Images of one backward pass.
    pub batch_size: usize,
    /// Backward passes of one step.
    pub accumulate: u64,
    pub rates: Rates,
    pub rule: Rule,
    /// The norm that the gradient is scaled down to after every backward pass.
    pub grad_clip: f64,
    /// The probability that a class is kept; otherwise it becomes "no class".
    pub cond_ratio: f64,
    /// Steps of the schedule that are trained on, from 0; all of them by default.
    pub interval: Option<usize>,
    pub loss: LossType,
    /// The weight of the past in the moving average, at each step; none keeps no average.
    pub ema_rate: Option<f64>,
    pub augmentation: Augmentation,
    /// What the network computes in. Its variables, their gradients and the loss are `f32` in any.
    pub precision: Precision,
    pub seed: u64,
}

/// When a training is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Steps(u64),
    /// Passes over the images.
    Epochs(u64),
}

impl Recipe {
    /// The recipe of a configuration file, with the reference's meaning of every key.
    ///
    /// # Errors
    /// A file without `Dataset`, `Train` or `Optim`, or without a batch size.
    pub fn from_config(config: &Config, seed: u64) -> Result<Self, ConfigError> {
        let (train, optim) = (config.train()?, config.optim()?);
        let fall = match optim.lr_decay {
            true => Fall::Steps { every: optim.lr_step as u64, factor: optim.lr_gamma },
            false => Fall::None,
        };
        Ok(Self {
            length: Length::Epochs(train.epoch as u64),
            batch_size: config.batch_size()?,
            accumulate: train.accum_num as u64,
            rates: Rates { base: optim.lr, warmup: optim.warmup as u64, fall },
            rule: rule(optim),
            grad_clip: optim.grad_clip,
            cond_ratio: train.cond_ratio,
            interval: Some(train.iter_interval),
            loss: train.loss_type,
            ema_rate: train.ema.then_some(train.ema_rate),
            augmentation: Augmentation {
                crop_padding: 0,
                horizontal_flip: config.dataset()?.random_flip,
            },
            precision: Precision::F32,
            seed,
        })
    }
}

fn rule(optim: &OptimConfig) -> Rule {
    let OptimConfig { beta1, eps, weight_decay, amsgrad, .. } = *optim;
    let beta2 = 0.999;
    match optim.optimizer {
        OptimizerType::Adam => Rule::Adam { beta1, beta2, eps, weight_decay, amsgrad },
        OptimizerType::Adamw => Rule::AdamW { beta1, beta2, eps, weight_decay, amsgrad },
        // The reference gives neither decay nor Nesterov's step to it.
        OptimizerType::Sgd => Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
    }
}

/// The recipe of the embedded benchmark's network, as its file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    pub steps: u64,
    pub batch_size: usize,
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup: u64,
    /// Steps at the end over which it falls to 0 along half a cosine; 0 keeps it.
    pub cooldown: u64,
    pub rule: Rule,
    /// The norm that a gradient is scaled down to.
    pub grad_clip: f64,
    /// The probability that a class is kept; otherwise it becomes "no class".
    pub cond_ratio: f64,
    /// The weight of the past in the moving average, at each step.
    pub ema_rate: f64,
    pub augmentation: Augmentation,
    pub seed: u64,
}

impl From<&DiffusionRecipe> for Recipe {
    fn from(recipe: &DiffusionRecipe) -> Self {
        let fall = Fall::End { total: recipe.steps, length: recipe.cooldown };
        Self {
            length: Length::Steps(recipe.steps),
            batch_size: recipe.batch_size,
            accumulate: 1,
            rates: Rates { base: recipe.learning_rate, warmup: recipe.warmup, fall },
            rule: recipe.rule,
            grad_clip: recipe.grad_clip,
            cond_ratio: recipe.cond_ratio,
            interval: None,
            loss: LossType::Square,
            ema_rate: Some(recipe.ema_rate),
            augmentation: recipe.augmentation,
            precision: Precision::F32,
            seed: recipe.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(optim: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        let text = format!(
            "[Dataset]\nname = 'glyphs'\nbatch_size = 8\n[Train]\nepoch = 3\nbatch_size = 16\n\
             accum_num = 2\n[Optim]\nlr = 0.5\nwarmup = 10\n{optim}"
        );
        std::fs::write(&path, text).unwrap();
        Config::read(&path).unwrap()
    }

    #[test]
    fn keys_mean_what_they_mean_to_the_reference() {
        let config = config("optimizer = 'adamw'\nweight_decay = 0.1\namsgrad = true");
        let recipe = Recipe::from_config(&config, 7).unwrap();
        assert_eq!(recipe.batch_size, 8, "the loader's, not that of `Train`");
        assert_eq!((recipe.length, recipe.accumulate), (Length::Epochs(3), 2));
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
        let rule = Rule::AdamW { beta1, beta2, eps, weight_decay: 0.1, amsgrad: true };
        assert_eq!(recipe.rule, rule);
        assert_eq!((recipe.ema_rate, recipe.seed), (Some(0.9999), 7));
        assert!(recipe.augmentation.horizontal_flip);
    }

    #[test]
    fn sgd_has_its_own_momentum_and_no_decay() {
        let recipe = Recipe::from_config(&config("optimizer = 'sgd'\nweight_decay = 0.1"), 0);
        let expected = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        assert_eq!(recipe.unwrap().rule, expected);
    }

    #[test]
    fn the_learning_rate_is_that_of_the_configuration() {
        let check = |decay: &str, expected: [f64; 6]| {
            let config = config(&format!("optimizer = 'adam'\n{decay}"));
            let rates = Recipe::from_config(&config, 0).unwrap().rates;
            for (step, expected) in [0, 1, 10, 16, 17, 24].into_iter().zip(expected) {
                let got = rates.at(step);
                assert!((got - expected).abs() < 1e-12, "{step}: expected {expected}, got {got}");
            }
        };
        check("", [0.0, 0.05, 0.5, 0.5, 0.5, 0.5]);
        let decay = "lr_decay = true\nlr_step = 7\nlr_gamma = 0.3";
        check(decay, [0.0, 0.05, 0.5, 0.5, 0.15, 0.045]);
    }
}
