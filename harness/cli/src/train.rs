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
    #[cfg(unix)]
    restart_without_candles_threads();
    match args.command {
        TrainCommand::Embedded(args) => embedded::run(&args),
    }
}

/// Starts this program again with `CANDLE_NUM_THREADS=1`, unless the variable is set.
///
/// The threads of candle's own pool wait for work by spinning, at the cost of the threads that our
/// kernels work on: without it training on two cores is more than twice as fast. The pool's size
/// can be said in no other way, and a running program cannot safely set a variable for itself.
/// Where the program cannot be started again, training is slow, but goes on.
#[cfg(unix)]
fn restart_without_candles_threads() {
    use std::os::unix::process::CommandExt;
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        let arguments = std::env::args_os().skip(1);
        let _ = std::process::Command::new(program).args(arguments).env(VARIABLE, "1").exec();
    }
}
