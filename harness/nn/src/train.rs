//! Training a classifier: cross-entropy, SGD with a cosine schedule, random crops and flips; the
//! baseline recipe of OpenOOD.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::arch::{Architecture, Network, Taps};
use crate::classifier::Normalisation;
use crate::examples::{Augmentation, Examples, batch, epoch_order};
use crate::layers::Mode;
use crate::optim::{Optimiser, Rule};
use crate::variables::Variables;

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierRecipe {
    pub epochs: u64,
    pub batch_size: usize,
    /// Of the first step; falls to 0 along half a cosine.
    pub learning_rate: f64,
    pub rule: Rule,
    pub augmentation: Augmentation,
    pub seed: u64,
}

/// What is known after an epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochReport {
    /// From 1.
    pub epoch: u64,
    /// Mean cross-entropy over the epoch.
    pub loss: f64,
    /// Fraction of validation images classified rightly.
    pub val_accuracy: f64,
    pub wall_s: f64,
}

/// Trains and returns the state dict.
///
/// # Errors
/// A loss that is not finite, an empty set, or what the network says.
pub fn train_classifier(
    arch: Architecture,
    n_classes: usize,
    normalisation: Normalisation,
    (train, val): (&dyn Examples, &dyn Examples),
    recipe: &ClassifierRecipe,
    device: &Device,
    mut on_epoch: impl FnMut(EpochReport),
) -> Result<BTreeMap<String, Tensor>> {
    if train.is_empty() || recipe.batch_size == 0 {
        candle_core::bail!("training expected images and a batch size, got none");
    }
    let variables = Variables::new(recipe.seed, device);
    let network = arch.build(n_classes, variables.builder())?;
    let mut optimiser = Optimiser::new(recipe.rule, variables.trainable());
    let batches_an_epoch = train.len().div_ceil(recipe.batch_size) as u64;
    let total = (recipe.epochs * batches_an_epoch).max(1);
    let mut step = 0u64;
    for epoch in 0..recipe.epochs {
        let start = Instant::now();
        let order = epoch_order(train.len(), recipe.seed, epoch);
        let mut loss_sum = 0.0;
        for indices in order.chunks(recipe.batch_size) {
            let (xs, ys) = batch(train, indices, recipe.augmentation, (recipe.seed, step), device)?;
            let xs = normalisation.apply(&xs)?;
            let outputs = network.forward(&xs, Mode::Train, &mut Taps::none())?;
            let loss = candle_nn::loss::cross_entropy(&outputs.logits, &ys)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                candle_core::bail!("loss at step {step} expected a finite number, got {value}");
            }
            loss_sum += value * indices.len() as f64;
            let progress = step as f64 / total as f64;
            let rate = recipe.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
            optimiser.step(&loss.backward()?, rate, 1.0)?;
            step += 1;
        }
        on_epoch(EpochReport {
            epoch: epoch + 1,
            loss: loss_sum / train.len() as f64,
            val_accuracy: accuracy(network.as_ref(), normalisation, val, device)?,
            wall_s: start.elapsed().as_secs_f64(),
        });
    }
    variables.snapshot()
}

/// The fraction of images that a network classifies rightly.
pub fn accuracy(
    network: &dyn Network,
    normalisation: Normalisation,
    examples: &dyn Examples,
    device: &Device,
) -> Result<f64> {
    const BATCH: usize = 200;
    let plain = Augmentation { crop_padding: 0, horizontal_flip: false };
    let indices: Vec<usize> = (0..examples.len()).collect();
    let mut right = 0.0;
    for indices in indices.chunks(BATCH) {
        let (xs, ys) = batch(examples, indices, plain, (0, 0), device)?;
        let xs = normalisation.apply(&xs)?;
        let outputs = network.forward(&xs, Mode::Eval, &mut Taps::none())?;
        let hits = outputs.logits.argmax(1)?.eq(&ys)?.to_dtype(DType::F32)?.sum_all()?;
        right += f64::from(hits.to_scalar::<f32>()?);
    }
    Ok(right / examples.len().max(1) as f64)
}
