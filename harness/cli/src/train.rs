//! `oodbench train`: networks from images.
//!
//! `train embedded` makes the two files of the embedded benchmark: the classifier and the diffusion
//! network of `glyphs`. Images are drawn, recipe and seed are in a file, and every random number
//! follows from the seed, so the same recipe on the same machine gives the same bytes. An
//! interrupted training goes on from its last checkpoint.

mod embedded;
mod recipe;
mod weights;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What to train.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// Train the networks of the embedded benchmark `glyphs`.
    #[command(after_help = "\
Examples:
  oodbench train embedded                      both networks, into datasets/benchmarks/glyphs
  oodbench train embedded --only classifier    a few minutes
  oodbench train embedded --out /tmp/weights   leave the committed files alone")]
    Embedded(EmbeddedArgs),
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

/// Runs the command.
///
/// # Errors
/// A recipe, a device or a folder that cannot be used, or a training that diverged.
pub(crate) fn run(args: TrainArgs) -> anyhow::Result<()> {
    match args.command {
        TrainCommand::Embedded(args) => embedded::run(&args),
    }
}
