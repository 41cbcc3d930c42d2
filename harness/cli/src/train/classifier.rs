//! `train classifier`: a classifier on the training images of a benchmark, by OpenOOD's baseline
//! recipe.

mod file;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use clap::Args;
use oodbench_datasets::Role;
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::examples::Examples;
use oodbench_nn::precision::Precision;
use oodbench_nn::tensor_file::{self, Entry, Text};
use oodbench_nn::train::architecture::architecture;
use oodbench_nn::train::{Alone, ClassifierTraining, TrainError};
use serde_json::Value;

use self::file::{ClassifierFile, configuration};
use super::RunArgs;
use super::folder::{Start, TrainFolder};
use super::images::{Images, Places};
use super::progress::TrainTalk;
use super::stop::Stop;
use super::tensorboard::{EventFile, Summary};
use crate::environment as env;
use crate::exit::{DONE, Failure, OUTSTANDING};
use crate::observer::Talk;

/// Options of `train classifier`.
#[derive(Debug, Args)]
pub(crate) struct ClassifierArgs {
    /// The configuration, a TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Go on from the folder's checkpoint.
    #[arg(long)]
    restart: bool,
    /// Stop after so many steps in all [default: `epochs` passes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Save every N steps [default: after every pass, and every ten minutes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// The longest time between two checkpoints, if nothing else is said.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(600);

pub(super) fn run(args: &ClassifierArgs) -> Result<u8, Failure> {
    let file = ClassifierFile::load(&args.config)?;
    let (benchmark, _) = env::benchmark(&file.benchmark)?;
    let defaults = &benchmark.classifier;
    let normalisation = Normalisation {
        mean: file.mean.unwrap_or(defaults.mean),
        std: file.std.unwrap_or(defaults.std),
    };
    let arch = architecture(&file.arch)?;
    if args.run.precision == Precision::Bf16 {
        let hint = "`--precision tf32` is the fastest that a classifier can be trained in";
        let message = "`--precision` of a classifier expected `f32` or `tf32`, got `bf16`";
        return Err(Failure::usage(message, Some(hint.to_owned())));
    }
    let device = super::device_in(&args.run.device, args.run.precision)?;
    let start = if args.restart { Start::GoOn } else { Start::New };
    let folder = TrainFolder::open(&super::out(args.run.out.as_deref(), &args.config), &start)?;
    let places = Places::new(&args.run.data, args.run.cache.as_deref())?;
    let talk = Talk::new(args.run.progress, false);
    let images = |role| {
        let images = places.of_benchmark(&file.benchmark, role, None, &talk)?;
        images.ok_or_else(|| {
            Failure::usage(format!("benchmark `{}` has no set `{role}`", benchmark.name), None)
        })
    };
    let (train, val) = (images(Role::IdTrain)?, images(Role::IdVal)?);
    let configuration = configuration(&file, normalisation, &args.run, [&train, &val])?;
    let recipe = file.recipe(args.run.seed);
    let n_classes = benchmark.classes;
    let mut training =
        ClassifierTraining::new(arch, n_classes, normalisation, &train, &recipe, &device)?;
    let mut best = Best::default();
    if args.restart {
        best = Best::of(&training.load(&folder.checkpoint(), &configuration)?);
    }
    let end = args.steps.map_or(training.total_steps(), |n| n.min(training.total_steps()));
    let mut run = Run {
        args,
        about: Text::from([
            ("format".to_owned(), "oodbench.classifier/1".to_owned()),
            ("arch".to_owned(), arch.to_string()),
            ("classes".to_owned(), n_classes.to_string()),
            ("mean".to_owned(), format!("{:?}", normalisation.mean)),
            ("std".to_owned(), format!("{:?}", normalisation.std)),
        ]),
        configuration,
        val,
        talk: TrainTalk::new(args.run.progress, training.step_count(), end, 5 * args.run.log_every),
        events: EventFile::create(&folder.path("tensorboard"), training.step_count())?,
        folder,
        best,
        saved: Instant::now(),
    };
    run.begin(&training, train.len(), end)?;
    run.train(&mut training, end)
}

/// The best accuracy so far, and the pass that it was measured after.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Best {
    epoch: u64,
    accuracy: f64,
}

impl Best {
    fn of(text: &Text) -> Self {
        let bits = text.get("best_accuracy").and_then(|bits| bits.parse().ok()).unwrap_or(0);
        let epoch = text.get("best_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Self { epoch, accuracy: f64::from_bits(bits) }
    }

    fn text(self) -> Text {
        Text::from([
            ("best_accuracy".to_owned(), self.accuracy.to_bits().to_string()),
            ("best_epoch".to_owned(), self.epoch.to_string()),
        ])
    }
}

/// A training under way.
struct Run<'a> {
    args: &'a ClassifierArgs,
    /// What the files of weights say of themselves.
    about: Text,
    configuration: Value,
    val: Images,
    folder: TrainFolder,
    events: EventFile,
    talk: TrainTalk,
    best: Best,
    saved: Instant,
}

