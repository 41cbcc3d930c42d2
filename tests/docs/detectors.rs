//! The lists of detectors: a page with everything that descriptors say, and a short table.

use std::collections::{BTreeMap, BTreeSet};

use oodbench_abi::{Needs, ParamKind};
use oodbench_engine::pack::{DetectorInfo, ParamInfo};
use serde_json::Value;

use crate::published::{BENCHMARKS, Published};

const HEAD: &str = "\
# Detectors

Made by `cargo xtask docs` from what the packs say of themselves; a test holds it against them.
`oodbench plugin list` and `oodbench plugin inspect FILE` show the same of any pack. How a score comes
about, and where OpenOOD's implementation differs, stands at the top of each detector's file in
[plugins/posthoc/src](../plugins/posthoc/src) and [plugins/diffood/src](../plugins/diffood/src). To
add one: [new-detector.md](new-detector.md).

";

const NEEDS: &str = "
What a detector *needs* is what the host hands over, and nothing else is; [plugins.md](plugins.md)
says what each need gives. A *companion* reads a classifier that was trained by the method named;
on any other its scores mean little. Its classifier has further outputs where some are named.

";

const PARAMETERS: &str = "
## Parameters

`--set ID.NAME=VALUE` sets one. The *sweep* is what `--aps` tries, every combination of a detector's
sweeps, on validation images alone. A parameter without one is not searched. *Readout*: all its
values are scored in one pass.

";

const PUBLISHED: &str = "
## Published numbers

AUROC in per cent that OpenOOD v1.5 publishes, near-OOD / far-OOD, with the standard deviation over
checkpoints where there are several: ResNet18 for CIFAR and ImageNet-200, ResNet50 for ImageNet-1K,
trained with cross entropy or by the companion's method. Most of them are with parameters chosen on
validation images, as by `--aps`. Source and date stand in [published.csv](published.csv). An empty
cell is a number that is not published, not one that is missing here.

";

/// `docs/detectors.md`.
pub fn page(infos: &[DetectorInfo], published: &[Published]) -> String {
    let mut page = String::from(HEAD);
    table(&mut page, &["id", "detector", "paper", "year", "family", "needs", "companion of"]);
    for info in infos {
        let year = if info.year == 0 { String::new() } else { info.year.to_string() };
        let needs = info.needs.names().join(", ");
        let heads: Vec<String> = info.heads().map(|head| format!("`{head}`")).collect();
        let needs =
            if heads.is_empty() { needs } else { format!("{needs}; outputs {}", heads.join(", ")) };
        row(
            &mut page,
            &[
                code(&info.id),
                info.title.clone(),
                link(&info.paper, &info.url),
                year,
                info.family.clone(),
                needs,
                info.companion_of.clone(),
            ],
        );
    }
    page.push_str(NEEDS);
    page.push_str(PARAMETERS.trim_start());
    table(&mut page, &["detector", "parameter", "type", "default", "sweep", "meaning", "source"]);
    for info in infos {
        for param in &info.params {
            row(
                &mut page,
                &[
                    code(&info.id),
                    code(&param.name),
                    type_of(param),
                    value(&param.default),
                    param.sweep.iter().map(value).collect::<Vec<_>>().join(", "),
                    param.doc.clone(),
                    param.source.clone(),
                ],
            );
        }
    }
    page.push_str(PUBLISHED);
    numbers(&mut page, infos, published);
    page
}

/// The table of published numbers, and what has numbers and is not here.
fn numbers(page: &mut String, infos: &[DetectorInfo], published: &[Published]) {
    let titles = BENCHMARKS.iter().map(|(_, title)| *title);
    table(page, &std::iter::once("detector").chain(titles).collect::<Vec<_>>());
    let figure = |id: &str, settings: &str, benchmark: &str| {
        let is_it = |row: &&Published| {
            row.detector == id && row.settings == settings && row.benchmark == benchmark
        };
        let row = published.iter().find(is_it);
        row.map(|row| format!("{} / {}", row.near, row.far)).unwrap_or_default()
    };
    for info in infos {
        // The defaults first, which are no settings at all.
        let rows = published.iter().filter(|row| row.detector == info.id);
        let settings: BTreeSet<&str> = rows.map(|row| row.settings.as_str()).chain([""]).collect();
        for settings in settings {
            let name = match settings {
                "" => code(&info.id),
                settings => format!("{}, {}", code(&info.id), code(settings)),
            };
            let figures = BENCHMARKS.iter().map(|(name, _)| figure(&info.id, settings, name));
            row(page, &std::iter::once(name).chain(figures).collect::<Vec<_>>());
        }
    }
    let is_here = |id: &str| infos.iter().any(|info| info.id == id);
    let absent: BTreeMap<&str, &str> = published
        .iter()
        .filter(|row| !is_here(&row.detector))
        .map(|row| (row.detector.as_str(), row.name.as_str()))
        .collect();
    if !absent.is_empty() {
        let names: Vec<&str> = absent.into_values().collect();
        page.push_str(&format!("\nIn that table and not in oodbench: {}.\n", names.join(", ")));
    }
}

