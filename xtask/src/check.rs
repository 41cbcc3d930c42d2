//! Tests, and what CI runs beside them.

use std::ffi::OsString;

use crate::build::{everything, stage_packs};
use crate::command::{Step, run_all, say};
use crate::own;
use crate::workspace::{OUT_OF_TREE, Profile, Workspace};

/// The exit code for reference numbers that are not there, as the binary's for a broken setup.
const SETUP: u8 = 96;

/// The feature behind which the tests against reference numbers are. A test that cannot be run
/// is not built, so that it is never counted as passed.
const GOLDEN: &str = "oodbench-tests/golden";

/// The feature behind which the tests are that need a Python with PyTorch. `.ci/run` looks for one.
const PYTHON: &str = "oodbench-tests/python";

/// `cargo xtask test`: everything there is.
pub(crate) fn test(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<u8> {
    match prepare(workspace)? {
        0 => run_all(&[test_step(workspace, args)]),
        code => Ok(code),
    }
}

/// `cargo xtask test --golden`: the tests against reference numbers, and no others.
pub(crate) fn golden(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<u8> {
    let golden = workspace.shared.join("golden");
    if !golden.is_dir() {
        say(&format!(
            "error: find the reference numbers: nothing at `{}`\n\nhint: set OODBENCH_SHARED to the folder that holds `golden`",
            golden.display()
        ));
        return Ok(SETUP);
    }
    match prepare(workspace)? {
        0 => run_all(&[golden_step(workspace, args)]),
        code => Ok(code),
    }
}

/// `cargo xtask ci`: formatting, lints, tests, docs.
pub(crate) fn ci(workspace: &Workspace) -> anyhow::Result<u8> {
    match run_all(&lint_steps(workspace))? {
        0 => {}
        code => return Ok(code),
    }
    match test(workspace, &[])? {
        0 => run_all(&[doc_step(workspace)]),
        code => Ok(code),
    }
}

/// Builds and stages what black-box tests start: the binary, its packs, and the packs that stand
/// for those of third parties. The user's own are none of the tests' business.
pub(crate) fn prepare(workspace: &Workspace) -> anyhow::Result<u8> {
    let mut code = run_all(&[build_step(workspace)])?;
    if code == 0 {
        (code, _) = own::build_examples(workspace, Profile::Dev)?;
    }
    if code == 0 {
        stage_packs(workspace, Profile::Dev)?;
        own::unstage_all(workspace, Profile::Dev)?;
    }
    Ok(code)
}

fn cargo(workspace: &Workspace, subcommand: &str) -> Step {
    Step::new(&workspace.cargo).arg(subcommand).folder(&workspace.root)
}

fn build_step(workspace: &Workspace) -> Step {
    let step = everything(Step::new(&workspace.cargo)).arg("--target-dir");
    step.arg(&workspace.target).folder(&workspace.root)
}

fn test_step(workspace: &Workspace, args: &[OsString]) -> Step {
    let step = cargo(workspace, "test").args(["--workspace", "--locked", "--no-fail-fast"]);
    for_the_tests(step, workspace, args)
}

fn golden_step(workspace: &Workspace, args: &[OsString]) -> Step {
    let step = cargo(workspace, "test")
        .args(["--workspace", "--locked", "--no-fail-fast", "--features", GOLDEN])
        .args(["--test", "golden_*"])
        .env("OODBENCH_SHARED", &workspace.shared);
    for_the_tests(step, workspace, args)
}

fn for_the_tests(step: Step, workspace: &Workspace, args: &[OsString]) -> Step {
    let step = step.arg("--target-dir").arg(&workspace.target);
    if args.is_empty() { step } else { step.arg("--").args(args) }
}

fn lint_steps(workspace: &Workspace) -> Vec<Step> {
    let mut steps = vec![cargo(workspace, "fmt").args(["--all", "--check"])];
    for name in OUT_OF_TREE {
        let manifest = workspace.root.join("plugins").join(name).join("Cargo.toml");
        steps.push(cargo(workspace, "fmt").args(["--check", "--manifest-path"]).arg(manifest));
    }
    steps.push(
        cargo(workspace, "clippy")
            .args(["--workspace", "--all-targets", "--locked", "--features", GOLDEN])
            .args(["--features", PYTHON])
            .args(["--", "-D", "warnings"]),
    );
    steps
}

fn doc_step(workspace: &Workspace) -> Step {
    cargo(workspace, "doc")
        .args(["--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> Workspace {
        Workspace { shared: "/shared".into(), ..Workspace::example() }
    }

    #[test]
    fn every_test_is_run_and_the_arguments_are_for_the_test_binaries() {
        assert_eq!(
            test_step(&workspace(), &[]).to_string(),
            "cargo test --workspace --locked --no-fail-fast --target-dir /repo/target"
        );
        let step = test_step(&workspace(), &["tidy".into(), "--nocapture".into()]).to_string();
        assert!(step.ends_with("--target-dir /repo/target -- tidy --nocapture"), "{step}");
    }

    #[test]
    fn golden_tests_are_told_where_their_numbers_are() {
        assert_eq!(
            golden_step(&workspace(), &[]).to_string(),
            "OODBENCH_SHARED=/shared cargo test --workspace --locked --no-fail-fast \
             --features oodbench-tests/golden --test 'golden_*' --target-dir /repo/target"
        );
    }

    #[test]
    fn golden_tests_fail_where_their_numbers_are_missing() {
        let missing = Workspace { shared: "/no/such/folder".into(), ..workspace() };
        assert_eq!(golden(&missing, &[]).unwrap(), SETUP);
    }

    #[test]
    fn lints_are_errors_in_ci() {
        let lines: Vec<String> = lint_steps(&workspace()).iter().map(Step::to_string).collect();
        assert_eq!(lines[0], "cargo fmt --all --check");
        assert!(lines.last().unwrap().ends_with("-- -D warnings"), "{lines:?}");
        assert_eq!(
            doc_step(&workspace()).to_string(),
            "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked"
        );
    }
}
