//! Training a classifier: cross-entropy, SGD with a cosine schedule, random crops and flips; the
//! baseline recipe of OpenOOD.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Alone;
use super::error::TrainError;
use super::gradients::Reduce;
use super::learner::Learner;
use super::order::{Order, Place};
use super::rate::{Fall, Rates};
use crate::arch::{Architecture, Network, Taps};
use crate::classifier::Normalisation;
use crate::examples::{Augmentation, Examples, Feed, Range, batch};
use crate::layers::Mode;
use crate::optim::Rule;
use crate::tensor_file::Text;
use crate::variables::Variables;

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierRecipe {
    pub epochs: u64,
    pub batch_size: usize,
    /// Of the first step; falls along half a cosine, a little at every step.
    pub learning_rate: f64,
    /// What it falls to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_learning_rate: f64,
    pub rule: Rule,
    pub augmentation: Augmentation,
    pub seed: u64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// What is known after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Mean cross-entropy of the batch.
    pub loss: f64,
    /// The learning rate of the step.
    pub rate: f64,
    pub images: usize,
    pub wall_s: f64,
    /// The mean cross-entropy over the epoch, after its last step.
    pub epoch_loss: Option<f64>,
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

/// A classifier in training.
pub struct ClassifierTraining<'a> {
    feed: Feed<'a>,
    recipe: ClassifierRecipe,
    rates: Rates,
    normalisation: Normalisation,
    device: Device,
    network: Box<dyn Network>,
    learner: Learner,
    order: Order,
    steps_an_epoch: u64,
    /// Cross-entropy summed over the images of the epoch so far.
    loss_sum: f64,
}

impl<'a> ClassifierTraining<'a> {
    /// A training that has not begun.
    ///
    /// # Errors
    /// No images, or a recipe that makes no sense.
    pub fn new(
        arch: Architecture,
        n_classes: usize,
        normalisation: Normalisation,
        examples: &'a dyn Examples,
        recipe: &ClassifierRecipe,
        device: &Device,
    ) -> std::result::Result<Self, TrainError> {
        if examples.is_empty() {
            return Err(TrainError::TooFewImages { batch: 1, images: 0 });
        }
        if recipe.batch_size == 0 {
            return Err(TrainError::recipe("batch_size", "at least 1", 0));
        }
        if let Some(index) = (0..examples.len()).find(|&i| examples.label(i) as usize >= n_classes)
        {
            let (expected, got) = (format!("below {n_classes}"), examples.label(index));
            return Err(TrainError::recipe(&format!("label of image {index}"), expected, got));
        }
        let variables = Variables::new(recipe.seed, device);
        let network = arch.build(n_classes, variables.builder())?;
        let steps_an_epoch = examples.len().div_ceil(recipe.batch_size) as u64;
        let total = recipe.epochs.saturating_mul(steps_an_epoch);
        let fall = Fall::Cosine { total, last: recipe.last_learning_rate };
        Ok(Self {
            feed: Feed::new(examples, device)?,
            rates: Rates { base: recipe.learning_rate, warmup: 0, fall },
            normalisation,
            device: device.clone(),
            network,
            learner: Learner::new(variables, recipe.rule, None)?,
            order: Order::new(examples.len(), recipe.batch_size, recipe.seed),
            steps_an_epoch,
            loss_sum: 0.0,
            recipe: recipe.clone(),
        })
    }

    /// Steps that were made.
    pub fn step_count(&self) -> u64 {
        self.learner.step()
    }

    /// Steps of the whole training.
    pub fn total_steps(&self) -> u64 {
        self.recipe.epochs.saturating_mul(self.steps_an_epoch)
    }

    pub fn steps_an_epoch(&self) -> u64 {
        self.steps_an_epoch
    }

    /// One step on the next batch; the last batch of an epoch may be smaller than the others.
    ///
    /// # Errors
    /// A loss that is not finite, or what the network says.
    pub fn step(&mut self, reduce: &mut dyn Reduce) -> std::result::Result<StepReport, TrainError> {
        let start = Instant::now();
        let step = self.learner.step();
        let place = Place { epoch: step / self.steps_an_epoch, nth: step % self.steps_an_epoch };
        if place.nth == 0 {
            self.loss_sum = 0.0;
        }
        let (seed, augmentation) = (self.recipe.seed, self.recipe.augmentation);
        let indices = self.order.batch(place);
        let images = indices.len();
        let (all, drawn) = (0..images, (seed, step));
        let xs = self.feed.images(indices, all, augmentation, drawn, Range::Unit)?;
        let label = |&index: &usize| self.feed.examples().label(index);
        let ys = self.feed.classes(indices.iter().map(label).collect())?;
        let xs = self.normalisation.apply(&xs)?;
        let outputs = self.network.forward(&xs, Mode::Train, &mut Taps::none())?;
        let loss = candle_nn::loss::cross_entropy(&outputs.logits, &ys)?;
        self.learner.backward(&loss, 1, None, reduce)?;
        let rate = self.rates.at(step);
        let value = self.learner.update(rate)?;
        self.loss_sum += value * images as f64;
        let ended = place.nth + 1 == self.steps_an_epoch;
        Ok(StepReport {
            step: step + 1,
            loss: value,
            rate,
            images,
            wall_s: start.elapsed().as_secs_f64(),
            epoch_loss: ended.then(|| self.loss_sum / self.feed.examples().len() as f64),
        })
    }

    /// The fraction of images that the network classifies rightly now.
    ///
    /// # Errors
    /// What the network says.
    pub fn accuracy(&self, examples: &dyn Examples) -> std::result::Result<f64, TrainError> {
        let network = self.network.as_ref();
        Ok(accuracy(network, self.normalisation, examples, &self.device)?)
    }

    /// The state dict.
    ///
    /// # Errors
    /// What candle says.
    pub fn weights(&self) -> std::result::Result<BTreeMap<String, Tensor>, TrainError> {
        self.learner.weights()
    }

    /// See [`Learner::save`].
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(
        &self,
        path: &Path,
        configuration: &Value,
        mut more: Text,
    ) -> std::result::Result<(), TrainError> {
        more.insert("loss_sum".to_owned(), self.loss_sum.to_bits().to_string());
        self.learner.save(path, configuration, more)
    }

    /// See [`Learner::load`].
    ///
    /// # Errors
    /// As there.
    pub fn load(
        &mut self,
        path: &Path,
        configuration: &Value,
    ) -> std::result::Result<Text, TrainError> {
        let mut more = self.learner.load(path, configuration)?;
        let bits = more.remove("loss_sum").and_then(|bits| bits.parse().ok());
        self.loss_sum = f64::from_bits(bits.unwrap_or(0));
        Ok(more)
    }
}

/// Trains from the beginning to the end and returns the state dict.
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
) -> std::result::Result<BTreeMap<String, Tensor>, TrainError> {
    let mut training =
        ClassifierTraining::new(arch, n_classes, normalisation, train, recipe, device)?;
    let mut start = Instant::now();
    while training.step_count() < training.total_steps() {
        let report = training.step(&mut Alone)?;
        if let Some(loss) = report.epoch_loss {
            on_epoch(EpochReport {
                epoch: report.step / training.steps_an_epoch(),
                loss,
                val_accuracy: training.accuracy(val)?,
                wall_s: start.elapsed().as_secs_f64(),
            });
            start = Instant::now();
        }
    }
    training.weights()
}

/// The fraction of images that a network classifies rightly.
///
/// # Errors
/// What the network says.
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

#[cfg(test)]
mod tests;
