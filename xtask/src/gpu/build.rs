//! One call of cargo that builds all that a machine with a GPU is sent.
//!
//! One call, because cargo chooses the features of third-party crates by what is built together:
//! two calls could compile candle's kernels twice, a quarter of an hour each time.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::parcel;
use super::toolchain::Toolchain;
use crate::command::{Step, say};
use crate::workspace::{BINARY, PACKS, Profile, Workspace, library};

/// What a build for GPUs turns on: libraries, and the tests that run on a device; those against
/// reference numbers where these are at hand.
fn features(workspace: &Workspace) -> &'static str {
    match parcel::has_goldens(workspace) {
        true => "cuda,cudnn,device,golden",
        false => "cuda,cudnn,device",
    }
}

/// A program or library for the parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Built {
    /// Where cargo put it.
    pub(super) from: PathBuf,
    /// Where it goes in the parcel.
    pub(super) to: String,
}

/// Programs that cargo names as it builds them: their source, and their place in the parcel.
const PROGRAMS: &[(&str, &str)] = &[
    ("harness/cuda/tests/device/main.rs", "bin/device-kernels"),
    ("harness/cuda/tests/tf32.rs", "bin/device-tf32"),
    ("tests/device/main.rs", "bin/device-networks"),
    ("harness/diffusion/examples/speed/main.rs", "bin/speed"),
];

/// The workspace in which builds for GPUs are kept.
pub(super) fn target(workspace: &Workspace) -> Workspace {
    let mut workspace = crate::build::with_features(workspace, &["cuda".to_owned()]);
    workspace.profile = Profile::Release;
    workspace
}

/// Builds everything; or the exit code of cargo.
///
/// # Errors
/// When cargo cannot be started, or did not build what it was asked for.
pub(super) fn build(
    workspace: &Workspace,
    toolchain: &Toolchain,
) -> anyhow::Result<Result<Vec<Built>, u8>> {
    let target = target(workspace);
    if !target.binary(Profile::Release).exists() {
        say("building for GPUs: up to twenty minutes the first time, for candle's kernels");
    }
    let step = toolchain.environment(step(&target));
    say(&format!("$ {step}"));
    let (code, messages) = step.output()?;
    if code != 0 {
        return Ok(Err(code));
    }
    let built = target.built(Profile::Release);
    let mut all = vec![Built { from: built.join(BINARY), to: "bin/oodbench".to_owned() }];
    for (_, name) in PACKS {
        let name = library(name);
        all.push(Built { from: built.join(&name), to: format!("bin/packs/{name}") });
    }
    for (source, to) in PROGRAMS {
        let from = executable(&messages, &workspace.root.join(source));
        let from = from.with_context(|| format!("build `{source}`: cargo names no program"))?;
        all.push(Built { from, to: (*to).to_owned() });
    }
    Ok(Ok(all))
}

fn step(target: &Workspace) -> Step {
    Step::new(&target.cargo)
        .args(["build", "--release", "--locked", "--message-format", "json-render-diagnostics"])
        .args(["-p", BINARY])
        .args(PACKS.iter().flat_map(|(package, _)| ["-p", package]))
        .args(["-p", "oodbench-cuda", "-p", "oodbench-diffusion", "-p", "oodbench-tests"])
        .args(["--lib", "--bins", "--example", "speed"])
        .args(["--test", "device", "--test", "tf32"])
        .args(["--features", features(target), "--target-dir"])
        .arg(&target.target)
        .folder(&target.root)
}

/// The program of a source file out of cargo's messages, one JSON object a line.
fn executable(messages: &str, source: &Path) -> Option<PathBuf> {
    let source = format!("\"src_path\":\"{}\"", source.display());
    let line = messages.lines().find(|line| line.contains(&source) && line.contains(EXECUTABLE))?;
    let (_, rest) = line.split_once(EXECUTABLE)?;
    Some(PathBuf::from(rest.split_once('"')?.0))
}

const EXECUTABLE: &str = "\"executable\":\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_built_in_one_call() {
        let line = step(&target(&Workspace::example())).to_string();
        assert_eq!(
            line,
            "cargo build --release --locked --message-format json-render-diagnostics \
             -p oodbench -p oodbench-posthoc-pack -p oodbench-diffood-pack -p oodbench-cuda \
             -p oodbench-diffusion -p oodbench-tests --lib --bins --example speed --test device \
             --test tf32 --features cuda,cudnn,device --target-dir /repo/target/cuda"
        );
    }

    #[test]
    fn a_program_is_known_by_its_source() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"src_path":"/r/src/lib.rs"},"#,
            r#""executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"src_path":"/r/tests/a.rs"},"#,
            r#""executable":"/t/deps/a-01","fresh":true}"#,
        );
        let of = |source: &str| executable(messages, Path::new(source));
        assert_eq!(of("/r/tests/a.rs"), Some("/t/deps/a-01".into()));
        assert_eq!(of("/r/src/lib.rs"), None);
        assert_eq!(of("/r/tests/b.rs"), None);
    }

    #[test]
    fn every_program_has_its_source_in_this_checkout() {
        let root = Workspace::from_env().root;
        for (source, to) in PROGRAMS {
            assert!(root.join(source).is_file(), "{source}");
            assert!(to.starts_with("bin/"), "{to}");
        }
    }
}
