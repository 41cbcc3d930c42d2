//! The `oodbench` binary.

mod train;

use clap::{Parser, Subcommand};

/// Which detector to trust, by how much, and at what cost.
#[derive(Parser)]
#[command(name = "oodbench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train networks.
    Train(train::TrainArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::run(args),
    }
}
