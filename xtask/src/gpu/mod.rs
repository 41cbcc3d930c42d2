//! `cargo xtask gpu`: all that concerns a machine with an NVIDIA GPU, in one command.
//!
//! Such a machine is often another one than that where one works, without Rust and without a
//! network. So everything is built here, without a GPU and without CUDA ([`toolchain`], [`shim`],
//! [`build`]), put into one folder ([`parcel`]), and run there by the folder's own `run.sh`, which
//! needs nothing but Python with PyTorch. Where the machine has a GPU, it is run at once.
//!
//! [`rehearse`] runs the same script with a stand-in for the driver, so that every line of it has
//! been executed before a GPU is at hand. What it prints of times means nothing.

mod build;
mod check;
pub(crate) mod cli;
mod parcel;
mod rehearse;
#[cfg(all(test, unix))]
mod scripts;
mod shim;
mod toolchain;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::command::{Step, say};
use crate::workspace::Workspace;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Prepares; runs where there is a GPU, and says what to do where there is none.
    Everything(Options, Visit),
    Prepare(Options),
    Rehearse(Options, Visit),
    Check {
        /// Without the tests.
        quick: bool,
    },
}

/// Where things go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The folder for the parcel; inside of the target directory where none is named.
    pub(crate) to: Option<PathBuf>,
}

impl Options {
    fn folder(&self, workspace: &Workspace) -> PathBuf {
        self.to.clone().unwrap_or_else(|| workspace.target.join("gpu"))
    }
}

/// How the script is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// The Python that has PyTorch.
    pub(crate) python: OsString,
    pub(crate) args: Vec<OsString>,
}

/// Does the task; the exit code.
///
/// # Errors
/// What cannot be found, fetched or written. Programs that fail keep their own exit code.
pub(crate) fn run(workspace: &Workspace, task: &Task) -> anyhow::Result<u8> {
    match task {
        Task::Everything(options, visit) => everything(workspace, options, visit),
        Task::Prepare(options) => match prepare(workspace, options)? {
            Ok(parcel) => {
                how_to_use(&parcel);
                Ok(0)
            }
            Err(code) => Ok(code),
        },
        Task::Rehearse(options, visit) => rehearse::run(workspace, options, visit),
        Task::Check { quick } => check::run(workspace, *quick),
    }
}

/// Builds for GPUs and puts the parcel together; or the exit code of what failed.
fn prepare(workspace: &Workspace, options: &Options) -> anyhow::Result<Result<parcel::Made, u8>> {
    let toolchain = toolchain::Toolchain::ready(workspace)?;
    let built = match build::build(workspace, &toolchain)? {
        Ok(built) => built,
        Err(code) => return Ok(Err(code)),
    };
    let made = parcel::make(workspace, &built, &options.folder(workspace))?;
    say(&format!(
        "the folder is {}\nthe archive is {}, {:.1} MiB",
        made.folder.display(),
        made.archive.display(),
        made.bytes as f64 / f64::from(1 << 20)
    ));
    Ok(Ok(made))
}

fn everything(workspace: &Workspace, options: &Options, visit: &Visit) -> anyhow::Result<u8> {
    let parcel = match prepare(workspace, options)? {
        Ok(parcel) => parcel,
        Err(code) => return Ok(code),
    };
    if !has_gpu() {
        say("no NVIDIA GPU answers on this machine");
        how_to_use(&parcel);
        return Ok(0);
    }
    script(&parcel.folder, visit).become_it()
}

/// Two lines for whoever carries the archive.
fn how_to_use(parcel: &parcel::Made) {
    let archive = parcel.archive.file_name().unwrap_or_default().display().to_string();
    say(&format!(
        "on a machine with a GPU and Python with PyTorch:\n    tar -xJf {archive} && {}/run.sh",
        parcel::NAME
    ));
}

/// Whether the driver's own program sees a GPU.
fn has_gpu() -> bool {
    let output = std::process::Command::new("nvidia-smi").arg("-L").output();
    output.is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"GPU "))
}

/// The folder's script.
fn script(folder: &Path, visit: &Visit) -> Step {
    Step::new("bash")
        .arg(folder.join("run.sh"))
        .arg("--python")
        .arg(&visit.python)
        .args(&visit.args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_gets_its_python_and_the_arguments() {
        let visit = Visit { python: "py".into(), args: vec!["--only".into(), "speed".into()] };
        let line = script(Path::new("/t/gpu/x"), &visit).to_string();
        assert_eq!(line, "bash /t/gpu/x/run.sh --python py --only speed");
    }

    #[test]
    fn the_parcel_is_inside_of_the_target_directory_unless_it_is_to_be_elsewhere() {
        let workspace = Workspace::example();
        let folder = |to: Option<&str>| Options { to: to.map(PathBuf::from) }.folder(&workspace);
        assert_eq!(folder(None), Path::new("/repo/target/gpu"));
        assert_eq!(folder(Some("x")), Path::new("x"));
    }
}
