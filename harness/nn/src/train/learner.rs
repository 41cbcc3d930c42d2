//! A network in training: its variables, the optimiser, the moving average, and the file that
//! holds all of it.
//!
//! The gradient step is in two halves, one call each. [`Learner::backward`] differentiates the
//! loss of a micro-batch, lets [`Reduce`] bring the gradients of several machines together, adds
//! them to those of earlier micro-batches, and clips; [`Learner::update`] moves the variables.
//!
//! On a CUDA device the first half only launches work, and the second one waits for all of it once.
//! Whether the loss and the gradient are finite is known then; the device itself sees to it that
//! nothing moves if they are not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use super::average::Average;
use super::error::TrainError;
use super::fused::Fused;
use super::gradients::{Gradients, Reduce, clip_factor};
use crate::optim::{Optimiser, Rule, State};
use crate::precision::Precision;
use crate::tensor_file::{self, Entry, Numbers, TensorFile, Text};
use crate::variables::Variables;

/// What a checkpoint says of itself under `format`.
pub const FORMAT: &str = "oodbench.training/1";

/// A network in training.
pub struct Learner {
    variables: Variables,
    optimiser: Optimiser,
    average: Option<Average>,
    names: Arc<[String]>,
    /// The gradients since the last step, and the factor that clips them.
    sum: Option<(Gradients, f64)>,
    /// Of the last backward pass.
    loss: f64,
    /// Keeps and uses the gradients in their place on a CUDA device; made at the first of them.
    fused: Option<Fused>,
    step: u64,
}

impl Learner {
    /// A training that has not begun. `variables` are those that the network was built on;
    /// `ema_rate` is the weight of the past in the moving average, if there is to be one.
    ///
    /// # Errors
    /// A device without memory.
    pub fn new(
        variables: Variables,
        rule: Rule,
        ema_rate: Option<f64>,
    ) -> Result<Self, TrainError> {
        let optimiser = Optimiser::new(rule, variables.trainable())?;
        let names = optimiser.vars().iter().map(|(name, _)| name.clone()).collect();
        let average = ema_rate.map(|rate| Average::new(rate, variables.all())).transpose()?;
        let (sum, loss, fused, step) = (None, 0.0, None, 0);
        Ok(Self { variables, optimiser, average, names, sum, loss, fused, step })
    }

    /// Steps that were made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Adds the gradient of the loss of one of `parts` micro-batches, divided by their number, and
    /// scales the sum down to the norm `clip`.
    ///
    /// Clipping after each of them, and not once at the end, is what DiffOOD's code does.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite (on a CUDA device [`Learner::update`] says so), or what
    /// `reduce` says.
    pub fn backward(
        &mut self,
        loss: &Tensor,
        parts: u64,
        clip: Option<f64>,
        reduce: &mut dyn Reduce,
    ) -> Result<(), TrainError> {
        let value = reduce.mean(loss.detach())?;
        let is_fused = Fused::fits(loss.device());
        if !is_fused {
            self.loss = self.finite("loss", f64::from(value.to_scalar::<f32>()?))?;
        }
        let store = match parts {
            1 => loss.backward()?,
            n => (loss / n as f64)?.backward()?,
        };
        let mut new = Gradients::take(self.names.clone(), self.optimiser.vars(), store);
        reduce.reduce(&mut new)?;
        if is_fused {
            return Ok(self.fused()?.add(new, &value, clip)?);
        }
        let sum = match self.sum.take() {
            Some((sum, scale)) => sum.add_to(scale, new)?,
            None => new,
        };
        let scale = match clip {
            None => 1.0,
            Some(max) => clip_factor(self.finite("norm of the gradient", sum.norm()?)?, max),
        };
        self.sum = Some((sum, scale));
        Ok(())
    }

    /// The value, if it is finite.
    fn finite(&self, what: &'static str, value: f64) -> Result<f64, TrainError> {
        match value.is_finite() {
            true => Ok(value),
            false => Err(TrainError::NotFinite { what, step: self.step, value }),
        }
    }

    fn fused(&mut self) -> Result<&mut Fused, TrainError> {
        let fused = match self.fused.take() {
            Some(fused) => fused,
            None => Fused::new(&self.optimiser, self.average.as_ref())?,
        };
        Ok(self.fused.insert(fused))
    }

    /// Forgets the gradients since the last step, of a step that is not to be made.
    pub fn discard(&mut self) {
        self.sum = None;
        if let Some(fused) = &mut self.fused {
            fused.discard();
        }
    }