/// The README's table.
pub fn short_table(infos: &[DetectorInfo]) -> String {
    let mut text = String::from("\n");
    table(&mut text, &["`--method`", "detector", "reads", "learns from", "paper"]);
    for info in infos {
        let authors = info.paper.split(", ").next().unwrap_or_default();
        let paper = match info.year {
            0 => String::new(),
            year => link(&format!("{authors}, {year}"), &info.url),
        };
        // A title that is the id again tells nothing.
        let letters = |text: &str| text.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "");
        let is_id = letters(&info.title) == letters(&info.id);
        let title = if is_id { &info.summary } else { &info.title };
        let title = match info.companion_of.as_str() {
            "" => title.clone(),
            method => format!("{title}; for classifiers trained by {method}"),
        };
        row(&mut text, &[code(&info.id), title, reads(info), learns_from(info), paper]);
    }
    text.push('\n');
    text
}

/// What a score is computed from.
fn reads(info: &DetectorInfo) -> String {
    let words = [
        (Needs::LOGITS, "logits"),
        (Needs::FEATURES, "features"),
        (Needs::HEAD, "last layer"),
        (Needs::IMAGES, "images"),
        (Needs::LAYERS, "layers"),
        (Needs::GRADIENT, "gradients"),
        (Needs::FORWARD, "the classifier itself"),
    ];
    list(words.iter().filter(|(need, _)| info.needs.contains(*need)).map(|(_, word)| *word), ", ")
}

/// What `fit` is given.
fn learns_from(info: &DetectorInfo) -> String {
    let has = |need| info.needs.contains(need);
    let mut what = Vec::new();
    for (need, word) in [(Needs::LOGITS, "logits"), (Needs::FEATURES, "features")] {
        what.extend(has(need).then_some(word));
    }
    if what.is_empty() || has(Needs::LAYERS) {
        what.push("images");
    }
    what.extend(has(Needs::LABELS).then_some("labels"));
    let splits = [
        (Needs::TRAIN, "training"),
        (Needs::VAL, "validation"),
        (Needs::VAL_OOD, "OOD validation"),
    ];
    let splits = splits.iter().filter(|(need, _)| has(*need)).map(|(_, word)| *word);
    let splits: Vec<&str> = splits.collect();
    let mut sources = Vec::new();
    if !splits.is_empty() {
        sources.push(format!("{} {}", enumerated(splits), enumerated(what)));
    }
    let files = info.params.iter().filter(|param| param.kind == ParamKind::ASSET);
    let files: Vec<&ParamInfo> = files.collect();
    let names = list(files.iter().map(|param| param.name.as_str()), "`, `");
    match files[..] {
        [] => {}
        [file] if !file.many => sources.push(format!("a file, `{names}`")),
        _ => sources.push(format!("files, `{names}`")),
    }
    if sources.is_empty() { "nothing".to_owned() } else { sources.join("; ") }
}

/// As one would say it.
fn enumerated(mut words: Vec<&str>) -> String {
    let last = words.pop().unwrap_or_default();
    if words.is_empty() { last.to_owned() } else { format!("{} and {last}", words.join(", ")) }
}

fn list<'a>(words: impl Iterator<Item = &'a str>, between: &str) -> String {
    words.collect::<Vec<_>>().join(between)
}

fn type_of(param: &ParamInfo) -> String {
    let name = param.type_name();
    if param.readout { format!("{name}, readout") } else { name.to_owned() }
}

/// A value as one would type it behind `--set`.
fn value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => code(text),
        value => code(&value.to_string()),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn link(text: &str, url: &str) -> String {
    if url.is_empty() { text.to_owned() } else { format!("[{text}]({url})") }
}

/// The first two lines of a table.
fn table(page: &mut String, columns: &[&str]) {
    page.push_str(&format!("| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len())));
}

/// A further line of a table.
fn row(page: &mut String, cells: &[String]) {
    page.push('|');
    for cell in cells {
        let cell = cell.replace('|', "\\|");
        page.push_str(&if cell.is_empty() { " |".to_owned() } else { format!(" {cell} |") });
    }
    page.push('\n');
}
