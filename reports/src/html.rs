//! `leaderboard.html`: the leaderboard as one page that can be put anywhere: it loads nothing, needs
//! no script to be read, follows the reader's choice of light or dark, and prints.
//!
//! Names and reasons come from users and plugins, so every text is escaped. Figures are drawn from
//! the raw scores, and are as large for a million images as for a hundred.

mod detail;
mod plot;
mod table;

use oodbench_record::{Classifier, ListedSet};

use crate::figures::{listed, one_line, or_absent, percent};
use crate::leaderboard::{Group, Leaderboard};
use crate::row::{Row, Status};

const STYLE: &str = include_str!("html/style.css");

/// Lets a reader sort and filter; without it the page has all its content.
const SCRIPT: &str = include_str!("html/sort.js");

const DECIMALS: usize = 2;

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        let _ = ::std::fmt::Write::write_fmt(&mut *$out, format_args!($($arg)*));
    }};
}
use put;

/// The whole file.
pub fn render(board: &Leaderboard) -> String {
    let title = escape(&board.manifest.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"oodbench {}\">\n<title>{title}: out-of-distribution detection</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&board.manifest.version)
    );
    head(board, &title, &mut page);
    table::leaderboard(board, &mut page);
    cost(board, &mut page);
    warnings(board, &mut page);
    not_done(board, &mut page);
    detail::methods(board, &mut page);
    sets(board, &mut page);
    provenance(board, &mut page);
    glossary(board, &mut page);
    put!(&mut page, "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

/// Text on one line that is nothing but text, in an attribute too.
fn escape(text: &str) -> String {
    escaped(&one_line(text))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Marks that turn the direction of writing would move what stands beside them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// The same, with what stands between backticks as code.
fn with_code(text: &str) -> String {
    let parts: Vec<String> = one_line(text).split('`').map(escaped).collect();
    let mut shown = String::new();
    for (nth, part) in parts.iter().enumerate() {
        // A backtick without a second one is a backtick.
        match nth % 2 {
            1 if nth + 1 < parts.len() => put!(&mut shown, "<code>{part}</code>"),
            1 => put!(&mut shown, "`{part}"),
            _ => shown.push_str(part),
        }
    }
    shown
}

/// Where the details of a row are.
fn anchor(row: &Row) -> String {
    format!("m{}", row.position)
}

fn group_name(group: Group) -> &'static str {
    match group {
        Group::Near => "Near-OOD",
        Group::Far => "Far-OOD",
    }
}

/// The first digits of a hash, which tell any two files apart that somebody has.
fn short(hash: &str) -> String {
    escape(&hash.chars().take(12).collect::<String>())
}

fn head(board: &Leaderboard, title: &str, page: &mut String) {
    let manifest = &board.manifest;
    put!(
        page,
        "<header>\n<p class=\"kicker\">Out-of-distribution detection</p>\n<h1>{title}</h1>\n"
    );
    let ranked = board.rows.iter().filter(|row| row.status.is_ranked()).count();
    let n_ood: usize = board.ood_sets().map(|(_, set)| set.listed.n_images).sum();
    let mut facts = vec![
        (
            "Benchmark",
            format!("{} {}", escape(&manifest.benchmark), escape(&manifest.benchmark_version)),
        ),
        (
            "Classifier",
            format!(
                "{} <small>{}</small>",
                escape(&manifest.classifier.name),
                escape(&manifest.classifier.arch)
            ),
        ),
    ];
    if board.accuracy.is_some() {
        facts.push(("Accuracy", format!("{} %", percent(board.accuracy, DECIMALS))));
    }
    facts.push(("Detectors", format!("{ranked}")));
    facts.push(("Images", format!("{} ID, {n_ood} OOD", board.n_id())));
    facts.push(("Seed", manifest.seed.to_string()));
    page.push_str("<dl class=\"facts\">");
    for (name, value) in facts {
        put!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n");
    if manifest.full_spectrum {
        page.push_str(
            "<p>Full spectrum: covariate-shifted ID images count as in-distribution.</p>\n",
        );
    }
    for mark in &board.marks {
        put!(
            page,
            "<p class=\"banner\"><b>{}.</b> No number here is the benchmark’s own.</p>\n",
            escape(&mark.cause())
        );
    }
    page.push_str("</header>\n");
}

fn cost(board: &Leaderboard, page: &mut String) {
    for group in Group::ALL {
        let methods: Vec<plot::Priced<'_>> = board
            .rows
            .iter()
            .filter_map(|row| {
                let speed = row.cost.as_ref()?.score_images_per_s.filter(|speed| *speed > 0.0)?;
                let auroc = board.average(row, group).auroc?;
                Some(plot::Priced {
                    name: &row.label,
                    link: anchor(row),
                    images_per_s: speed,
                    auroc,
                })
            })
            .collect();
        let Some(figure) = plot::against_cost(&methods, group_name(group)) else { continue };
        put!(
            page,
            "<section>\n<h2>Quality against cost</h2>\n<figure class=\"wide\">{figure}<figcaption>{} AUROC, average over the sets, \
             against the speed of scoring. The line joins the detectors that no other one beats in both. The classifier runs once for \
             all detectors, so its time counts only where a detector runs it itself.</figcaption></figure>\n</section>\n",
            group_name(group)
        );
        // The far average only where there is no near one.
        return;
    }
}

fn warnings(board: &Leaderboard, page: &mut String) {
    let all: Vec<_> = board.marks.iter().chain(&board.warnings).collect();
    if all.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Warnings</h2>\n<ul class=\"warnings\">\n");
    for warning in all {
        page.push_str("<li>");
        if let Some(label) = warning.label() {
            put!(page, "<b>{}</b> ", escape(label));
        }
        page.push_str(&with_code(&warning.cause()));
        if let Some(remedy) = warning.remedy() {
            put!(page, " <span class=\"remedy\">{}</span>", with_code(&remedy));
        }
        page.push_str("</li>\n");
    }
    page.push_str("</ul>\n</section>\n");
}

/// Whatever is not done, and why.
fn not_done(board: &Leaderboard, page: &mut String) {
    let is_skipped = |row: &&Row| matches!(row.status, Status::Skipped { .. });
    let rows = board.rows.iter().filter(|row| row.status != Status::Done);
    let (skipped, others): (Vec<&Row>, Vec<&Row>) = rows.partition(is_skipped);
    if skipped.is_empty() && others.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Not done</h2>\n");
    reasons(&others, page);
    if !skipped.is_empty() {
        let n = skipped.len();
        let detectors = if n == 1 { "detector" } else { "detectors" };
        put!(page, "<details><summary>{n} {detectors} skipped</summary>\n<div class=\"body\">\n");
        reasons(&skipped, page);
        page.push_str("</div>\n</details>\n");
    }
    page.push_str("</section>\n");
}

fn reasons(rows: &[&Row], page: &mut String) {
    if rows.is_empty() {
        return;
    }
    page.push_str("<ul class=\"reasons\">\n");
    for row in rows {
        let reason = row.status.reason();
        let colon = if reason.is_empty() { "" } else { ": " };
        let (label, word) = (escape(&row.label), row.status.word());
        put!(page, "<li><b>{label}</b> {word}{colon}{}</li>\n", with_code(reason));
    }
    page.push_str("</ul>\n");
}

fn sets(board: &Leaderboard, page: &mut String) {
    page.push_str(
        "<section>\n<h2>Data sets</h2>\n<div class=\"scroll\"><table class=\"plain\"><thead><tr><th>Role</th><th>Set</th>\
         <th class=\"n\">Images</th><th class=\"n\">Accuracy</th><th>Content</th></tr></thead><tbody>\n",
    );
    let line = |page: &mut String, set: &ListedSet, accuracy: Option<f64>| {
        let of = if set.n_images < set.of_images {
            format!(" of {}", set.of_images)
        } else {
            String::new()
        };
        put!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}{of}</td><td class=\"n\">{}</td><td><code>{}</code></td></tr>\n",
            escape(&set.set.role),
            escape(&set.set.name),
            set.n_images,
            or_absent(percent(accuracy, DECIMALS)),
            short(&set.content)
        );
    };
    for set in &board.sets {
        line(page, &set.listed, set.accuracy);
    }
    if let Some(search) = board.rows.iter().find_map(|row| row.search.as_ref()) {
        line(page, &search.id, None);
        line(page, &search.ood, None);
    }
    page.push_str("</tbody></table></div>\n");
    for missing in &board.manifest.missing {
        put!(
            page,
            "<p>{} is missing: {}</p>\n",
            escape(&missing.set.to_string()),
            with_code(&missing.reason)
        );
    }
    for group in Group::ALL.map(|group| board.group(group)).iter().filter(|it| it.is_partial()) {
        put!(
            page,
            "<p>{} averages are partial: they lack {}.</p>\n",
            group_name(group.group),
            escape(&listed(&group.without))
        );
    }
    page.push_str("</section>\n");
}

