//! A training of a diffusion network under way: steps, and what is written between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use oodbench_diffusion::checkpoint;
use oodbench_diffusion::net::NetConfig;
use oodbench_diffusion::picture::{Grid, Picture, Range};
use oodbench_diffusion::schedule::ScheduleConfig;
use oodbench_diffusion::train::{DiffusionTraining, StepReport};
use oodbench_nn::tensor_file::Text;
use oodbench_nn::train::TrainError;
use serde_json::Value;

use super::DiffusionArgs;
use super::group::Machines;
use crate::exit::{DONE, Failure, OUTSTANDING, WRITE_FAILED};
use crate::train::folder::{Start, TrainFolder};
use crate::train::progress::TrainTalk;
use crate::train::stop::Stop;
use crate::train::tensorboard::{EventFile, Summary};

/// Steps between two checkpoints, if nothing else is said.
const CHECKPOINT_EVERY: u64 = 2500;

/// The longest time between two checkpoints, if nothing else is said.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(600);

/// A training under way.
pub(super) struct Run<'a> {
    pub(super) args: &'a DiffusionArgs,
    pub(super) net: NetConfig,
    pub(super) schedule: ScheduleConfig,
    pub(super) configuration: Value,
    pub(super) folder: TrainFolder,
    pub(super) events: EventFile,
    pub(super) talk: TrainTalk,
    pub(super) saved: Instant,
    pub(super) images_a_step: u64,
}

impl Run<'_> {
    /// Says what is about to happen, and makes sure that it can be restarted from now on.
    pub(super) fn begin(
        &mut self,
        start: &Start,
        training: &DiffusionTraining<'_>,
        n_images: usize,
        end: u64,
    ) -> Result<(), Failure> {
        let step = training.step_count();
        let how = match start {
            Start::New => "begins",
            Start::GoOn => "goes on",
            Start::From(_) => "goes on from a checkpoint of the reference",
        };
        self.folder.note_beginning(step, how, &self.args.config, &self.args.run)?;
        self.talk.note(&format!(
            "{n_images} images, {} a step, {} steps a pass, steps {step} to {end}, into `{}`",
            self.images_a_step,
            training.steps_an_epoch(),
            self.folder.path("").display(),
        ));
        if *start != Start::GoOn {
            self.save(training)?;
        }
        Ok(())
    }

    /// Trains up to step `end`; the exit code.
    pub(super) fn train(
        &mut self,
        training: &mut DiffusionTraining<'_>,
        mut machines: Machines,
        end: u64,
    ) -> Result<u8, Failure> {
        let stop = Stop::listen()?;
        while training.step_count() < end && !machines.any(stop.is_asked())? {
            let since = Instant::now();
            let report = match training.step(machines.reduce()) {
                Ok(report) => report,
                Err(error) => return Err(self.folder.broken(error)?),
            };
            self.log(&report)?;
            let what = format!("loss {:.5}", report.loss);
            self.talk.step(report.step, report.images, since, &what);
            self.look(training, report.step)?;
            self.keep(training, report.step)?;
        }
        machines.finish()?;
        self.save(training)?;
        self.write_weights("model", training.weights()?)?;
        let step = training.step_count();
        if step < end {
            self.folder.note(&format!("step {step}: stopped by a signal"))?;
            self.talk.note(&format!("stopped after step {step}; `--restart` goes on"));
            return Ok(OUTSTANDING);
        }
        self.folder.note(&format!("step {step}: ends"))?;
        Ok(DONE)
    }

    /// The scalars of the reference, by its names.
    fn log(&mut self, report: &StepReport) -> Result<(), Failure> {
        if !report.step.is_multiple_of(self.args.run.log_every) {
            return Ok(());
        }
        let scalar = |tag, value: f64| Summary::Scalar { tag, value: value as f32 };
        let scalars = [
            scalar("loss/loss", report.loss),
            scalar("train/t", report.mean_step),
            scalar("train/lr", report.next_rate),
            scalar("train/cost", report.wall_s),
            scalar("train/images_per_s", report.images as f64 / report.wall_s.max(1e-9)),
        ];
        self.events.add(report.step, &scalars)
    }

    /// Denoises images, if it is time, and shows them.
    fn look(&mut self, training: &DiffusionTraining<'_>, step: u64) -> Result<(), Failure> {
        if !is_time(step, self.args.validate_every) {
            return Ok(());
        }
        let images = training.validate(self.args.method, self.args.sample_step)?;
        // A network that has diverged shows it here first; the loss decides what becomes of it.
        let images = images.clamp(-1f32, 1f32).map_err(TrainError::from)?;
        let strip = Grid { padding: 0, ..Grid::new(8) };
        let draw = |layout: &Grid| -> anyhow::Result<(Picture, Vec<u8>)> {
            let picture = Picture::grid(&images, Range::Signed, layout)?;
            let png = picture.png()?;
            Ok((picture, png))
        };
        let (picture, png) = draw(&strip)?;
        let (height, width) = (picture.height(), picture.width());
        self.events
            .add(step, &[Summary::Image { tag: "valid/img_p", height, width, png: &png }])?;
        let (_, png) = draw(&Grid::new(8).legible(self.net.image_size()))?;
        self.folder.write(&format!("valid-{step}.png"), &png)
    }

    /// Saves what it is time to save.
    fn keep(&mut self, training: &DiffusionTraining<'_>, step: u64) -> Result<(), Failure> {
        let is_late =
            self.args.checkpoint_every.is_none() && self.saved.elapsed() > CHECKPOINT_AFTER;
        if is_late || is_time(step, self.args.checkpoint_every.unwrap_or(CHECKPOINT_EVERY)) {
            self.save(training)?;
        }
        if is_time(step, self.args.weights_every) {
            self.write_weights(&format!("model-{step}"), training.weights()?)?;
            if let Some(average) = training.average()? {
                self.write_weights(&format!("ema-{step}"), average)?;
            }
        }
        Ok(())
    }

    fn save(&mut self, training: &DiffusionTraining<'_>) -> Result<(), Failure> {
        training.save(&self.folder.checkpoint(), &self.configuration, Text::new())?;
        if let Some(average) = training.average()? {
            self.write_weights("ema", average)?;
        }
        self.saved = Instant::now();
        Ok(())
    }

    /// Weights that describe themselves, for `bench --set diffood.weights=FILE` and others.
    fn write_weights(&self, name: &str, weights: BTreeMap<String, Tensor>) -> Result<(), Failure> {
        let path = self.folder.path(&format!("{name}.safetensors"));
        checkpoint::save(&path, &weights, &self.net, &self.schedule).map_err(|error| Failure {
            message: oodbench_engine::text::chain(&error),
            hint: None,
            code: WRITE_FAILED,
        })
    }
}

fn is_time(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
