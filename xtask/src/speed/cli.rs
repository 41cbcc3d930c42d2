//! What `cargo xtask speed` takes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::detectors::{Clock, Options as Detectors};
use super::{Options, Task};

const EXAMPLES: &str = "\
Examples:
  cargo xtask speed --python venv/bin/python               the networks
  cargo xtask speed detectors --python venv/bin/python     detectors against numpy, scipy and faiss
  cargo xtask speed detectors --openood ../OpenOOD         against OpenOOD's own postprocessors
  cargo xtask speed detectors --method knn,mds --train 5000 --test 2000";

/// The subcommand.
pub(crate) fn command() -> Command {
    networks("speed")
        .about("Compare our networks, or our detectors, on the CPU with those in Python")
        .after_help(EXAMPLES)
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(
            networks("networks")
                .about("Our networks and PyTorch's on the same weights in turn; the default"),
        )
        .subcommand(detectors())
}

fn networks(name: &'static str) -> Command {
    Command::new(name)
        .arg(python("The Python that can import torch"))
        .arg(number("threads", "Threads of each side [default: all cores]"))
        .arg(number("repeats", "How often each task is timed").default_value("5"))
        .arg(number("batch", "Images of a batch").default_value("8"))
}

fn detectors() -> Command {
    Command::new("detectors")
        .about("Our detectors and those of the reference on the same features in turn")
        .arg(python("The Python that can import the reference's libraries"))
        .arg(
            Arg::new("openood")
                .long("openood")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("A checkout of OpenOOD, whose postprocessors are the reference [default: formulas in numpy, scipy and faiss]"),
        )
        .arg(
            Arg::new("method")
                .long("method")
                .value_name("LIST")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Detectors [default: all that run on features]"),
        )
        .arg(number("train", "Images to train on").default_value("50000"))
        .arg(number("test", "Images to score").default_value("100000"))
        .arg(number("dim", "Features of an image").default_value("512"))
        .arg(number("classes", "Classes").default_value("10"))
        .arg(number("repeats", "How often each detector is timed").default_value("3"))
        .arg(number("threads", "Threads of each side [default: all cores]"))
        .arg(
            number("budget", "Seconds after which the reference scores no further images")
                .default_value("60"),
        )
        .arg(
            Arg::new("processor-time")
                .long("processor-time")
                .action(ArgAction::SetTrue)
                .help("Count the time that threads work instead of wall time, for a busy machine; on Linux"),
        )
}

fn python(help: &'static str) -> Arg {
    Arg::new("python")
        .long("python")
        .value_name("PROGRAM")
        .value_parser(value_parser!(OsString))
        .default_value("python3")
        .help(help)
}

fn number(name: &'static str, help: &'static str) -> Arg {
    let above_none = value_parser!(u32).range(1..);
    Arg::new(name).long(name).value_name("N").value_parser(above_none).help(help)
}

/// What was asked for.
pub(crate) fn task(matches: &ArgMatches) -> Task {
    let (name, matches) = matches.subcommand().unwrap_or(("networks", matches));
    let given = |name: &str| matches.get_one::<u32>(name).map(|&n| n as usize);
    // All that are asked for here have defaults.
    let number = |name| given(name).unwrap_or(1);
    let python = matches.get_one::<OsString>("python").cloned().unwrap_or_default();
    let (threads, repeats) = (given("threads"), number("repeats"));
    if name == "networks" {
        return Task::Networks(Options { python, threads, repeats, batch: number("batch") });
    }
    Task::Detectors(Detectors {
        python,
        openood: matches.get_one::<PathBuf>("openood").cloned(),
        threads,
        repeats,
        n_train: number("train"),
        n_test: number("test"),
        n_features: number("dim"),
        n_classes: number("classes"),
        methods: matches.get_many("method").into_iter().flatten().cloned().collect(),
        budget: number("budget"),
        clock: match matches.get_flag("processor-time") {
            true => Clock::Processor,
            false => Clock::Wall,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        let words = std::iter::once("speed").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Ok(task(&matches))
    }

    #[test]
    fn networks_are_compared_by_default() {
        let options = Options { python: "python3".into(), threads: None, repeats: 5, batch: 8 };
        for line in ["", "networks"] {
            assert_eq!(parse(line), Ok(Task::Networks(options.clone())));
        }
        let options = Options { threads: Some(1), batch: 2, ..options };
        for line in ["--threads 1 --batch 2", "networks --threads 1 --batch 2"] {
            assert_eq!(parse(line), Ok(Task::Networks(options.clone())));
        }
        assert!(parse("--repeats 0").is_err());
    }

    #[test]
    fn detectors_have_the_sizes_of_a_large_benchmark() {
        let options = Detectors {
            python: "python3".into(),
            openood: None,
            threads: None,
            repeats: 3,
            n_train: 50_000,
            n_test: 100_000,
            n_features: 512,
            n_classes: 10,
            methods: Vec::new(),
            budget: 60,
            clock: Clock::Wall,
        };
        assert_eq!(parse("detectors"), Ok(Task::Detectors(options.clone())));
        let methods = ["knn", "mds", "vim"].map(str::to_owned).to_vec();
        let openood = Some("../o".into());
        let clock = Clock::Processor;
        let options = Detectors { methods, openood, clock, n_test: 200, ..options };
        let line =
            "detectors --method knn,mds --method vim --openood ../o --test 200 --processor-time";
        assert_eq!(parse(line), Ok(Task::Detectors(options)));
        assert!(parse("detectors --batch 2").is_err());
        assert!(parse("--openood ../o").is_err());
    }
}
