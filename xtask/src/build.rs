//! Builds the binary and its packs, and stages the packs.

use std::ffi::OsString;
use std::io::IsTerminal;

use crate::command::{Step, say};
use crate::own;
use crate::stage::stage;
use crate::workspace::{BINARY, PACKS, Profile, Workspace, library};

/// Features of cargo that xtask understands; other values of `--features` are the binary's.
const FEATURES: &[&str] = &["cuda", "cudnn", "nccl"];

/// Takes `--features cuda` out of the arguments. The bench itself has a `--features DIR`, which
/// stays: a folder of that name is written `./cuda`.
pub(crate) fn split_features(args: Vec<OsString>) -> (Vec<String>, Vec<OsString>) {
    let known = |value: &str| {
        let mut parts = value.split(',');
        parts.all(|part| FEATURES.contains(&part))
    };
    let (mut features, mut rest) = (Vec::new(), Vec::new());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let next = args.peek().and_then(|next| next.to_str());
        if arg == "--features"
            && let Some(value) = next.filter(|value| known(value))
        {
            features.extend(value.split(',').map(str::to_owned));
            args.next();
            continue;
        }
        match arg.to_str().and_then(|arg| arg.strip_prefix("--features=")) {
            Some(value) if known(value) => features.extend(value.split(',').map(str::to_owned)),
            _ => rest.push(arg),
        }
    }
    (features, rest)
}

/// A build for GPUs keeps its files apart: going back and forth would otherwise build everything
/// anew each time.
pub(crate) fn with_features(workspace: &Workspace, features: &[String]) -> Workspace {
    let mut workspace = workspace.clone();
    if !features.is_empty() {
        workspace.target = workspace.target.join("cuda");
    }
    workspace
}

/// The command that builds the binary and its packs for use.
fn build_step(workspace: &Workspace, features: &[String], quiet: bool) -> Step {
    let step = Step::new(&workspace.cargo);
    let mut step = match workspace.profile {
        Profile::Release => step
            .args(["build", "--release", "--locked", "-p", BINARY])
            .args(PACKS.iter().flat_map(|(package, _)| ["-p", package])),
        Profile::Dev => everything(step),
    };
    if !features.is_empty() {
        step = step.args(["--features", &features.join(",")]);
    }
    if quiet {
        step = step.arg("--quiet");
    }
    step.arg("--target-dir").arg(&workspace.target).folder(&workspace.root)
}

/// The whole workspace, because cargo chooses the features of third-party crates by what is built
/// together: a selection would be compiled apart from what the tests link. Without xtask, which
/// is running and cannot be replaced everywhere.
pub(crate) fn everything(cargo: Step) -> Step {
    cargo.args(["build", "--workspace", "--exclude", "xtask", "--locked"])
}

/// Builds the binary and its packs and stages the packs; gives cargo's exit code.
pub(crate) fn build(workspace: &Workspace, features: &[String]) -> anyhow::Result<u8> {
    if !workspace.binary(workspace.profile).exists() {
        say("building oodbench and its detector packs: minutes the first time, seconds after that");
    }
    // On a terminal cargo shows how far it is; elsewhere its list of crates helps nobody.
    let quiet = !std::io::stderr().is_terminal();
    let code = build_step(workspace, features, quiet).run()?;
    if code == 0 {
        stage_packs(workspace, workspace.profile)?;
    }
    Ok(code)
}

/// Copies the packs that come with the binary to where it looks for them.
pub(crate) fn stage_packs(workspace: &Workspace, profile: Profile) -> anyhow::Result<()> {
    for (_, name) in PACKS {
        let built = workspace.built(profile).join(library(name));
        stage(&built, &workspace.staged_packs(profile))?;
    }
    Ok(())
}

/// `cargo xtask plugins`: every pack, staged for the binary; gives cargo's exit code.
pub(crate) fn plugins(workspace: &Workspace, args: Vec<OsString>) -> anyhow::Result<u8> {
    let (features, rest) = split_features(args);
    if let Some(arg) = rest.first() {
        anyhow::bail!(
            "unexpected argument `{}`\n\nhint: cargo xtask plugins [--features cuda]",
            arg.display()
        );
    }
    let target = with_features(workspace, &features);
    let code = build(&target, &features)?;
    if code != 0 {
        return Ok(code);
    }
    let staged = target.staged_packs(target.profile);
    let (code, examples) = own::build_examples(&target, target.profile)?;
    if code != 0 {
        return Ok(code);
    }
    for library in examples {
        stage(&library, &staged)?;
    }
    let code = own::build_and_stage(&target)?;
    if code != 0 {
        return Ok(code);
    }
    say(&format!("packs are in {}", staged.display()));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_cargo_are_told_from_a_folder_of_features() {
        let check = |line: &str, features: &[&str], rest: &str| {
            let args = line.split_whitespace().map(OsString::from).collect();
            let rest = rest.split_whitespace().map(OsString::from).collect();
            let features = features.iter().map(|&feature| feature.to_owned()).collect();
            assert_eq!(split_features(args), (features, rest), "{line}");
        };
        check("--method msp", &[], "--method msp");
        check("--features cuda --method msp", &["cuda"], "--method msp");
        check("--method msp --features=cuda,cudnn", &["cuda", "cudnn"], "--method msp");
        check("--features DIR", &[], "--features DIR");
        check("--features ./cuda", &[], "--features ./cuda");
        check("--features=cuda/", &[], "--features=cuda/");
        check("--features cuda,other", &[], "--features cuda,other");
        check("--features cuda --features DIR", &["cuda"], "--features DIR");
        check("--features", &[], "--features");
        check("--features=", &[], "--features=");
    }

    #[test]
    fn a_build_is_locked_and_knows_its_target_directory() {
        let step = build_step(&Workspace::example(), &[], false).to_string();
        assert_eq!(
            step,
            "cargo build --release --locked -p oodbench -p oodbench-posthoc-pack \
             -p oodbench-diffood-pack --target-dir /repo/target"
        );
    }

    #[test]
    fn a_build_for_gpus_has_a_target_directory_of_its_own() {
        let features = ["cuda".to_owned(), "cudnn".to_owned()];
        let workspace = with_features(&Workspace::example(), &features);
        let step = build_step(&workspace, &features, true).to_string();
        assert!(
            step.contains("--features cuda,cudnn --quiet --target-dir /repo/target/cuda"),
            "{step}"
        );
        assert_eq!(
            workspace.staged_packs(Profile::Release),
            std::path::Path::new("/repo/target/cuda/release/packs")
        );
    }
}
