//! What is generated in the documents is fresh: the lists of detectors, from what the packs say of
//! themselves, and the reference of the command line, from the binary's help.
//!
//! `cargo xtask docs` runs these tests with `OODBENCH_DOCS=write`, which writes what belongs there
//! instead of failing.

mod command_line;
mod detectors;
mod published;

use std::fs;
use std::path::{Path, PathBuf};

use oodbench_engine::pack::{DetectorInfo, PackSummary};
use oodbench_tests::binary::Scene;

/// What a user does about a stale document.
const REMEDY: &str = "hint: `cargo xtask docs` writes it anew";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace").into()
}

/// Every detector that comes with the program, in the order of the ids.
fn infos() -> Vec<DetectorInfo> {
    let ran = Scene::new().run(&["plugin", "list", "--message-format", "json"]);
    ran.succeeded();
    let packs: Vec<PackSummary> = serde_json::from_str(&ran.stdout).expect("a list of packs");
    let is_ours = |pack: &PackSummary| pack.name.starts_with("oodbench-");
    let mut infos: Vec<DetectorInfo> =
        packs.into_iter().filter(is_ours).flat_map(|pack| pack.detectors).collect();
    infos.sort_by(|a, b| a.id.cmp(&b.id));
    infos
}

/// Holds a document against what belongs there, or writes it.
#[track_caller]
fn fresh(document: &str, expected: &str) {
    let path = root().join(document);
    let got = fs::read_to_string(&path).unwrap_or_default();
    if got == expected {
        return;
    }
    if std::env::var_os("OODBENCH_DOCS").is_some_and(|value| value == "write") {
        let written = fs::write(&path, expected);
        written.unwrap_or_else(|error| panic!("write `{}`: {error}", path.display()));
        return;
    }
    let number = expected.lines().zip(got.lines()).take_while(|(a, b)| a == b).count();
    let line = |text: &str| text.lines().nth(number).unwrap_or("no line").to_owned();
    panic!(
        "`{document}` line {}: expected `{}`, got `{}`\n\n{REMEDY}",
        number + 1,
        line(expected),
        line(&got)
    );
}

/// A page with `text` between the marks `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
#[track_caller]
fn with_section(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin: {name} -->\n"), format!("<!-- end: {name} -->"));
    let place = page.find(&begin).zip(page.find(&end));
    let (start, stop) = place.unwrap_or_else(|| panic!("no `{begin}` and `{end}`"));
    format!("{}{text}{}", &page[..start + begin.len()], &page[stop..])
}

#[test]
fn the_page_of_detectors_is_what_the_packs_say() {
    fresh("docs/detectors.md", &detectors::page(&infos(), &published::read(&root())));
}

#[test]
fn the_readmes_list_of_detectors_is_what_the_packs_say() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    fresh("README.md", &with_section(&readme, "detectors", &detectors::short_table(&infos())));
}

#[test]
fn the_page_of_the_command_line_is_what_the_binary_says() {
    fresh("docs/cli.md", &command_line::page(&Scene::new()));
}

#[test]
fn every_published_number_is_one_of_a_benchmark_and_stands_once() {
    let rows = published::read(&root());
    assert!(rows.len() > 100, "{}", rows.len());
    let mut seen = std::collections::BTreeSet::new();
    for row in &rows {
        let key = (&row.detector, &row.settings, &row.benchmark);
        assert!(seen.insert(key), "{key:?} stands twice");
        assert!(published::BENCHMARKS.iter().any(|(name, _)| *name == row.benchmark), "{key:?}");
        for value in [&row.near, &row.far] {
            let per_cent: f64 = value.split(' ').next().unwrap().parse().unwrap();
            assert!((0.0..=100.0).contains(&per_cent), "{key:?}: {value}");
        }
    }
    // Read off the published table.
    let knn = rows.iter().find(|row| row.detector == "knn" && row.benchmark == "cifar10").unwrap();
    assert_eq!((knn.near.as_str(), knn.far.as_str()), ("90.64 ± 0.20", "92.96 ± 0.14"));
}

#[test]
fn a_section_is_replaced_and_nothing_else() {
    let page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n";
    let new = "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n";
    assert_eq!(with_section(page, "x", "new\n"), new);
}
