//! Builds the binary and its packs, and stages the packs.

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command::{Step, say};
use crate::stage::stage;
use crate::workspace::{BINARY, OUT_OF_TREE, PACKS, Profile, Workspace, library};

/// Features of cargo that xtask understands; other values of `--features` are the binary's.
const FEATURES: &[&str] = &["cuda", "cudnn"];

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
fn release_step(workspace: &Workspace, features: &[String], quiet: bool) -> Step {
    let mut step = Step::new(&workspace.cargo)
        .args(["build", "--release", "--locked", "-p", BINARY])
        .args(PACKS.iter().flat_map(|(package, _)| ["-p", package]));
    if !features.is_empty() {
        step = step.args(["--features", &features.join(",")]);
    }
    if quiet {
        step = step.arg("--quiet");
    }
    step.arg("--target-dir").arg(&workspace.target).folder(&workspace.root)
}

/// Builds the binary and its packs in release and stages the packs; gives cargo's exit code.
pub(crate) fn release(workspace: &Workspace, features: &[String]) -> anyhow::Result<u8> {
    if !workspace.binary(Profile::Release).exists() {
        say("building oodbench and its detector packs: minutes the first time, seconds after that");
    }
    // On a terminal cargo shows how far it is; elsewhere its list of crates helps nobody.
    let quiet = !std::io::stderr().is_terminal();
    let code = release_step(workspace, features, quiet).run()?;
    if code == 0 {
        stage_packs(workspace, Profile::Release)?;
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

/// The command that builds a pack outside of the workspace, with a target directory of its own, as
/// its author would build it.
pub(crate) fn out_of_tree_step(workspace: &Workspace, name: &str, profile: Profile) -> Step {
    let folder = workspace.root.join("plugins").join(name);
    let step = Step::new(&workspace.cargo).args(["build", "--manifest-path"]);
    let step = step.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(folder.join("target"));
    match profile {
        Profile::Dev => step,
        Profile::Release => step.arg("--release"),
    }
    .folder(&workspace.root)
}

/// The libraries that were built for a pack outside of the workspace.
fn out_of_tree_libraries(
    workspace: &Workspace,
    name: &str,
    profile: Profile,
) -> anyhow::Result<Vec<PathBuf>> {
    let folder = workspace.root.join("plugins").join(name).join("target").join(profile.folder());
    let reading = || format!("read `{}`", folder.display());
    let entries = fs::read_dir(&folder).with_context(reading)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(reading)?.path();
        if is_library(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_library(path: &Path) -> bool {
    path.is_file() && path.to_string_lossy().ends_with(std::env::consts::DLL_SUFFIX)
}

/// `cargo xtask plugins`: every pack, staged for the release binary; gives cargo's exit code.
pub(crate) fn plugins(workspace: &Workspace, args: Vec<OsString>) -> anyhow::Result<u8> {
    let (features, rest) = split_features(args);
    if let Some(arg) = rest.first() {
        anyhow::bail!(
            "unexpected argument `{}`\n\nhint: cargo xtask plugins [--features cuda]",
            arg.display()
        );
    }
    let target = with_features(workspace, &features);
    let code = release(&target, &features)?;
    if code != 0 {
        return Ok(code);
    }
    let staged = target.staged_packs(Profile::Release);
    for name in OUT_OF_TREE {
        let code = out_of_tree_step(workspace, name, Profile::Release).show_and_run()?;
        if code != 0 {
            return Ok(code);
        }
        for library in out_of_tree_libraries(workspace, name, Profile::Release)? {
            stage(&library, &staged)?;
        }
    }
    say(&format!("packs are in {}", staged.display()));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> Workspace {
        Workspace {
            root: "/repo".into(),
            target: "/repo/target".into(),
            cargo: "cargo".into(),
            shared: "/shared".into(),
        }
    }

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
        check("--features", &[], "--features");
        check("--features=", &[], "--features=");
    }

    #[test]
    fn a_build_is_locked_and_knows_its_target_directory() {
        let step = release_step(&workspace(), &[], false).to_string();
        assert_eq!(
            step,
            "cargo build --release --locked -p oodbench -p oodbench-posthoc-pack \
             -p oodbench-diffood-pack --target-dir /repo/target"
        );
    }

    #[test]
    fn a_build_for_gpus_has_a_target_directory_of_its_own() {
        let features = ["cuda".to_owned(), "cudnn".to_owned()];
        let workspace = with_features(&workspace(), &features);
        let step = release_step(&workspace, &features, true).to_string();
        assert!(
            step.contains("--features cuda,cudnn --quiet --target-dir /repo/target/cuda"),
            "{step}"
        );
        assert_eq!(
            workspace.staged_packs(Profile::Release),
            Path::new("/repo/target/cuda/release/packs")
        );
    }

    #[test]
    fn a_third_party_pack_is_built_as_its_author_builds_it() {
        assert_eq!(
            out_of_tree_step(&workspace(), "example", Profile::Dev).to_string(),
            "cargo build --manifest-path /repo/plugins/example/Cargo.toml \
             --target-dir /repo/plugins/example/target"
        );
    }
}
