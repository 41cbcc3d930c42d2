//! The house rules that a program can check: how files look, which crate may know which, where
//! memory safety is up to us, and whether the documents still name what is there.
//!
//! It reads the source tree and what `cargo metadata` says of it, without the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace and the crates of the workspace that it may depend on, tests
/// aside. Arrows point one way: the harness never knows a detector, a detector never knows the
/// harness, and what reads records needs no network library.
const ARROWS: &[(&str, &[&str])] = &[
    ("oodbench-abi", &[]),
    ("oodbench-metrics", &[]),
    ("oodbench-pickle", &[]),
    ("oodbench-record", &[]),
    ("oodbench-cuda", &[]),
    ("oodbench-nn", &["oodbench-cuda", "oodbench-pickle"]),
    ("oodbench-diffusion", &["oodbench-cuda", "oodbench-nn"]),
    ("oodbench-datasets", &["oodbench-pickle"]),
    (
        "oodbench-engine",
        &[
            "oodbench-abi",
            "oodbench-datasets",
            "oodbench-metrics",
            "oodbench-nn",
            "oodbench-record",
        ],
    ),
    ("oodbench-reports", &["oodbench-metrics", "oodbench-record"]),
    (
        "oodbench",
        &[
            "oodbench-datasets",
            "oodbench-diffusion",
            "oodbench-engine",
            "oodbench-metrics",
            "oodbench-nn",
            "oodbench-record",
            "oodbench-reports",
        ],
    ),
    ("oodbench-sdk", &["oodbench-abi"]),
    ("oodbench-posthoc", &["oodbench-sdk"]),
    ("oodbench-posthoc-pack", &["oodbench-posthoc", "oodbench-sdk"]),
    ("oodbench-diffood", &["oodbench-diffusion", "oodbench-nn", "oodbench-sdk"]),
    ("oodbench-diffood-pack", &["oodbench-diffood", "oodbench-sdk"]),
    ("oodbench-faulty", &["oodbench-sdk"]),
    ("oodbench-standin", &[]),
    ("xtask", &[]),
];

/// The crate that may depend on all others.
const TESTS: &str = "oodbench-tests";

/// Crates of third parties that belong behind some of ours.
const BEHIND: &[(&str, &[&str])] = &[
    // The raw layer of the ABI stays small enough to be exchanged.
    ("abi_stable", &["oodbench-abi"]),
    ("libloading", &["oodbench-engine"]),
    // Numbers cross every other boundary as slices.
    (
        "candle-core",
        &[
            "oodbench-cuda",
            "oodbench-nn",
            "oodbench-diffusion",
            "oodbench-diffood",
            "oodbench-engine",
            "oodbench",
        ],
    ),
    ("candle-nn", &["oodbench-nn", "oodbench-diffusion", "oodbench-diffood", "oodbench"]),
    // Libraries have errors with fields.
    ("anyhow", &["oodbench", "xtask"]),
    ("clap", &["oodbench", "xtask"]),
];

/// Where the compiler's guarantees are suspended, and why.
const MEMORY_SAFETY_IS_OURS: &[(&str, &str)] = &[
    ("harness/abi/", "the boundary itself"),
    ("harness/engine/src/pack/", "opening a foreign library"),
    ("plugins/sdk/src/export.rs", "what a pack exports"),
    ("plugins/sdk/src/bridge.rs", "a detector is dropped where its panic can be caught"),
    ("plugins/faulty/", "crashes on purpose"),
    ("harness/nn/src/kernels/", "matrix products over pointers, bounds checked before"),
    ("harness/cuda/", "kernels, foreign libraries and memory of a GPU, sizes checked before"),
    ("datasets/src/mapped.rs", "mapping files"),
    ("tests/standin/", "a driver: foreign pointers, compiled kernels, stacks of their own"),
    ("tests/cli/plugin.rs", "the source of a library that the test compiles"),
];

/// Past this a file is usually two files.
const MOST_LINES: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace")
}

/// Every file of the source tree with one of these endings: path from the root, and content.
fn sources(endings: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of the source tree") {
            let path = entry.expect("an entry of the source tree").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What is built, what is downloaded, what runs leave, and what tests are fed with.
            let skipped = ["target", "runs", "fixtures", ".git"].contains(&name.as_str());
            if path.is_dir() && !skipped {
                walk(&path, found);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.retain(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)));
    found.sort();
    let name = |path: &Path| {
        let path = path.strip_prefix(root()).expect("it was found below the root");
        path.to_string_lossy().replace('\\', "/")
    };
    let text = |path: &Path| {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
    };
    found.iter().map(|path| (name(path), text(path))).collect()
}

#[track_caller]
fn assert_none(rule: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// What cargo knows of each crate of the workspace.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

/// The dependencies of each crate, those for its tests aside.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().expect("a list of dependencies");
        let counted = all.iter().filter(|dependency| dependency["kind"] != "dev");
        counted.map(|dependency| text(&dependency["name"])).collect()
    };
    packages().iter().map(|package| (text(&package["name"]), of(package))).collect()
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let silent = sources(&[".rs"]).into_iter().filter(|(_, text)| !text.starts_with("//! "));
    assert_none("a file opens with `//!`", silent.map(|(path, _)| path).collect());
}

#[test]
fn lines_end_with_what_can_be_seen() {
    let mut offenders = Vec::new();
    for (path, text) in sources(&[".rs", ".toml", ".md", ".ci/run"]) {
        for (number, line) in (1..).zip(text.split('\n')) {
            // Two blanks break a line of Markdown; what starts with `>` is a snapshot of such a page.
            let is_markdown = line.starts_with('>') && line.ends_with("  ");
            if line.contains('\t') || line.ends_with([' ', '\r']) && !is_markdown {
                offenders.push(format!("{path}:{number}"));
            }
        }
        if !text.ends_with('\n') || text.ends_with("\n\n") {
            offenders.push(format!("{path}: ends in one newline"));
        }
    }
    assert_none("no tabs, no blanks at the end of a line", offenders);
}

