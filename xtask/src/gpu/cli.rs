//! What `cargo xtask gpu` takes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Options, Task, Visit};

const EXAMPLES: &str = "\
Examples:
  cargo xtask gpu prepare               a folder and an archive for a machine with a GPU
  cargo xtask gpu                       the same, and where there is a GPU, everything on it
  cargo xtask gpu -- --only speed       a part of it
  cargo xtask gpu rehearse              every part with a stand-in for the driver: no times
  cargo xtask gpu check                 that a build for GPUs links, starts and passes the CPU's tests

docs/gpu.md says what is measured and how.";

const VISIT: &str = "For `run.sh`: --minutes N, --only LIST, --images DIR; see `run.sh --help`";

/// The subcommand.
pub(crate) fn command() -> Command {
    Command::new("gpu")
        .about("Prepare everything for a machine with an NVIDIA GPU, and run it there")
        .after_help(EXAMPLES)
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .args([to(), python(), visit()])
        .subcommand(
            Command::new("prepare")
                .about("Build for GPUs, and make the folder and the archive; needs no GPU, no CUDA")
                .arg(to()),
        )
        .subcommand(
            Command::new("rehearse")
                .about("Run all of it on the CPU with a stand-in for the driver, in tiny sizes")
                .args([to(), python(), visit()]),
        )
        .subcommand(
            Command::new("check")
                .about("Check that a build for GPUs links, starts without a driver, and passes the CPU's tests")
                .arg(
                    Arg::new("quick")
                        .long("quick")
                        .action(clap::ArgAction::SetTrue)
                        .help("Without the tests, which have to be compiled once more"),
                ),
        )
}

fn to() -> Arg {
    Arg::new("to")
        .long("to")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .help("Where the folder and the archive go [default: target/gpu]")
}

fn python() -> Arg {
    Arg::new("python")
        .long("python")
        .value_name("PROGRAM")
        .value_parser(value_parser!(OsString))
        .default_value("python3")
        .help("The Python that can import torch")
}

fn visit() -> Arg {
    Arg::new("args")
        .value_parser(value_parser!(OsString))
        .action(clap::ArgAction::Append)
        .num_args(0..)
        .last(true)
        .help(VISIT)
}

/// What was asked for.
pub(crate) fn task(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        None => Task::Everything(options(matches), visit_of(matches)),
        Some(("prepare", matches)) => Task::Prepare(options(matches)),
        Some(("rehearse", matches)) => Task::Rehearse(options(matches), visit_of(matches)),
        Some((_, matches)) => Task::Check { quick: matches.get_flag("quick") },
    }
}

fn options(matches: &ArgMatches) -> Options {
    Options { to: matches.get_one::<PathBuf>("to").cloned() }
}

fn visit_of(matches: &ArgMatches) -> Visit {
    Visit {
        python: matches.get_one::<OsString>("python").cloned().unwrap_or_default(),
        args: matches.get_many("args").into_iter().flatten().cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        let words = std::iter::once("gpu").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Ok(task(&matches))
    }

    fn visit(python: &str, args: &[&str]) -> Visit {
        Visit { python: python.into(), args: args.iter().map(OsString::from).collect() }
    }

    #[test]
    fn everything_is_done_unless_a_part_is_named() {
        let (here, there) = (Options { to: None }, Options { to: Some("there".into()) });
        assert_eq!(parse(""), Ok(Task::Everything(here.clone(), visit("python3", &[]))));
        assert_eq!(parse("prepare"), Ok(Task::Prepare(here.clone())));
        assert_eq!(parse("prepare --to there"), Ok(Task::Prepare(there.clone())));
        let venv = visit("venv/bin/python", &["--only", "speed"]);
        let line = "--to there --python venv/bin/python -- --only speed";
        assert_eq!(parse(line), Ok(Task::Everything(there, venv.clone())));
        let line = "rehearse --python venv/bin/python -- --only speed";
        assert_eq!(parse(line), Ok(Task::Rehearse(here, venv)));
        assert_eq!(parse("check"), Ok(Task::Check { quick: false }));
        assert_eq!(parse("check --quick"), Ok(Task::Check { quick: true }));
    }

    #[test]
    fn what_is_for_the_other_machine_comes_after_two_dashes() {
        assert!(parse("--only speed").is_err());
        assert!(parse("rehearse speed").is_err());
        assert!(parse("prepare -- --only speed").is_err());
    }
}