    /// Moves the variables along the gradients since the last step, and the average after them; the
    /// loss of the last backward pass.
    ///
    /// # Errors
    /// On a CUDA device a loss or a gradient that is not finite, and nothing has moved then; what
    /// candle says.
    pub fn update(&mut self, learning_rate: f64) -> Result<f64, TrainError> {
        if let Some(fused) = &mut self.fused {
            let (loss, norm) = fused.step(&self.optimiser, self.average.as_ref(), learning_rate)?;
            self.loss = self.finite("loss", loss)?;
            self.finite("norm of the gradient", norm)?;
            self.optimiser.count();
            self.step += 1;
            return Ok(self.loss);
        }
        if let Some((sum, scale)) = self.sum.take() {
            self.optimiser.step(sum.values(), learning_rate, scale)?;
        }
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.update()?;
        }
        Ok(self.loss)
    }

    /// The weights as they are, a copy.
    ///
    /// # Errors
    /// What candle says.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        Ok(self.variables.snapshot()?)
    }

    /// Their moving average, if there is one.
    ///
    /// # Errors
    /// What candle says.
    pub fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>, TrainError> {
        Ok(self.average.as_ref().map(Average::snapshot).transpose()?)
    }

    /// Writes everything that [`Learner::load`] needs to go on bit for bit. `configuration` is
    /// what the course of the training follows from; `more` is text of the caller's own.
    ///
    /// Gradients of micro-batches are not saved: call it between steps.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path, configuration: &Value, more: Text) -> Result<(), TrainError> {
        let mut text = more;
        text.insert("format".to_owned(), FORMAT.to_owned());
        text.insert("step".to_owned(), self.step.to_string());
        text.insert("configuration".to_owned(), configuration.to_string());
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for (name, var) in self.variables.all() {
            entries.push(Entry::tensor(format!("model.{name}"), &var.as_detached_tensor()));
        }
        for (name, shape, state) in self.optimiser.state() {
            let numbers = match state {
                State::Host(numbers) => Numbers::Slice(numbers),
                State::Device(tensor) => Numbers::Tensor(tensor.clone()),
            };
            entries.push(Entry { name: format!("optimiser.{name}"), shape: shape.into(), numbers });
        }
        for (name, shape, numbers) in self.average.iter().flat_map(Average::state) {
            entries.push(Entry { name: format!("average.{name}"), shape: shape.into(), numbers });
        }
        Ok(tensor_file::write(path, &text, entries)?)
    }

    /// Goes on from a checkpoint; the text of the caller.
    ///
    /// # Errors
    /// A file that is no checkpoint, or one of a training with another configuration, whose first
    /// difference is named.
    pub fn load(&mut self, path: &Path, configuration: &Value) -> Result<Text, TrainError> {
        let mut file = TensorFile::open(path)?;
        let mut text = file.text().clone();
        let not = |got: &str| TrainError::NotACheckpoint { path: path.into(), got: got.to_owned() };
        match text.remove("format") {
            Some(format) if format == FORMAT => {}
            Some(format) => return Err(not(&format!("`{format}`"))),
            None => return Err(not("a file that does not say what it is")),
        }
        let step = text.remove("step").and_then(|step| step.parse().ok());
        let step = step.ok_or_else(|| not("one without a step"))?;
        let saved = text.remove("configuration").and_then(|text| serde_json::from_str(&text).ok());
        let saved: Value = saved.ok_or_else(|| not("one without a configuration"))?;
        let (saved, configuration) = (with_precision(saved), with_precision(configuration.clone()));
        if let Some((key, expected, got)) = difference("", &saved, &configuration) {
            return Err(TrainError::OtherConfiguration { path: path.into(), key, expected, got });
        }
        self.adopt(step, |name, shape| Ok(file.read(name, shape)?))?;
        Ok(text)
    }

    /// Goes on from the state of any training, after `step` steps: `read` gives the numbers of
    /// `model.NAME`, `optimiser.MOMENT.NAME` (`first` and `second` for Adam's moments) and
    /// `average.NAME` by name and shape.
    ///
    /// # Errors
    /// What `read` says.
    pub fn adopt(
        &mut self,
        step: u64,
        mut read: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, TrainError>,
    ) -> Result<(), TrainError> {
        for (name, var) in self.variables.all() {
            let numbers = read(&format!("model.{name}"), var.dims())?;
            var.set(&Tensor::from_vec(numbers, var.dims(), var.device())?)?;
        }
        self.optimiser.restore(step, |name, shape| read(&format!("optimiser.{name}"), shape))?;
        if let Some(average) = &mut self.average {
            average.restore(|name, shape| read(&format!("average.{name}"), shape))?;
        }
        // Moments and averages are where they were not before.
        (self.sum, self.fused) = (None, None);
        self.step = step;
        Ok(())
    }
}

/// A configuration that does not say its precision means `f32`: there was no other one once.
fn with_precision(mut configuration: Value) -> Value {
    if let Some(keys) = configuration.as_object_mut() {
        keys.entry("precision").or_insert_with(|| Precision::F32.name().into());
    }
    configuration
}

/// The first key whose values differ: its path, and both values.
fn difference(path: &str, expected: &Value, got: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(expected), Value::Object(got)) = (expected, got) {
        let keys: std::collections::BTreeSet<&String> = expected.keys().chain(got.keys()).collect();
        return keys.into_iter().find_map(|key| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
            difference(
                &path,
                &value(expected).unwrap_or(Value::Null),
                &value(got).unwrap_or(Value::Null),
            )
        });
    }
    let show = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    (expected != got).then(|| (path.to_owned(), show(expected), show(got)))
}

#[cfg(test)]
mod tests;
