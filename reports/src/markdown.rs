//! `leaderboard.md`: the leaderboard for people, as a page that a repository or a pull request
//! shows.

use std::fmt::Write;

use oodbench_metrics::OodMetrics;
use oodbench_record::ListedSet;
use serde_json::{Map, Value};

use crate::figures::{ABSENT, listed, megabytes, number, one_line, or_absent, percent, speed};
use crate::leaderboard::{Group, Leaderboard};
use crate::row::{Row, Status};

const DECIMALS: usize = 2;

/// What the name of a row bears whose parameters were searched.
const SEARCHED: &str = " †";

/// The whole file.
pub fn render(board: &Leaderboard) -> String {
    let mut page = String::new();
    head(board, &mut page);
    notes(board, &mut page);
    summary(board, &mut page);
    per_set(board, "AUROC ↑ per data set", |metrics| metrics.auroc, &mut page);
    per_set(board, "FPR@95 ↓ per data set", |metrics| metrics.fpr95, &mut page);
    incomplete(board, &mut page);
    parameters(board, &mut page);
    searches(board, &mut page);
    warnings(board, &mut page);
    page
}

fn head(board: &Leaderboard, page: &mut String) {
    let manifest = &board.manifest;
    let classifier = &manifest.classifier;
    put(page, format!("# {}\n", text(&manifest.title)));
    let version = text(&manifest.benchmark_version);
    put(page, format!("- Benchmark: {} {version}", text(&manifest.benchmark)));
    // Twelve digits of a hash tell any two checkpoints apart that somebody has.
    let hash: String = classifier.blake3.chars().take(12).collect();
    put(
        page,
        format!(
            "- Classifier: {} ({}, blake3 {hash}), accuracy {}",
            text(&classifier.name),
            text(&classifier.arch),
            board.accuracy.map_or("unknown".to_owned(), |_| {
                format!("{} %", percent(board.accuracy, DECIMALS))
            })
        ),
    );
    let id: Vec<_> = board.id_sets.iter().map(|&place| sized(board, place)).collect();
    let mode = if manifest.full_spectrum { " (full spectrum)" } else { "" };
    put(page, format!("- In-distribution{mode}: {}", or_absent(id.join(", "))));
    for (group, title) in [(Group::Near, "Near-OOD"), (Group::Far, "Far-OOD")] {
        let sets: Vec<_> =
            board.group(group).members.iter().map(|&place| sized(board, place)).collect();
        put(page, format!("- {title}: {}", or_absent(sets.join(", "))));
    }
    put(page, format!("- Seed: {}", manifest.seed));
    put(page, format!("- Versions: oodbench {}{}", text(&manifest.version), packs(board)));
    let machine = &manifest.machine;
    put(
        page,
        format!(
            "- Costs measured on: {}, {}, {}",
            text(&machine.platform),
            text(&machine.device_text()),
            counted(machine.threads, "thread")
        ),
    );
}

/// `near/letters (500 of 2000 images)`.
fn sized(board: &Leaderboard, place: usize) -> String {
    text(&sized_set(&board.sets[place].listed))
}

fn sized_set(set: &ListedSet) -> String {
    let of = counted(set.of_images, "image");
    let count = if set.n_images < set.of_images { format!("{} of {of}", set.n_images) } else { of };
    format!("{} ({count})", set.set)
}

fn packs(board: &Leaderboard) -> String {
    let mut packs: Vec<String> = board
        .rows
        .iter()
        .filter_map(|row| row.pack.as_ref())
        .map(|pack| format!(", {} {}", text(&pack.name), text(&pack.version)))
        .collect();
    packs.sort();
    packs.dedup();
    packs.concat()
}

