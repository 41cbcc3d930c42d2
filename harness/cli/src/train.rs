//! `oodbench train`: networks from images.
//!
//! `train diffusion` and `train classifier` train on images of the user's; a folder of their own
//! holds what they leave. `train embedded` makes the two files of the embedded benchmark: the
//! classifier and the diffusion network of `glyphs`. Images are drawn, recipe and seed are in a
//! file, and every random number follows from the seed, so the same recipe on the same machine
//! gives the same bytes. An interrupted training goes on from its last checkpoint.

mod classifier;
mod diffusion;
mod embedded;
mod folder;
mod images;
mod progress;
mod recipe;
mod reference;
mod stop;
mod tensorboard;
mod weights;

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::{Args, Subcommand, ValueEnum};
use oodbench_diffusion::config::{ConfigError, ConfigProblem};
use oodbench_engine::EngineError;
use oodbench_engine::text::chain;
use oodbench_nn::precision::Precision;
use oodbench_nn::tensor_file::TensorFileError;
use oodbench_nn::train::TrainError;

use crate::exit::{
    CELLS_FAILED, DONE, Failure, OUT_OF_MEMORY, SETUP, UNFORESEEN, USAGE, WRITE_FAILED,
};
use crate::observer::{ProgressMode, Talk};

/// What to train.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// Train a diffusion network.
    #[command(after_help = "\
Examples:
  oodbench train diffusion --config ddim_cifar10_cond.yml --data DIR
  oodbench train diffusion --config mine.toml --benchmark mine-bench.toml --out runs/mine
  oodbench train diffusion --config mine.toml --out runs/mine --restart
  tensorboard --logdir runs/mine

Ctrl-C finishes the step, saves, and ends with code 5; `--restart` goes on as if nothing had happened.")]
    Diffusion(Box<diffusion::DiffusionArgs>),
    /// Train a classifier.
    #[command(after_help = "\
Examples:
  oodbench train classifier --config resnet18.toml --data OpenOOD/data
  oodbench bench --method all --classifier runs/train/resnet18/best.safetensors

The configuration says what to train on and how; what it leaves out is OpenOOD's baseline:
  benchmark = \"cifar10\"
  arch = \"resnet18_32x32\"
  epochs = 100")]
    Classifier(Box<classifier::ClassifierArgs>),
    /// Train the networks of the embedded benchmark `glyphs`.
    #[command(after_help = "\
Examples:
  oodbench train embedded                      both networks, into datasets/benchmarks/glyphs
  oodbench train embedded --only classifier    a few minutes
  oodbench train embedded --out /tmp/weights   leave the committed files alone")]
    Embedded(EmbeddedArgs),
}

/// Options of every training on images of the user's.
#[derive(Debug, Args)]
struct RunArgs {
    /// The folder with the images.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// The folder of the training [default: runs/train/NAME, as the configuration is named].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where to train: `cpu`, `cuda`, `cuda:N`, or `auto`, the first GPU if one answers and the CPU
    /// otherwise. A diffusion network also on several: `cuda:0,cuda:1`.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// What networks compute in: `f32`, `tf32` (products keep 10 bits) or `bf16` (activations; a
    /// diffusion network's only). Weights, gradients and loss are `f32` in each. The CPU has `f32`.
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    /// The seed of everything random.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Write scalars every N steps; a line is said every fifth time.
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u64).range(1..))]
    log_every: u64,
    /// The folder for prepared images [default: ~/.cache/oodbench].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
}

impl RunArgs {
    /// Puts what `auto` comes to in its place.
    fn choose_device(&mut self) -> Result<(), Failure> {
        // Several are for `train diffusion` to choose.
        if self.device.contains(',') {
            return Ok(());
        }
        let typed = Some(self.device.as_str()).filter(|name| *name != oodbench_nn::device::AUTO);
        let talk = Talk::new(self.progress, false);
        self.device = crate::device::chosen(typed, &talk)?.name;
        Ok(())
    }
}

/// Options of `train embedded`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedArgs {
    /// Folder for `classifier.safetensors` and `diffusion.safetensors`.
    #[arg(long, value_name = "DIR", default_value = "datasets/benchmarks/glyphs")]
    pub(crate) out: PathBuf,
    /// The recipe; the one that comes with the program by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Train one of the two networks.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) only: Option<NetworkName>,
    /// Train again although the files were made by this recipe.
    #[arg(long)]
    pub(crate) force: bool,
    /// Folder for checkpoints of an unfinished training.
    #[arg(long, value_name = "DIR", default_value = "target/train-embedded")]
    pub(crate) work: PathBuf,
    /// Where to train: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
}

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkName {
    Classifier,
    Diffusion,
}

/// Runs the command; the exit code.
///
/// # Errors
/// A configuration, images, a device or a folder that cannot be used, or a training that diverged.
pub(crate) fn run(args: TrainArgs) -> Result<u8, Failure> {
    crate::environment::restart_for_networks();
    match args.command {
        TrainCommand::Diffusion(mut args) => {
            args.run.choose_device()?;
            diffusion::run(&args)
        }
        TrainCommand::Classifier(mut args) => {
            if args.run.device.contains(',') {
                let message =
                    format!("`--device` of a classifier expected one, got `{}`", args.run.device);
                let hint = "several train a diffusion network together, not a classifier";
                return Err(Failure::usage(message, Some(hint.to_owned())));
            }
            args.run.choose_device()?;
            classifier::run(&args)
        }
        TrainCommand::Embedded(args) => {
            embedded::run(&args, &device(&args.device)?).map(|()| DONE).map_err(Failure::from)
        }
    }
}

/// The folder of a training: as typed, or named as its configuration.
fn out(typed: Option<&Path>, config: &Path) -> PathBuf {
    typed.map(Path::to_owned).unwrap_or_else(|| {
        let name = config.file_stem().unwrap_or_else(|| "training".as_ref());
        Path::new("runs/train").join(name)
    })
}

fn device(name: &str) -> Result<Device, Failure> {
    oodbench_nn::device::device(name).map_err(|error| EngineError::from(error).into())
}

/// The device, with the precision that its networks are to compute in.
fn device_in(name: &str, precision: Precision) -> Result<Device, Failure> {
    let device = device(name)?;
    crate::device::check(precision, &device)?;
    Ok(device)
}

/// A configuration that cannot be read, or says something wrong.
pub(crate) fn configuration(error: ConfigError) -> Failure {
    let code = if matches!(error.source, ConfigProblem::Read(_)) { SETUP } else { USAGE };
    Failure { message: chain(&error), hint: None, code }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        if let TrainError::Tensor(source) = &error
            && oodbench_nn::device::is_out_of_memory(source)
        {
            let hint = "a smaller `batch_size`, with a larger `Train.accum_num` in turn, takes less \
                        memory; `nvidia-smi` shows what else does";
            let message = format!("train: the GPU's memory is full: {}", chain(&error));
            return Self { message, hint: Some(hint.to_owned()), code: OUT_OF_MEMORY };
        }
        let code = match &error {
            TrainError::TooFewImages { .. }
            | TrainError::Recipe { .. }
            | TrainError::OtherConfiguration { .. } => USAGE,
            TrainError::NotFinite { .. } => CELLS_FAILED,
            TrainError::NotACheckpoint { .. } | TrainError::Checkpoint(_) => SETUP,
            TrainError::File(TensorFileError::Write { .. }) => WRITE_FAILED,
            TrainError::File(_) => SETUP,
            TrainError::Tensor(_) => UNFORESEEN,
        };
        Self { hint: error.hint().map(str::to_owned), message: chain(&error), code }
    }
}