impl Run<'_> {
    fn begin(
        &mut self,
        training: &ClassifierTraining<'_>,
        n_images: usize,
        end: u64,
    ) -> Result<(), Failure> {
        let step = training.step_count();
        let how = if self.args.restart { "goes on" } else { "begins" };
        self.folder.note_beginning(step, how, &self.args.config, &self.args.run)?;
        self.talk.note(&format!(
            "{n_images} images, {} to measure on, {} steps a pass, steps {step} to {end}, into `{}`",
            self.val.len(),
            training.steps_an_epoch(),
            self.folder.path("").display(),
        ));
        if !self.args.restart {
            self.save(training)?;
        }
        Ok(())
    }

    fn train(&mut self, training: &mut ClassifierTraining<'_>, end: u64) -> Result<u8, Failure> {
        let stop = Stop::listen()?;
        while training.step_count() < end && !stop.is_asked() {
            let since = Instant::now();
            let report = match training.step(&mut Alone) {
                Ok(report) => report,
                Err(error) => return Err(self.folder.broken(error)?),
            };
            if report.step.is_multiple_of(self.args.run.log_every) {
                let speed = report.images as f64 / report.wall_s.max(1e-9);
                self.scalars(
                    report.step,
                    &[
                        ("loss/loss", report.loss),
                        ("train/lr", report.rate),
                        ("train/cost", report.wall_s),
                        ("train/images_per_s", speed),
                    ],
                )?;
            }
            self.talk.step(report.step, report.images, since, &format!("loss {:.4}", report.loss));
            if let Some(loss) = report.epoch_loss {
                self.epoch(training, report.step / training.steps_an_epoch(), loss)?;
            }
            let is_time = match self.args.checkpoint_every {
                Some(every) => report.step.is_multiple_of(every),
                None => report.epoch_loss.is_some() || self.saved.elapsed() > CHECKPOINT_AFTER,
            };
            if is_time {
                self.save(training)?;
            }
        }
        self.save(training)?;
        let step = training.step_count();
        if step == end && !step.is_multiple_of(training.steps_an_epoch()) {
            // Ended by `--steps` within a pass.
            let measured = Best {
                epoch: step / training.steps_an_epoch(),
                accuracy: training.accuracy(&self.val)?,
            };
            self.write("last", &training.weights()?, measured)?;
        }
        if step < end {
            self.folder.note(&format!("step {step}: stopped by a signal"))?;
            self.talk.note(&format!("stopped after step {step}; `--restart` goes on"));
            return Ok(OUTSTANDING);
        }
        self.folder.note(&format!("step {step}: ends"))?;
        Ok(DONE)
    }

    /// Measures the accuracy after a pass, and keeps the weights.
    fn epoch(
        &mut self,
        training: &ClassifierTraining<'_>,
        epoch: u64,
        loss: f64,
    ) -> Result<(), Failure> {
        let accuracy = training.accuracy(&self.val)?;
        let step = training.step_count();
        self.scalars(step, &[("loss/epoch", loss), ("valid/accuracy", accuracy)])?;
        let line = format!("pass {epoch}: loss {loss:.4}, accuracy {:.2} %", 100.0 * accuracy);
        self.folder.note(&line)?;
        self.talk.note(&line);
        let weights = training.weights()?;
        // The first of equals, as a restart would find it.
        if accuracy > self.best.accuracy || self.best.epoch == 0 {
            self.best = Best { epoch, accuracy };
            self.write("best", &weights, self.best)?;
        }
        self.write("last", &weights, Best { epoch, accuracy })
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), Failure> {
        let summary = |&(tag, value)| Summary::Scalar { tag, value: value as f32 };
        let summaries: Vec<Summary<'_>> = scalars.iter().map(summary).collect();
        self.events.add(step, &summaries)
    }

    /// Weights that describe themselves, for `bench --classifier FILE`.
    fn write(
        &self,
        name: &str,
        weights: &BTreeMap<String, Tensor>,
        measured: Best,
    ) -> Result<(), Failure> {
        let mut about = self.about.clone();
        about.insert("val_accuracy".to_owned(), measured.accuracy.to_string());
        about.insert("epoch".to_owned(), measured.epoch.to_string());
        let entries = weights.iter().map(|(name, tensor)| Entry::tensor(name, tensor)).collect();
        let path = self.folder.path(&format!("{name}.safetensors"));
        Ok(tensor_file::write(&path, &about, entries).map_err(TrainError::from)?)
    }

    fn save(&mut self, training: &ClassifierTraining<'_>) -> Result<(), Failure> {
        training.save(&self.folder.checkpoint(), &self.configuration, self.best.text())?;
        self.saved = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_accuracy_comes_back_exactly() {
        let best = Best { epoch: 7, accuracy: 0.1 + 0.2 };
        assert_eq!(Best::of(&best.text()), best);
        assert_eq!(Best::of(&Text::new()), Best::default());
    }
}
