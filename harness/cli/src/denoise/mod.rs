//! `oodbench denoise`: DiffOOD's process, with its denoised images in hand.
//!
//! `bench` is the way to a leaderboard and keeps no images. Here they are the point: `save` writes
//! them in the layout of the reference's `temp/sample`, `table` makes the reference's table of
//! such files, its own or ours, and `strip` shows what the process does to some images.

mod process;
mod save;
mod strip;
mod table;

use clap::{Args, Subcommand};
use oodbench_diffusion::denoise::samples::SamplesError;
use oodbench_engine::text::chain;
use oodbench_nn::npz::NpzError;

use crate::exit::{Failure, SETUP, WRITE_FAILED};

/// What to do with denoised images.
#[derive(Debug, Args)]
pub(crate) struct DenoiseArgs {
    #[command(subcommand)]
    command: DenoiseCommand,
}

#[derive(Debug, Subcommand)]
enum DenoiseCommand {
    /// Write the denoised images of a benchmark, and what the classifier makes of them, as npz.
    #[command(after_help = "\
Examples:
  oodbench denoise save --out samples                          the embedded benchmark
  oodbench denoise save --benchmark cifar10 --data DIR --classifier res18_cifar10.ckpt \\
      --weights ddim_cifar10_cond.ckpt --config ddim_cifar10_cond.yml --limit 1000 --out samples
  oodbench denoise save --set-names digits,letters --limit 50 --steps 10 --out samples

A file that is there is kept if it was made with the same settings: the same command started again
writes what is left.")]
    Save(save::SaveArgs),
    /// Print the reference's table of samples that were saved by it or by `save`.
    #[command(after_help = "\
Examples:
  oodbench denoise table samples
  oodbench denoise table temp/sample --id cifar10 --space feature --repeats 4
  oodbench denoise table samples --format csv              with FPR@95")]
    Table(table::TableArgs),
    /// Draw images beside what noise and denoising make of them.
    #[command(after_help = "\
Examples:
  oodbench denoise strip                                       images of the embedded benchmark
  oodbench denoise strip cat.png dog.png --benchmark cifar10 --classifier FILE --weights FILE \\
      --out strip.png")]
    Strip(strip::StripArgs),
}

/// Runs the command.
pub(crate) fn run(args: &DenoiseArgs) -> Result<u8, Failure> {
    match &args.command {
        DenoiseCommand::Save(args) => save::run(args),
        DenoiseCommand::Table(args) => table::run(args),
        DenoiseCommand::Strip(args) => strip::run(args),
    }
}

/// A file of samples that cannot be read or written.
fn samples_failure(error: &SamplesError) -> Failure {
    let is_write =
        matches!(error, SamplesError::Write { .. } | SamplesError::Npz(NpzError::Write { .. }));
    let code = if is_write { WRITE_FAILED } else { SETUP };
    let hint = match error {
        SamplesError::Shape { expected, .. } if expected.contains("repeats") => {
            Some("`--repeats N`, as the file was made".to_owned())
        }
        _ => None,
    };
    Failure { message: chain(error), hint, code }
}
