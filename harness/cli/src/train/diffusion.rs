//! `train diffusion`: a noise-prediction network on images, by the reference's recipe.

mod group;
mod run;

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use clap::Args;
use oodbench_datasets::Role;
use oodbench_diffusion::config::Config;
use oodbench_diffusion::sampler::Method;
use oodbench_diffusion::schedule::ScheduleConfig;
use oodbench_diffusion::train::{DiffusionTraining, Recipe};
use oodbench_nn::examples::Examples;
use serde_json::{Value, json};

use self::group::{Machines, Member};
use self::run::Run;
use super::RunArgs;
use super::folder::{self, Start, TrainFolder};
use super::images::{Images, Places};
use super::progress::TrainTalk;
use super::tensorboard::EventFile;
use crate::exit::Failure;
use crate::observer::{ProgressMode, Talk};

/// Options of `train diffusion`.
#[derive(Debug, Args)]
pub(crate) struct DiffusionArgs {
    /// The configuration: TOML, or a YAML file of DiffOOD's own code.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Train on the training images of this benchmark instead of `Dataset.name`.
    #[arg(long, value_name = "NAME|FILE")]
    benchmark: Option<String>,
    /// Go on from the folder's checkpoint, or from a `train.ckpt` of DiffOOD's own code.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    restart: Option<Option<PathBuf>>,
    /// Stop after so many steps in all [default: `Train.epoch` passes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Save every N steps [default: every 2500 steps, and every ten minutes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,
    /// Keep the weights every N steps; 0 for never.
    #[arg(long, value_name = "N", default_value = "20000")]
    weights_every: u64,
    /// Denoise eight images every N steps; 0 for never.
    #[arg(long, value_name = "N", default_value = "200")]
    validate_every: u64,
    /// The sampler for that: DDIM, PNDM2, PNDM4, NDM1, NDM4 or PF.
    #[arg(long, value_name = "METHOD", default_value = "DDIM")]
    method: Method,
    /// How many steps it would take for the whole schedule.
    #[arg(long, value_name = "N", default_value = "50")]
    sample_step: usize,
    /// Which process of a training on several devices this is.
    #[arg(long, value_name = "RANK/WORLD", hide = true)]
    member: Option<Member>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

pub(super) fn run(args: &DiffusionArgs) -> Result<u8, Failure> {
    let config = Config::read(&args.config).map_err(super::configuration)?;
    let net = config.model().map_err(super::configuration)?.clone();
    let recipe = Recipe::from_config(&config, args.run.seed).map_err(super::configuration)?;
    let recipe = Recipe { precision: args.run.precision, ..recipe };
    let schedule = config.schedule();
    let steps = schedule.diffusion_step;
    if !(1..=steps).contains(&args.sample_step) {
        let got = args.sample_step;
        let expected = format!("from 1 to {steps}, the steps of the schedule");
        return Err(Failure::usage(
            format!("`--sample-step` expected {expected}, got {got}"),
            None,
        ));
    }
    let names = group::devices(&args.run.device)?;
    let rank = args.member.map_or(0, |member| member.0.rank);
    let name = names.get(rank).copied().unwrap_or_default();
    let device = super::device_in(name, args.run.precision)?;
    let start = Start::typed(args.restart.as_ref());
    let out = super::out(args.run.out.as_deref(), &args.config);
    let folder = match args.member {
        Some(_) => None,
        None => Some(TrainFolder::open(&out, &start)?),
    };
    let images = images(args, &config)?;
    let configuration = configuration(&config, &schedule, &args.run, &images)?;
    let mut training = DiffusionTraining::new(&net, &schedule, &images, &recipe, &device)?;
    match &start {
        Start::New => {}
        Start::GoOn => drop(training.load(&folder::checkpoint(&out), &configuration)?),
        Start::From(path) => super::reference::adopt(&mut training, path)?,
    }
    let end = args.steps.map_or(training.total_steps(), |n| n.min(training.total_steps()));
    let Some(folder) = folder else {
        return follow(&mut training, args.member, &device, end);
    };
    let mut run = Run {
        args,
        net,
        schedule,
        configuration,
        talk: TrainTalk::new(args.run.progress, training.step_count(), end, 5 * args.run.log_every),
        events: EventFile::create(&folder.path("tensorboard"), training.step_count())?,
        folder,
        saved: Instant::now(),
        images_a_step: recipe.batch_size as u64 * recipe.accumulate,
    };
    run.begin(&start, &training, images.len(), end)?;
    let machines = Machines::start(&names, &mut training, &device)?;
    run.train(&mut training, machines, end)
}

/// Trains as another process than the first of several.
fn follow(
    training: &mut DiffusionTraining<'_>,
    member: Option<Member>,
    device: &Device,
    end: u64,
) -> Result<u8, Failure> {
    #[cfg(feature = "nccl")]
    if let Some(Member(share)) = member {
        return group::together::follow(training, share, device, end);
    }
    let _ = (training, device, end);
    Err(Failure::usage(format!("`--member` expected a build with NCCL, got {member:?}"), None))
}

fn images(args: &DiffusionArgs, config: &Config) -> Result<Images, Failure> {
    let places = Places::new(&args.run.data, args.run.cache.as_deref())?;
    // One process speaks.
    let mode = args.member.map_or(args.run.progress, |_| ProgressMode::None);
    let talk = Talk::new(mode, false);
    let side = config.dataset.as_ref().and_then(|dataset| dataset.image_size);
    if let Some(benchmark) = &args.benchmark {
        let images = places.of_benchmark(benchmark, Role::IdTrain, side, &talk)?;
        return images.ok_or_else(|| {
            Failure::usage(format!("benchmark `{benchmark}` has no training images"), None)
        });
    }
    let name = config.dataset().map_err(super::configuration)?.name.as_deref();
    let name = name.ok_or_else(|| {
        let message = format!("read configuration `{}`: no `Dataset.name`", args.config.display());
        Failure::usage(message, Some("or train on a benchmark's images: `--benchmark`".into()))
    })?;
    places.of_dataset(name, side, &talk)
}

/// What the course of a training follows from, under the names that the user knows: all but how
/// long it goes on, and what has no effect.
fn configuration(
    config: &Config,
    schedule: &ScheduleConfig,
    run: &RunArgs,
    images: &Images,
) -> Result<Value, Failure> {
    let value = || -> serde_json::Result<Value> {
        let mut train = serde_json::to_value(&config.train)?;
        for key in ["epoch", "batch_size", "num_classes"] {
            if let Some(train) = train.as_object_mut() {
                train.remove(key);
            }
        }
        let (dataset, batch_size) = (config.dataset.as_ref(), config.batch_size().ok());
        Ok(json!({
            "Dataset": {
                "batch_size": batch_size,
                "random_flip": dataset.is_none_or(|dataset| dataset.random_flip),
                "content": images.content(),
            },
            "Model": config.model,
            "Schedule": schedule,
            "Train": train,
            "Optim": config.optim,
            "precision": run.precision,
            "seed": run.seed,
        }))
    };
    value().map_err(|error| anyhow::Error::from(error).context("describe the training").into())
}