#[test]
fn no_file_is_longer_than_one_wants_to_read() {
    let long = sources(&[".rs"]).into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = long.filter(|(_, lines)| *lines > MOST_LINES);
    assert_none("at most 800 lines", long.map(|(path, n)| format!("{path}: {n}")).collect());
}

#[test]
fn files_are_named_after_what_is_in_them() {
    let vague = ["utils.rs", "util.rs", "base.rs", "common.rs", "helpers.rs", "misc.rs"];
    let named = |path: &str| vague.iter().any(|name| path.ends_with(&format!("/{name}")));
    let offenders = sources(&[".rs"]).into_iter().map(|(path, _)| path);
    assert_none("a file has a subject", offenders.filter(|path| named(path)).collect());
}

#[test]
fn tests_are_run_or_not_built() {
    // Put together here, or this file would be its own offender.
    let attributes = [concat!("#[", "ignore"), concat!("#[", "should_panic")];
    let mut offenders = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        for (number, line) in (1..).zip(text.lines()) {
            if attributes.iter().any(|attribute| line.trim_start().starts_with(attribute)) {
                offenders.push(format!("{path}:{number}"));
            }
        }
    }
    assert_none("slow tests are behind a feature, panics are results", offenders);
}

#[test]
fn the_compilers_guarantees_hold_but_for_a_few_places() {
    let word = concat!("un", "safe");
    let is_part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    let stands_alone = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            !line[..at].ends_with(is_part_of_a_name)
                && !line[at + word.len()..].starts_with(is_part_of_a_name)
        })
    };
    let mut offenders = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim_start().starts_with("//") || !stands_alone(line) {
                continue;
            }
            if !MEMORY_SAFETY_IS_OURS.iter().any(|(place, _)| path.starts_with(place)) {
                offenders.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none("only in the places that are listed, each with its reason", offenders);
}

#[test]
fn arrows_point_one_way() {
    let dependencies = dependencies();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut offenders = Vec::new();
    for (package, needed) in &dependencies {
        if package == TESTS {
            continue;
        }
        let Some(allowed) = allowed.get(package.as_str()) else {
            offenders.push(format!("`{package}` is not in the table"));
            continue;
        };
        let ours = needed.iter().filter(|name| dependencies.contains_key(*name));
        let wrong = ours.filter(|name| !allowed.contains(&name.as_str()));
        offenders.extend(wrong.map(|name| format!("`{package}` must not depend on `{name}`")));
    }
    let gone = ARROWS.iter().filter(|(package, _)| !dependencies.contains_key(*package));
    offenders.extend(gone.map(|(package, _)| format!("`{package}` is in the table, and is gone")));
    assert_none("the table of allowed arrows", offenders);
}

#[test]
fn the_metrics_need_nothing_but_the_standard_library() {
    let needed = &dependencies()["oodbench-metrics"];
    assert!(needed.is_empty(), "{needed:?}");
}

#[test]
fn some_third_party_crates_stay_behind_ours() {
    let mut offenders = Vec::new();
    for (package, needed) in dependencies() {
        for (crate_name, behind) in BEHIND {
            if needed.contains(*crate_name)
                && package != TESTS
                && !behind.contains(&package.as_str())
            {
                offenders.push(format!("`{package}` must not depend on `{crate_name}`"));
            }
        }
    }
    assert_none("a crate that belongs behind another", offenders);
}

#[test]
fn golden_tests_are_found_by_their_name() {
    // `cargo xtask test --golden` runs the targets of this name, and must not miss one.
    let packages = packages();
    let tests = packages.iter().find(|package| package["name"] == TESTS).expect("this crate");
    for target in tests["targets"].as_array().expect("a list of targets") {
        let name = target["name"].as_str().expect("a name");
        let features = target["required-features"].as_array();
        let is_golden = features.is_some_and(|features| features.contains(&"golden".into()));
        assert_eq!(is_golden, name.starts_with("golden_"), "target `{name}`");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut offenders = Vec::new();
    for (path, text) in sources(&[".md"]) {
        let folder = root().join(&path).parent().expect("a file has a folder").to_owned();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                offenders.push(format!("{path}: {target}"));
            }
        }
    }
    assert_none("a link that leads nowhere", offenders);
}

#[test]
fn every_crate_has_its_place_on_the_map() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let mut offenders = Vec::new();
    for package in packages() {
        let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
        let folder = manifest.parent().and_then(|folder| folder.strip_prefix(root()).ok());
        let folder = folder.expect("a crate of the workspace").to_string_lossy().replace('\\', "/");
        if !map.contains(&format!("`{folder}`")) {
            offenders.push(folder);
        }
    }
    assert_none("ARCHITECTURE.md has each crate by its folder", offenders);
}

/// The exit codes of the first table of the README, in their order.
fn documented_exit_codes() -> Vec<u8> {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let section = readme.split("## Exit codes").nth(1).expect("a section on exit codes");
    let section = section.split("\n## ").next().unwrap_or_default();
    let first_cell = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse().ok();
    section.lines().filter_map(first_cell).collect()
}

#[test]
fn the_readme_lists_the_exit_codes() {
    assert_eq!(documented_exit_codes(), [0, 1, 2, 4, 5, 96, 97, 100, 103, 107, 110]);
}
