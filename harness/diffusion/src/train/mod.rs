//! Training a noise-prediction network by the recipe of the reference: steps drawn in symmetric
//! pairs, the class dropped now and then, a summed loss, warm-up, gradient clipping, and an
//! exponential moving average of the weights.
//!
//! The caller makes the steps, and decides when to save, to look at pictures and to stop. Every
//! random number is a function of the seed and of the batch's number, so that a training which was
//! stopped goes on from its last checkpoint as if it had not been.

mod ahead;
mod batches;
mod noising;
mod recipe;
mod validation;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use oodbench_nn::examples::{Examples, Feed, Range};
use oodbench_nn::tensor_file::Text;
use oodbench_nn::train::{Alone, Learner, Order, Reduce, TrainError};
use oodbench_nn::variables::Variables;
use serde_json::Value;

use crate::net::{EpsModel, NetConfig};
use crate::schedule::{Schedule, ScheduleConfig};
use ahead::Ahead;
use batches::Batches;
use noising::{Noising, Plan};
pub use recipe::{DiffusionRecipe, Length, Recipe};
pub use validation::{VALIDATION_BETA, VALIDATION_IMAGES};

/// What is known after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Summed over an image's values, averaged over the last batch of the step.
    pub loss: f64,
    /// The mean over that batch of the steps of the schedule.
    pub mean_step: f64,
    /// The learning rate of the next step: the reference asks for it when the step is over.
    pub next_rate: f64,
    /// Images that went into the step.
    pub images: usize,
    pub wall_s: f64,
}

/// A diffusion network in training.
pub struct DiffusionTraining<'a> {
    feed: Feed<'a>,
    ahead: Ahead,
    recipe: Recipe,
    interval: usize,
    schedule: Schedule,
    device: Device,
    model: Box<dyn EpsModel>,
    learner: Learner,
    batches: Batches,
    order: Order,
    share: Share,
}

/// The part of every batch that this process computes, of as many equal ones as there are processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub world: usize,
}

impl Share {
    /// Everything.
    pub const WHOLE: Self = Self { rank: 0, world: 1 };

    /// Its places in a batch.
    fn of(self, batch: usize) -> std::ops::Range<usize> {
        let each = batch / self.world;
        self.rank * each..(self.rank + 1) * each
    }
}

impl<'a> DiffusionTraining<'a> {
    /// A training that has not begun.
    ///
    /// # Errors
    /// Fewer images than a step needs, a label that is no class of the network, images of another
    /// size than its own, or an interval that is longer than the schedule.
    pub fn new(
        net: &NetConfig,
        schedule: &ScheduleConfig,
        examples: &'a dyn Examples,
        recipe: &Recipe,
        device: &Device,
    ) -> Result<Self, TrainError> {
        if let Some((key, got)) = net.not_of_colour() {
            let expected = "3, the channels of an image";
            return Err(TrainError::recipe(&format!("Model.{key}"), expected, got));
        }
        let (side, size) = (net.image_size(), examples.size());
        if size != (side, side) {
            let expected = format!("the size of the images, {}x{}", size.1, size.0);
            return Err(TrainError::recipe("Model.image_size", expected, side));
        }
        let n_classes = net.n_classes();
        let outside = |&index: &usize| examples.label(index) as usize >= n_classes;
        if let Some(index) = (0..examples.len()).find(outside).filter(|_| n_classes > 0) {
            let least = u64::from(examples.label(index)) + 1;
            let expected = format!("at least {least}, for the label of image {index}");
            return Err(TrainError::recipe("Model.num_classes", expected, n_classes));
        }
        let steps = schedule.diffusion_step;
        let interval = recipe.interval.unwrap_or(steps);
        if !(1..=steps).contains(&interval) {
            let expected = format!("from 1 to {steps}, the steps of the schedule");
            return Err(TrainError::recipe("iter_interval", expected, interval));
        }
        let batches = Batches::new(examples.len(), recipe)?;
        let variables = Variables::new(recipe.seed, device);
        let model = net.build_in(variables.builder(), recipe.precision)?;
        Ok(Self {
            feed: Feed::new(examples, device)?,
            ahead: Ahead::default(),
            interval,
            schedule: Schedule::new(schedule),
            device: device.clone(),
            model,
            learner: Learner::new(variables, recipe.rule, recipe.ema_rate)?,
            batches,
            order: Order::new(examples.len(), recipe.batch_size, recipe.seed),
            recipe: recipe.clone(),
            share: Share::WHOLE,
        })
    }

    /// Computes a share of every batch; the gradients come together in what [`Reduce`] does. The
    /// result is that of one process, but for rounding.
    ///
    /// # Errors
    /// A batch that does not come apart evenly.
    pub fn take_share(&mut self, share: Share) -> Result<(), TrainError> {
        let Share { rank, world } = share;
        if rank >= world || !self.recipe.batch_size.is_multiple_of(world) {
            let expected = format!("a multiple of {world}, the number of devices");
            return Err(TrainError::recipe("Dataset.batch_size", expected, self.recipe.batch_size));
        }
        self.share = share;
        Ok(())
    }