/// What stands between the numbers and a comparison with other tables.
fn notes(board: &Leaderboard, page: &mut String) {
    if board.marks.is_empty() && board.manifest.missing.is_empty() {
        return;
    }
    put(page, "");
    let mut lines: Vec<String> =
        board.marks.iter().map(|mark| format!("**{}**", text(&mark.cause()))).collect();
    for missing in &board.manifest.missing {
        let set = text(&missing.set.to_string());
        lines.push(format!("{set} is missing: {}", text(&missing.reason)));
    }
    for group in Group::ALL.map(|group| board.group(group)).iter().filter(|it| it.is_partial()) {
        let (role, without) = (group.group.role(), text(&listed(&group.without)));
        lines.push(format!("{role} averages are partial: they lack {without}"));
    }
    // Two blanks at the end of a line break it inside a quotation.
    put(page, format!("> {}", lines.join("  \n> ")));
}

fn summary(board: &Leaderboard, page: &mut String) {
    let mut table = Table::new(["Method".to_owned()]);
    for group in Group::ALL {
        let name = if group == Group::Near { "Near" } else { "Far" };
        table.numbers([format!("{name} AUROC ↑"), format!("{name} FPR@95 ↓")]);
    }
    table.numbers(["ACC", "fit s", "images/s", "peak MB"].map(str::to_owned));
    table.words(["device", "status"].map(str::to_owned));
    for row in &board.rows {
        let mark = if row.search.is_some() { SEARCHED } else { "" };
        let mut line = vec![format!("{}{mark}", text(&row.label))];
        for group in Group::ALL {
            let metrics = board.average(row, group);
            for value in [metrics.auroc, metrics.fpr95] {
                line.push(average(board, group, value));
            }
        }
        let cost = row.cost.as_ref();
        line.push(percent(board.accuracy.filter(|_| row.status.is_ranked()), DECIMALS));
        line.push(number(cost.map(|cost| cost.fit_s), 2));
        line.push(speed(cost.and_then(|cost| cost.score_images_per_s)));
        line.push(number(cost.and_then(|cost| cost.peak_bytes).map(megabytes), 0));
        line.push(cost.map_or_else(String::new, |cost| text(&cost.device)));
        line.push(board.standing(row).word.to_owned());
        table.line(line);
    }
    section(page, "Summary");
    page.push_str(&table.text);
    if board.rows.iter().any(|row| row.search.is_some()) {
        put(page, format!("\n{} with parameters from a search, see below", SEARCHED.trim()));
    }
}

fn average(board: &Leaderboard, group: Group, value: Option<f64>) -> String {
    let mut shown = percent(value, DECIMALS);
    if value.is_some() && board.group(group).is_partial() {
        shown.push_str(" (partial)");
    }
    shown
}

fn per_set(
    board: &Leaderboard,
    title: &str,
    field: fn(&OodMetrics) -> Option<f64>,
    page: &mut String,
) {
    let rows: Vec<&Row> = board.rows.iter().filter(|row| row.status.is_ranked()).collect();
    if rows.is_empty() || board.ood_sets().next().is_none() {
        return;
    }
    let mut table = Table::new(["Method".to_owned()]);
    table.numbers(board.ood_sets().map(|(_, set)| text(&set.listed.set.to_string())));
    for row in rows {
        let values =
            board.ood_sets().map(|(place, _)| percent(field(&row.metrics[place]), DECIMALS));
        table.line([text(&row.label)].into_iter().chain(values));
    }
    section(page, title);
    page.push_str(&table.text);
}

/// Whatever is not done, and why.
fn incomplete(board: &Leaderboard, page: &mut String) {
    let mut rows = board.rows.iter().filter(|row| row.status != Status::Done).peekable();
    if rows.peek().is_none() {
        return;
    }
    section(page, "Not done");
    for row in rows {
        let reason = row.status.reason();
        let colon = if reason.is_empty() { "" } else { ": " };
        let (label, word) = (text(&row.label), row.status.word());
        put(page, format!("- {label} ({word}){colon}{}", text(reason)));
    }
}

fn parameters(board: &Leaderboard, page: &mut String) {
    let mut rows = board.rows.iter().filter(|row| !row.params.is_empty()).peekable();
    if rows.peek().is_none() {
        return;
    }
    section(page, "Parameters");
    for row in rows {
        put(page, format!("- {}: {}", text(&row.label), text(&pairs(&row.params))));
    }
}

fn pairs(params: &Map<String, Value>) -> String {
    let pairs = params.iter().map(|(name, value)| format!("{name} = {value}"));
    pairs.collect::<Vec<_>>().join(", ")
}

