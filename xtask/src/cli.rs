//! The subcommands of xtask and their help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::gpu;
use crate::new_plugin;
use crate::speed;
use crate::workspace::Profile;

/// Subcommands of the binary that are handed over to, and what they are for.
const HANDED_OVER: &[(&str, &str)] = &[
    ("bench", "Score a benchmark with detectors and print the leaderboard"),
    ("plugin", "List, inspect and check detector packs"),
    ("data", "List, prepare and verify the data sets of a benchmark"),
    ("denoise", "Denoise images: `save` samples, `table` of samples, `strip` of images"),
    ("report", "Make the reports of earlier runs again"),
    ("fid", "Measure how far two sets of images are apart"),
    ("sample", "Sample images of a diffusion network"),
    ("interpolate", "Show what lies between two images"),
    ("train", "Train a diffusion network or a classifier"),
];

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench --method diffood       the embedded benchmark, nothing else needed
  cargo xtask bench --method msp,knn --benchmark cifar10 --data DIR --classifier resnet18_32x32:FILE
  cargo xtask bench --help                 what the bench can do
  cargo xtask bench --features cuda …      the same, built for NVIDIA GPUs
  cargo xtask bench --features DIR --method all   features that another program exported
  cargo xtask new-plugin my-detector       a detector of your own, which the next bench knows
  cargo xtask test                         every test there is
  cargo xtask test --golden                those against reference numbers, in $OODBENCH_SHARED
  cargo xtask speed --python venv/bin/python   our networks against PyTorch's, on the CPU
  cargo xtask speed detectors --openood DIR   our detectors against OpenOOD's
  cargo xtask gpu prepare                  all that a machine with an NVIDIA GPU needs, in a folder
  cargo xtask run -- --version             the binary with any arguments";

/// What xtask was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Build the binary and its packs, and let the binary go on.
    HandOver {
        /// The subcommand of the binary; none for `run`, whose arguments begin with it.
        subcommand: Option<&'static str>,
        args: Vec<OsString>,
    },
    /// Build and stage every pack, that of `plugins/example` too.
    Plugins {
        args: Vec<OsString>,
    },
    /// Make a detector pack outside of the workspace.
    NewPlugin(new_plugin::Options),
    /// Write what is generated in the documents.
    Docs {
        /// The README's example of a run, too.
        run: bool,
    },
    Test {
        golden: bool,
        args: Vec<OsString>,
    },
    Ci,
    Speed(speed::Task),
    /// What concerns machines with a GPU.
    Gpu(gpu::Task),
}

/// Reads the command line, or prints help and ends. What is built for use comes with the task.
pub(crate) fn parse() -> (Profile, Task) {
    let matches = command().get_matches();
    (profile(&matches), task(&matches))
}

fn profile(matches: &ArgMatches) -> Profile {
    if matches.get_flag("dev") { Profile::Dev } else { Profile::Release }
}

fn command() -> Command {
    let rest = |help: &'static str| {
        Arg::new("args")
            .value_parser(value_parser!(OsString))
            .action(ArgAction::Append)
            .num_args(0..)
            .help(help)
    };
    // Everything behind the name belongs to the binary, `--help` too.
    let passed_on = |name, about| {
        let args = rest("Handed over as they are").trailing_var_arg(true).allow_hyphen_values(true);
        Command::new(name).about(about).disable_help_flag(true).arg(args)
    };
    Command::new("cargo xtask")
        .bin_name("cargo xtask")
        .about("Builds oodbench, runs it, tests it")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(
            Arg::new("dev").long("dev").action(ArgAction::SetTrue).help(
                "Build and run what the tests do, instead of a release; before the subcommand",
            ),
        )
        .subcommands(HANDED_OVER.iter().map(|(name, about)| passed_on(*name, *about)))
        .subcommand(passed_on("run", "Run the binary with any arguments"))
        .subcommand(passed_on("plugins", "Build every detector pack, plugins/example too"))
        .subcommand(
            Command::new("test")
                .about("Run every test there is")
                .arg(
                    Arg::new("golden")
                        .long("golden")
                        .action(ArgAction::SetTrue)
                        .help("Only the tests against reference numbers, in $OODBENCH_SHARED"),
                )
                .arg(rest("For the test binaries: filters, `--nocapture`").last(true)),
        )
        .subcommand(new_plugin())
        .subcommand(
            Command::new("docs").about("Write what is generated in the documents").arg(
                Arg::new("run")
                    .long("run")
                    .action(ArgAction::SetTrue)
                    .help("The README's example of a run, too: every detector, in release"),
            ),
        )
        .subcommand(speed::cli::command())
        .subcommand(gpu::cli::command())
        .subcommand(Command::new("ci").about("Run what CI runs: formatting, lints, tests, docs"))
}

