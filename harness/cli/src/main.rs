//! The `oodbench` binary: alone in printing, exiting and reading the environment.
//!
//! Data goes to stdout, talk to stderr. A failure is one line `error: …`, with a `hint:` line
//! where there is a remedy, and an exit code of [`exit`].

mod bench;
mod config;
mod data;
mod denoise;
mod device;
mod diffusion;
mod environment;
mod exit;
mod fid;
mod interpolate;
mod observer;
mod outline;
mod plugin;
mod report;
mod sample;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;

/// Which out-of-distribution detector to trust, by how much, and at what cost.
#[derive(Debug, Parser)]
#[command(
    name = "oodbench",
    version,
    after_help = "\
Examples:
  oodbench bench --method diffood              on the embedded benchmark
  oodbench bench --method all --benchmark cifar10 --data DIR --classifier resnet18_32x32:FILE
  oodbench plugin list                         every detector and what it needs

Exit codes: 0 done, 1 unforeseen, 2 usage, 4 nothing to run, 5 cells outstanding, 96 setup,
97 a GPU's memory is full, 100 cells failed, 103 plugin refused, 110 a result cannot be saved."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Score detectors on a benchmark and print the leaderboard.
    Bench(Box<bench::BenchArgs>),
    /// List, inspect and check detector packs.
    Plugin(plugin::PluginArgs),
    /// Denoise images, save what comes of it, and show it.
    Denoise(Box<denoise::DenoiseArgs>),
    /// List, prepare and verify image sets.
    Data(data::DataArgs),
    /// Make the leaderboard of a finished run again.
    Report(report::ReportArgs),
    /// Measure how far two sets of images are apart (Fréchet inception distance).
    Fid(Box<fid::FidArgs>),
    /// Sample images of a diffusion network.
    Sample(Box<sample::SampleArgs>),
    /// Show what lies between two images.
    Interpolate(Box<interpolate::InterpolateArgs>),
    /// Train networks.
    Train(train::TrainArgs),
    /// Serve one request of a bench on standard input.
    #[command(hide = true)]
    Worker,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(*args),
        Command::Plugin(args) => plugin::run(&args),
        Command::Denoise(args) => denoise::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Fid(args) => fid::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Interpolate(args) => interpolate::run(&args),
        Command::Train(args) => train::run(args),
        Command::Worker => oodbench_engine::process::serve()
            .map(|()| exit::DONE)
            .map_err(|e| Failure::from(anyhow::Error::from(e))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.say();
            ExitCode::from(failure.code)
        }
    }
}