fn made_classifier(classifier: &Classifier) -> String {
    let mut text = format!("{}, {} features", escape(&classifier.arch), classifier.n_features);
    if let Some(n_classes) = classifier.n_classes {
        put!(&mut text, ", {n_classes} classes");
    }
    put!(&mut text, ", BLAKE3 <code>{}</code>", short(&classifier.blake3));
    if let (Some(mean), Some(std)) = (classifier.mean, classifier.std) {
        put!(&mut text, ", normalised by mean {mean:?} and standard deviation {std:?}");
    }
    text
}

fn provenance(board: &Leaderboard, page: &mut String) {
    let manifest = &board.manifest;
    let (classifier, machine) = (&manifest.classifier, &manifest.machine);
    let mut facts = vec![
        ("Made by".to_owned(), format!("oodbench {}", escape(&manifest.version))),
        ("Classifier".to_owned(), made_classifier(classifier)),
        ("Seed".to_owned(), manifest.seed.to_string()),
        (
            "Costs measured on".to_owned(),
            format!(
                "{}, {}, {} threads",
                escape(&machine.platform),
                escape(&machine.device_text()),
                machine.threads
            ),
        ),
    ];
    let mut packs: Vec<_> = board.rows.iter().filter_map(|row| row.pack.as_ref()).collect();
    packs.sort_by(|a, b| (&a.name, &a.version, &a.blake3).cmp(&(&b.name, &b.version, &b.blake3)));
    packs.dedup();
    for pack in packs {
        let name = format!("{} {}", escape(&pack.name), escape(&pack.version));
        facts.push((
            "Pack".to_owned(),
            format!("{name}, BLAKE3 <code>{}</code>", short(&pack.blake3)),
        ));
    }
    page.push_str("<section>\n<h2>How it was made</h2>\n<dl class=\"list\">\n");
    for (name, value) in facts {
        put!(page, "<dt>{name}</dt><dd>{value}</dd>\n");
    }
    page.push_str("</dl>\n</section>\n");
}

