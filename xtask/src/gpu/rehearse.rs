//! `cargo xtask gpu rehearse`: the parcel's script on a machine without a GPU.
//!
//! NVIDIA's libraries are replaced by the stand-in of `tests/standin`, which does on the CPU what
//! the driver, cuBLAS and cuDNN do, and is strict about it; PyTorch's side computes on the CPU. Sizes
//! are tiny. Every program, every script and every line of the table is executed; times are not
//! printed, because they would mean nothing.

use std::path::Path;

use super::{Options, Visit, build, parcel, script, toolchain};
use crate::command::{Step, run_all, say};
use crate::workspace::Workspace;

/// The package of the stand-in.
const STAND_IN: &str = "oodbench-standin";

/// Its program that gives its library all names of NVIDIA's, in a folder.
const LINKS: &str = "standin-links";

/// Builds everything, and runs the script; the exit code.
///
/// # Errors
/// What cannot be found, fetched or written.
pub(super) fn run(workspace: &Workspace, options: &Options, visit: &Visit) -> anyhow::Result<u8> {
    let toolchain = toolchain::Toolchain::ready(workspace)?;
    let built = match build::build(workspace, &toolchain)? {
        Ok(built) => built,
        Err(code) => return Ok(code),
    };
    let filled = parcel::fill(workspace, &built, &options.folder(workspace))?;
    let target = workspace.target.join("standin");
    let folder = target.join("links");
    match run_all(&steps(workspace, &target, &folder))? {
        0 => {}
        code => return Ok(code),
    }
    say("a rehearsal: stand-in driver, no times");
    script(&filled.folder, visit).arg("--stand-in").arg(folder).become_it()
}

/// Builds the stand-in, and puts it where programs find it.
fn steps(workspace: &Workspace, target: &Path, folder: &Path) -> [Step; 2] {
    let build = Step::new(&workspace.cargo)
        .args(["build", "--release", "--locked", "-p", STAND_IN, "--target-dir"])
        .arg(target)
        .folder(&workspace.root);
    [build, Step::new(target.join("release").join(LINKS)).arg(folder)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_has_a_target_directory_of_its_own() {
        let target = Path::new("/repo/target/standin");
        let [build, links] = steps(&Workspace::example(), target, Path::new("/links"));
        assert_eq!(
            build.to_string(),
            "cargo build --release --locked -p oodbench-standin --target-dir /repo/target/standin"
        );
        assert_eq!(links.to_string(), "standin-links /links");
    }

    #[test]
    fn the_stand_in_is_a_crate_of_this_checkout() {
        let folder = Workspace::from_env().root.join("tests/standin");
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for name in [STAND_IN, LINKS] {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }
}
