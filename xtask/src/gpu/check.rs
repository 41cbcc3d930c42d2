//! `cargo xtask gpu check`: what can be known of a build for GPUs without one.
//!
//! It compiles and links; the programs start where there is no driver and say so in a line; and the
//! tests of the CPU pass in it, so that `--features cuda` changes nothing for those who have none.

use anyhow::bail;

use super::build;
use super::toolchain::Toolchain;
use crate::build::{everything, stage_packs};
use crate::command::{Step, say};
use crate::own;
use crate::workspace::{Profile, Workspace};

/// Builds, starts, and tests; the exit code.
pub(super) fn run(workspace: &Workspace, quick: bool) -> anyhow::Result<u8> {
    let toolchain = Toolchain::ready(workspace)?;
    match build::build(workspace, &toolchain)? {
        Ok(_) => say("ok: it compiles and links"),
        Err(code) => return Ok(code),
    }
    let target = build::target(workspace);
    starts_without_driver(&target)?;
    if quick {
        return Ok(0);
    }
    // What black-box tests start is built first, as for the tests of the plain build.
    match toolchain.environment(everything_step(&target)).show_and_run()? {
        0 => {}
        code => return Ok(code),
    }
    let (code, _) = own::build_examples(&target, Profile::Release)?;
    if code != 0 {
        return Ok(code);
    }
    stage_packs(&target, Profile::Release)?;
    own::unstage_all(&target, Profile::Release)?;
    match toolchain.environment(test_step(&target)).show_and_run()? {
        0 => say("ok: the tests of the CPU pass in a build for GPUs"),
        code => return Ok(code),
    }
    Ok(0)
}

/// Starts the binary with an empty search path for libraries, and asks it for a GPU.
fn starts_without_driver(target: &Workspace) -> anyhow::Result<()> {
    let binary = target.binary(Profile::Release);
    let step = Step::new(&binary).arg("--version").without("LD_LIBRARY_PATH");
    let (code, version) = step.output()?;
    if code != 0 {
        bail!("`{step}` expected to start without a driver, ended with {code}");
    }
    say(&format!("ok: {} starts without a driver", version.trim()));
    if super::has_gpu() {
        say("a GPU answers on this machine, so that what it says without one is not checked");
        return Ok(());
    }
    let folder = target.target.join("gpu-check");
    let step = Step::new(&binary)
        .args(["bench", "--method", "msp", "--limit", "10", "--device", "cuda:0", "--out"])
        .arg(&folder)
        .without("LD_LIBRARY_PATH");
    let (code, said) = step.errors()?;
    if let Err(why) = refuses(code, &said) {
        bail!("`{step}` {why}");
    }
    say("ok: asked for a GPU, it says that there is none");
    Ok(())
}

/// Whether a program that was asked for a GPU said in one line that there is none.
fn refuses(code: u8, said: &str) -> Result<(), String> {
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    if code == 0 || code >= 128 {
        return Err(format!("expected an error where there is no GPU, ended with {code}: {said}"));
    }
    match errors[..] {
        [line] if line.contains("CUDA") => Ok(()),
        _ => Err(format!("expected one line about CUDA, got: {said}")),
    }
}

fn everything_step(target: &Workspace) -> Step {
    let step = everything(Step::new(&target.cargo)).args(["--release", "--features", FEATURES]);
    step.arg("--target-dir").arg(&target.target).folder(&target.root)
}

/// The tests of every crate, in the build for GPUs. Those on a device have a feature of their own,
/// and are not among them.
fn test_step(target: &Workspace) -> Step {
    Step::new(&target.cargo)
        .args(["test", "--release", "--workspace", "--exclude", "xtask", "--locked"])
        .args(["--no-fail-fast", "--features", FEATURES, "--target-dir"])
        .arg(&target.target)
        .arg("--")
        .args(OF_THE_PLAIN_BUILD.iter().flat_map(|name| ["--skip", name]))
        .folder(&target.root)
}

/// Tests of `cargo xtask new-plugin`, which build plugins themselves, and not for GPUs.
const OF_THE_PLAIN_BUILD: &[&str] = &[
    "every_command_of_the_page_for_new_detectors_does_what_it_says",
    "plugins_that_come_change_their_ids_break_and_vanish",
    "what_cannot_be_a_plugin_is_refused",
];

const FEATURES: &str = "cuda,cudnn";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_is_an_error_of_one_line() {
        let said = "talk\nerror: no CUDA driver on this machine\n\nhint: `--device cpu`\n";
        assert_eq!(refuses(96, said), Ok(()));
        assert!(refuses(0, said).is_err());
        assert!(refuses(139, said).is_err(), "a crash is no answer");
        assert!(refuses(96, "thread 'main' panicked at CUDA").is_err());
        assert!(refuses(96, "error: CUDA\nerror: CUDA").is_err());
    }

    #[test]
    fn the_tests_are_those_of_the_cpu() {
        let target = build::target(&Workspace::example());
        for step in [everything_step(&target), test_step(&target)] {
            let line = step.to_string();
            assert!(line.contains(" --release "), "{line}");
            let build = "--features cuda,cudnn --target-dir /repo/target/cuda";
            assert!(line.contains(build), "{line}");
        }
    }

    #[test]
    fn what_is_left_to_the_plain_build_is_there() {
        let tests = Workspace::from_env().root.join("tests/new_plugin.rs");
        let tests = std::fs::read_to_string(tests).unwrap();
        for name in OF_THE_PLAIN_BUILD {
            assert!(tests.contains(&format!("fn {name}(")), "{name}");
        }
    }
}