fn glossary(board: &Leaderboard, page: &mut String) {
    page.push_str(
        "<section>\n<h2>Reading the numbers</h2>\n<dl class=\"list\">\n\
         <dt>AUROC ↑</dt><dd>The probability that an OOD image scores above an ID image; 50 % is guessing.</dd>\n\
         <dt>FPR@95 ↓</dt><dd>The share of ID images refused where 95 % of the OOD images are detected, as OpenOOD has it.</dd>\n\
         <dt>AUPR-in, AUPR-out ↑</dt><dd>Area under the precision-recall curve with the ID or the OOD images as positives.</dd>\n\
         <dt>Averages</dt><dd>Unweighted means over the sets of a group. Rows are ranked by near-OOD AUROC, then far-OOD AUROC.</dd>\n\
         <dt>fit s</dt><dd>Seconds to create and fit the detector.</dd>\n\
         <dt>images/s</dt><dd>Images scored in a second, over all sets.</dd>\n\
         <dt>peak MB</dt><dd>Greatest resident memory of its process, in 10⁶ bytes.</dd>\n",
    );
    if board.rows.iter().any(|row| row.search.is_some()) {
        page.push_str(
            "<dt>†</dt><dd>Parameters chosen by AUROC on validation images; no test image had a part in it.</dd>\n",
        );
    }
    page.push_str("</dl>\n</section>\n");
}

#[cfg(test)]
mod tests;