fn new_plugin() -> Command {
    Command::new("new-plugin")
        .about("Make a detector pack of your own, which builds and can be benched at once")
        .after_help(
            "Examples:\n  cargo xtask new-plugin my-detector\n  \
             cargo xtask new-plugin my-detector --path ~/research/my-detector\n\n\
             docs/new-detector.md goes on from there.",
        )
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help("Name of the crate and id of the detector, as in `--method NAME`"),
        )
        .arg(
            Arg::new("path")
                .long("path")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("The folder to make, outside of this checkout [default: NAME, beside it]"),
        )
}

fn task(matches: &ArgMatches) -> Task {
    let (name, matches) =
        matches.subcommand().expect("clap refuses a command line without a subcommand");
    let args = || matches.get_many("args").into_iter().flatten().cloned().collect();
    match name {
        "test" => Task::Test { golden: matches.get_flag("golden"), args: args() },
        "ci" => Task::Ci,
        "docs" => Task::Docs { run: matches.get_flag("run") },
        "new-plugin" => Task::NewPlugin(new_plugin::Options {
            name: matches.get_one::<String>("name").cloned().unwrap_or_default(),
            path: matches.get_one::<PathBuf>("path").cloned(),
        }),
        "speed" => Task::Speed(speed::cli::task(matches)),
        "gpu" => Task::Gpu(gpu::cli::task(matches)),
        "plugins" => Task::Plugins { args: args() },
        "run" => {
            let mut args: Vec<OsString> = args();
            // The first `--` is for those who are used to `cargo run -- …`.
            if args.first().is_some_and(|arg| arg == "--") {
                args.remove(0);
            }
            Task::HandOver { subcommand: None, args }
        }
        name => {
            let known = HANDED_OVER.iter().find(|(known, _)| *known == name);
            let (subcommand, _) = known.expect("clap refuses unknown subcommands");
            Task::HandOver { subcommand: Some(subcommand), args: args() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        let words = std::iter::once("xtask").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Ok(task(&matches))
    }

    fn strings(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn arguments_are_handed_over_as_they_are() {
        for line in ["--method diffood", "--help", "-v --set knn.K=5 -- x", "--data ../a b", ""] {
            let expected = Task::HandOver { subcommand: Some("bench"), args: strings(line) };
            assert_eq!(parse(&format!("bench {line}")), Ok(expected), "{line}");
        }
    }

    #[test]
    fn run_takes_any_subcommand_of_the_binary() {
        let expected = || Task::HandOver { subcommand: None, args: strings("worker --help") };
        assert_eq!(parse("run worker --help"), Ok(expected()));
        assert_eq!(parse("run -- worker --help"), Ok(expected()));
    }

    #[test]
    fn filters_of_tests_come_after_two_dashes() {
        let task = |golden, args| Ok(Task::Test { golden, args: strings(args) });
        assert_eq!(parse("test"), task(false, ""));
        assert_eq!(parse("test --golden"), task(true, ""));
        assert_eq!(parse("test -- tidy --nocapture"), task(false, "tidy --nocapture"));
        assert!(parse("test tidy").is_err());
    }

    #[test]
    fn a_new_plugin_has_a_name_and_perhaps_a_folder() {
        let options = |path| new_plugin::Options { name: "mine".into(), path };
        assert_eq!(parse("new-plugin mine"), Ok(Task::NewPlugin(options(None))));
        let there = Task::NewPlugin(options(Some("../there".into())));
        assert_eq!(parse("new-plugin mine --path ../there"), Ok(there));
        assert!(parse("new-plugin").is_err());
        assert!(parse("new-plugin mine yours").is_err());
    }

    #[test]
    fn what_the_tests_are_built_with_is_asked_for_before_the_subcommand() {
        let profile = |line: &str| {
            let words = std::iter::once("xtask").chain(line.split_whitespace());
            profile(&command().try_get_matches_from(words).unwrap())
        };
        assert_eq!(profile("bench --method msp"), Profile::Release);
        assert_eq!(profile("--dev bench --method msp"), Profile::Dev);
        assert_eq!(profile("bench --dev"), Profile::Release, "that one is the binary's");
    }

    #[test]
    fn an_unknown_subcommand_is_refused_with_a_suggestion() {
        assert!(parse("benhc").unwrap_err().contains("bench"));
        assert!(parse("ci now").is_err());
    }
}