    /// Steps that were made.
    pub fn step_count(&self) -> u64 {
        self.learner.step()
    }

    /// Steps of the whole training.
    pub fn total_steps(&self) -> u64 {
        self.batches.total_steps(self.recipe.length)
    }

    /// Steps of one pass over the images.
    pub fn steps_an_epoch(&self) -> u64 {
        self.batches.steps_an_epoch()
    }

    /// One step of the optimiser: as many backward passes as the recipe says.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, or what the network and `reduce` say. The training is
    /// where it was before then, so that the step can be tried again.
    pub fn step(&mut self, reduce: &mut dyn Reduce) -> Result<StepReport, TrainError> {
        self.try_step(reduce).inspect_err(|_| self.learner.discard())
    }

    fn try_step(&mut self, reduce: &mut dyn Reduce) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        let step = self.learner.step();
        let (height, width) = self.feed.examples().size();
        let plan = Plan {
            seed: self.recipe.seed,
            batch: self.recipe.batch_size,
            per_image: 3 * height * width,
            interval: self.interval,
            cond_ratio: (self.model.n_classes() > 0).then_some(self.recipe.cond_ratio),
        };
        let noising = Noising { schedule: &self.schedule, loss: self.recipe.loss, plan };
        let (mut mean_step, mut images) = (0.0, 0);
        for place in self.batches.of_step(step) {
            let number = self.batches.number(place);
            let draws = self.ahead.take(plan, number);
            if self.device.is_cuda() {
                self.ahead.prepare(plan, number + 1);
            }
            let indices = self.order.batch(place);
            let share = self.share.of(indices.len());
            let (augmentation, drawn) = (self.recipe.augmentation, (self.recipe.seed, number));
            let range = Range::Signed;
            let xs = self.feed.images(indices, share.clone(), augmentation, drawn, range)?;
            let label = |&index: &usize| self.feed.examples().label(index);
            let classes: Vec<u32> = indices[share.clone()].iter().map(label).collect();
            let (model, feed) = (self.model.as_ref(), &mut self.feed);
            let noised = noising.loss(model, feed, &xs, &classes, share, draws, number)?;
            let clip = Some(self.recipe.grad_clip);
            self.learner.backward(&noised.loss, self.recipe.accumulate, clip, reduce)?;
            mean_step = noised.mean_step;
            images += indices.len();
        }
        let loss = self.learner.update(self.recipe.rates.at(step))?;
        Ok(StepReport {
            step: step + 1,
            loss,
            mean_step,
            next_rate: self.recipe.rates.at(step + 1),
            images,
            wall_s: start.elapsed().as_secs_f64(),
        })
    }

    /// The weights as they are.
    ///
    /// # Errors
    /// What candle says.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        self.learner.weights()
    }

    /// Their moving average, if the recipe has one.
    ///
    /// # Errors
    /// What candle says.
    pub fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>, TrainError> {
        self.learner.average()
    }

    /// See [`Learner::save`].
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path, configuration: &Value, more: Text) -> Result<(), TrainError> {
        self.learner.save(path, configuration, more)
    }

    /// See [`Learner::load`].
    ///
    /// # Errors
    /// As there.
    pub fn load(&mut self, path: &Path, configuration: &Value) -> Result<Text, TrainError> {
        self.learner.load(path, configuration)
    }

    /// See [`Learner::adopt`].
    ///
    /// # Errors
    /// As there.
    pub fn adopt(
        &mut self,
        step: u64,
        read: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, TrainError>,
    ) -> Result<(), TrainError> {
        self.learner.adopt(step, read)
    }
}

/// Trains to the end and returns the averaged weights, or the weights where the recipe keeps no
/// average.
///
/// A checkpoint is written to `checkpoint` once a minute and at the end, and read from there at the
/// start; `configuration` is what it belongs to.
///
/// # Errors
/// As [`DiffusionTraining::step`]; a checkpoint of another configuration.
pub fn train_diffusion(
    net: &NetConfig,
    schedule: &ScheduleConfig,
    examples: &dyn Examples,
    recipe: &Recipe,
    checkpoint: Option<(&Path, &Value)>,
    device: &Device,
    mut on_step: impl FnMut(StepReport),
) -> Result<BTreeMap<String, Tensor>, TrainError> {
    const SAVE_EVERY: Duration = Duration::from_secs(60);
    let mut training = DiffusionTraining::new(net, schedule, examples, recipe, device)?;
    if let Some((path, configuration)) = checkpoint.filter(|(path, _)| path.exists()) {
        training.load(path, configuration)?;
    }
    let mut saved = Instant::now();
    while training.step_count() < training.total_steps() {
        on_step(training.step(&mut Alone)?);
        let is_over = training.step_count() == training.total_steps();
        if let Some((path, configuration)) = checkpoint
            && (is_over || saved.elapsed() > SAVE_EVERY)
        {
            training.save(path, configuration, Text::new())?;
            saved = Instant::now();
        }
    }
    match training.average()? {
        Some(average) => Ok(average),
        None => training.weights(),
    }
}

#[cfg(test)]
mod tests;
