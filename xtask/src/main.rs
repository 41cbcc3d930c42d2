//! `cargo xtask`: what people and CI run.
//!
//! It builds what is needed and hands over to the `oodbench` binary, which has the same
//! subcommands and can be installed alone. What those subcommands mean, xtask does not know: it
//! passes their arguments on as they are, so that there is one place where they are explained.

mod build;
mod check;
mod cli;
mod command;
mod docs;
mod gpu;
mod hand_over;
mod new_plugin;
mod own;
mod speed;
mod stage;
mod template;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

/// Something else than the program that was started has failed. Failing programs keep their own
/// exit code.
const UNFORESEEN: u8 = 1;

fn main() -> ExitCode {
    let (profile, task) = cli::parse();
    let workspace = Workspace { profile, ..Workspace::from_env() };
    match run(task, &workspace) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            command::say(&format!("error: {error:#}"));
            ExitCode::from(UNFORESEEN)
        }
    }
}

fn run(task: cli::Task, workspace: &Workspace) -> anyhow::Result<u8> {
    match task {
        cli::Task::HandOver { subcommand, args } => hand_over::run(workspace, subcommand, args),
        cli::Task::Plugins { args } => build::plugins(workspace, args),
        cli::Task::NewPlugin(options) => new_plugin::run(workspace, &options),
        cli::Task::Docs { run } => docs::run(workspace, run),
        cli::Task::Test { golden: false, args } => check::test(workspace, &args),
        cli::Task::Test { golden: true, args } => check::golden(workspace, &args),
        cli::Task::Ci => check::ci(workspace),
        cli::Task::Gpu(task) => gpu::run(workspace, &task),
        cli::Task::Speed(task) => speed::run(workspace, &task),
    }
}