/// Every search with all that was tried.
fn searches(board: &Leaderboard, page: &mut String) {
    let mut rows = board.rows.iter().filter_map(|row| Some((row, row.search.as_ref()?))).peekable();
    if rows.peek().is_none() {
        return;
    }
    section(page, "Parameter search");
    let intro = "By AUROC of the OOD against the ID validation images; of equals the first. \
                 These numbers are no test results.";
    put(page, intro);
    for (row, search) in rows {
        put(page, format!("\n### {}\n", text(&row.label)));
        let sets = [&search.id, &search.ood].map(|set| text(&sized_set(set)));
        let [id, ood] = sets;
        let chosen = match search.chosen() {
            Some(tried) => format!("Chosen: {}", text(&pairs(&tried.params))),
            None => "Nothing chosen".to_owned(),
        };
        let n = counted(search.tried.len(), "combination");
        put(page, format!("{chosen}, of {n}, on {id} and {ood}.\n"));
        let mut table = Table::new(search.parameters.iter().map(|name| text(name)));
        table.numbers(["AUROC ↑", "FPR@95 ↓"].map(str::to_owned));
        table.words(["", "status"].map(str::to_owned));
        for (place, tried) in search.tried.iter().enumerate() {
            let values = search.parameters.iter().map(|name| {
                tried.params.get(name).map_or_else(String::new, |value| text(&value.to_string()))
            });
            let reason = tried.status.reason();
            let colon = if reason.is_empty() { "" } else { ": " };
            let is_chosen = search.chosen == Some(place);
            table.line(values.chain([
                percent(tried.metrics.auroc, DECIMALS),
                percent(tried.metrics.fpr95, DECIMALS),
                if is_chosen { "**chosen**".to_owned() } else { String::new() },
                format!("{}{colon}{}", tried.status.word(), text(reason)),
            ]));
        }
        page.push_str(&table.text);
    }
}

fn warnings(board: &Leaderboard, page: &mut String) {
    if board.warnings.is_empty() {
        return;
    }
    section(page, "Warnings");
    for warning in &board.warnings {
        put(page, format!("- {}", text(&warning.to_string())));
    }
}

fn section(page: &mut String, title: &str) {
    put(page, format!("\n## {title}\n"));
}

fn put(page: &mut String, line: impl AsRef<str>) {
    page.push_str(line.as_ref());
    page.push('\n');
}

/// `1 image`, `2 images`.
fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Text on one line that neither ends a table's cell nor passes for HTML.
fn text(text: &str) -> String {
    one_line(text).replace('|', "\\|").replace('<', "&lt;")
}

/// A table whose head grows until its first line.
struct Table {
    heads: Vec<String>,
    rules: Vec<&'static str>,
    text: String,
}

impl Table {
    fn new(heads: impl IntoIterator<Item = String>) -> Self {
        let mut table = Self { heads: Vec::new(), rules: Vec::new(), text: String::new() };
        table.words(heads);
        table
    }

    fn words(&mut self, heads: impl IntoIterator<Item = String>) {
        self.heads.extend(heads);
        self.rules.resize(self.heads.len(), "---");
    }

    fn numbers(&mut self, heads: impl IntoIterator<Item = String>) {
        self.heads.extend(heads);
        self.rules.resize(self.heads.len(), "---:");
    }

    fn line(&mut self, cells: impl IntoIterator<Item = String>) {
        if self.text.is_empty() {
            let (heads, rules) = (self.heads.join(" | "), self.rules.join(" | "));
            self.text = format!("| {heads} |\n| {rules} |\n");
        }
        self.text.push('|');
        for cell in cells {
            let shown = if cell.is_empty() { ABSENT } else { &cell };
            // Writing to a string cannot fail.
            let _ = write!(self.text, " {shown} |");
        }
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    #[test]
    fn the_page_holds_everything_that_a_reader_needs() {
        let expected = r#"
# Toy digits

- Benchmark: toy 1
- Classifier: net.safetensors (mlp, blake3 0123456789ab), accuracy 75.00 %
- In-distribution: id-test/digits (4 images)
- Near-OOD: near/letters (3 images)
- Far-OOD: far/noise (2 images)
- Seed: 7
- Versions: oodbench 0.1.0, posthoc 0.1.0
- Costs measured on: toy-os, cpu, 2 threads

## Summary

| Method | Near AUROC ↑ | Near FPR@95 ↓ | Far AUROC ↑ | Far FPR@95 ↓ | ACC | fit s | images/s | peak MB | device | status |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| mls | 83.33 | 75.00 | 100.00 | 0.00 | 75.00 | 0.25 | 6.00 | 12 | cpu | done |
| msp | 83.33 | 75.00 | 100.00 | 0.00 | 75.00 | 0.25 | 6.00 | 12 | cpu | done |
| odin | - | - | - | - | - | - | - | - | - | skipped |
| faulty | - | - | - | - | - | - | - | - | - | failed |

## AUROC ↑ per data set

| Method | near/letters | far/noise |
| --- | ---: | ---: |
| mls | 83.33 | 100.00 |
| msp | 83.33 | 100.00 |

## FPR@95 ↓ per data set

| Method | near/letters | far/noise |
| --- | ---: | ---: |
| mls | 75.00 | 0.00 |
| msp | 75.00 | 0.00 |

## Not done

- odin (skipped): needs `GRADIENT`, which a feature bank \| file has not
- faulty (failed): panicked: index out of bounds

## Parameters

- mls: temperature = 1.0
- msp: temperature = 1.0
- odin: temperature = 1.0
- faulty: temperature = 1.0
"#;
        assert_eq!(render(&TestRun::small().board()), expected.trim_start());
    }

    #[test]
    fn marks_stand_above_the_numbers() {
        let mut run = TestRun::small();
        run.missing("far", "svhn");
        run.manifest.sets[0].of_images = 10;
        run.manifest.limit = Some(4);
        let page = render(&run.board());
        let expected = r#"
> **incomplete: missing far/svhn**  
> **limited to 4 images a set: not comparable**  
> far/svhn is missing: nothing at `data/svhn`  
> far averages are partial: they lack far/svhn
"#;
        let notes: Vec<_> = page.lines().filter(|line| line.starts_with('>')).collect();
        assert_eq!(notes.join("\n") + "\n", expected.trim_start());
        assert!(page.contains("- In-distribution: id-test/digits (4 of 10 images)\n"), "{page}");
        assert!(
            page.contains("| mls | 83.33 | 75.00 | 100.00 (partial) | 0.00 (partial) |"),
            "{page}"
        );
    }

    #[test]
    fn a_search_shows_all_that_was_tried() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("msp", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
        let id: &[f32] = &[0.0, 0.25];
        run.search("msp", &[&[id, &[0.125]], &[id, &[0.5]], &[id, &[]]], Some(1));
        let page = render(&run.board());
        assert!(page.contains("| msp † | 75.00 |"), "{page}");
        assert!(page.contains("\n† with parameters from a search, see below\n"), "{page}");
        let expected = r#"
## Parameter search

By AUROC of the OOD against the ID validation images; of equals the first. These numbers are no test results.

### msp

Chosen: temperature = 1, of 3 combinations, on id-val/digits (2 images) and ood-val/words (1 image).

| temperature | AUROC ↑ | FPR@95 ↓ |  | status |
| --- | ---: | ---: | --- | --- |
| 0 | 50.00 | 50.00 | - | done |
| 1 | 100.00 | 0.00 | **chosen** | done |
| 2 | - | - | - | partial: not run yet: ood-val/words |
"#;
        assert!(page.ends_with(expected), "{page}");
    }

    #[test]
    fn worse_than_chance_is_a_warning() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("a|b", &[&[0.1, 0.2, 0.2, 0.4], &[0.0]]);
        let page = render(&run.board());
        let expected = "\n## Warnings\n\n- a\\|b: AUROC 0.00 % on near/letters, worse than guessing; are its scores the wrong way round? higher must mean more out-of-distribution\n";
        assert!(page.ends_with(expected), "{page}");
    }
}
