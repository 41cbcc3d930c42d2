//! Each detector with its figures, its parameters and the search that they come from.

use std::cmp::Ordering;

use serde_json::Value;

use super::plot::{self, Curve};
use super::{DECIMALS, anchor, escape, put};
use crate::figures::{megabytes, number, or_absent, percent, speed};
use crate::leaderboard::{Group, Leaderboard, ScoredSet};
use crate::row::Row;
use crate::search::{SearchTable, Tried};

/// Combinations of a search that are listed; `search.csv` has all of them.
const LISTED: usize = 40;

/// Whether a row has more to show than its line in the table.
pub(super) fn has_details(row: &Row) -> bool {
    row.status.is_ranked() || row.search.is_some()
}

/// The section with all detectors that have scores, or a search.
pub(super) fn methods(board: &Leaderboard, page: &mut String) {
    let mut rows = board.rows.iter().filter(|row| has_details(row)).peekable();
    if rows.peek().is_none() {
        return;
    }
    page.push_str(
        "<section class=\"methods\">\n<h2>Detectors</h2>\n<p class=\"note\">Left: how the scores of \
         <b class=\"key id\">ID</b>, <b class=\"key near\">near-OOD</b> and <b class=\"key far\">far-OOD</b> images are \
         spread; each set of a group counts the same, the outermost bins hold what lies beyond, and 95 % of the ID \
         images lie left of the dashed line. Right: ROC curves, one for each OOD set; the dashed line is at 95 %.</p>\n",
    );
    for (nth, row) in rows.enumerate() {
        method(board, row, nth == 0, page);
    }
    page.push_str("</section>\n");
}

fn method(board: &Leaderboard, row: &Row, open: bool, page: &mut String) {
    let average = |group| percent(board.average(row, group).auroc, DECIMALS);
    let numbers: Vec<String> = [("near", Group::Near), ("far", Group::Far)]
        .map(|(name, group)| (name, average(group)))
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    put!(
        page,
        "<details{}><summary><b>{}</b> <span>{}</span> <span class=\"numbers\">{}</span></summary>\n<div class=\"body\" id=\"{}\">\n",
        if open { " open" } else { "" },
        escape(&row.label),
        escape(&row.title),
        numbers.join(" · "),
        anchor(row)
    );
    figures(board, row, page);
    per_set(board, row, page);
    facts(row, page);
    if let Some(search) = &row.search {
        searched(search, page);
    }
    page.push_str("</div>\n</details>\n");
}

/// The class of a set in figures and their keys: its group, and a pattern of dashes.
fn class(board: &Leaderboard, group: Group, place: usize) -> String {
    let members = &board.group(group).members;
    let nth = members.iter().position(|&member| member == place).unwrap_or(0);
    format!("{} d{}", group.role(), nth % 5)
}

fn figures(board: &Leaderboard, row: &Row, page: &mut String) {
    let of = |places: &[usize]| -> Vec<&[f32]> {
        places.iter().filter_map(|&place| row.scores(place)).collect()
    };
    let id = of(&board.id_sets);
    if id.len() != board.id_sets.len() {
        return;
    }
    let histogram = plot::histogram(&id, &of(&board.near.members), &of(&board.far.members));
    let curve = |(group, place): (Group, usize)| {
        let (class, name) = (class(board, group, place), &board.sets[place].listed.set.name);
        Some(Curve { class, name, scores: row.scores(place)? })
    };
    let curves: Vec<Curve<'_>> = members(board).filter_map(curve).collect();
    let roc = plot::roc(&id.concat(), &curves);
    if histogram.is_none() && roc.is_none() {
        return;
    }
    page.push_str("<div class=\"figures\">");
    for figure in [histogram, roc].into_iter().flatten() {
        put!(page, "<figure>{figure}</figure>");
    }
    page.push_str("</div>\n");
}

/// The OOD sets with their groups, near ones first.
fn members(board: &Leaderboard) -> impl Iterator<Item = (Group, usize)> + '_ {
    Group::ALL
        .into_iter()
        .flat_map(|group| board.group(group).members.iter().map(move |&place| (group, place)))
}

fn per_set(board: &Leaderboard, row: &Row, page: &mut String) {
    page.push_str("<div class=\"scroll\"><table class=\"plain\"><thead><tr><th></th><th>Set</th>");
    let heads =
        ["AUROC ↑", "FPR@95 ↓", "AUPR-in ↑", "AUPR-out ↑", "FPR@95 ↓ <small>ID positive</small>"];
    for head in heads {
        put!(page, "<th class=\"n\">{head}</th>");
    }
    page.push_str("</tr></thead><tbody>\n");
    for (group, place) in members(board) {
        let ScoredSet { listed, .. } = &board.sets[place];
        let metrics = &row.metrics[place];
        put!(
            page,
            "<tr><td><svg viewBox=\"0 0 26 8\" class=\"swatch\" aria-hidden=\"true\"><path class=\"roc {}\" d=\"M1 4H25\"/></svg></td><td>{}</td>",
            class(board, group, place),
            escape(&listed.set.to_string())
        );
        for value in [
            metrics.auroc,
            metrics.fpr95,
            metrics.aupr_in,
            metrics.aupr_out,
            metrics.fpr95_id_positive,
        ] {
            put!(page, "<td class=\"n\">{}</td>", or_absent(percent(value, DECIMALS)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn facts(row: &Row, page: &mut String) {
    let mut facts: Vec<(&str, String)> = Vec::new();
    let year = if row.year > 0 { format!(", {}", row.year) } else { String::new() };
    facts.push(("Kind", format!("{}{year}", escape(&row.family))));
    if !row.params.is_empty() {
        let pairs: Vec<String> =
            row.params.iter().map(|(name, value)| format!("{name} = {}", plain(value))).collect();
        facts.push(("Parameters", format!("<code>{}</code>", escape(&pairs.join(", ")))));
    }
    if let Some(cost) = &row.cost {
        let mut parts = vec![format!("fitted in {} s", number(Some(cost.fit_s), 2))];
        if cost.score_images_per_s.is_some() {
            parts.push(format!("{} images/s", speed(cost.score_images_per_s)));
        }
        if let Some(bytes) = cost.peak_bytes {
            parts.push(format!("{} MB at most", number(Some(megabytes(bytes)), 0)));
        }
        parts.push(format!("{}, {} threads", escape(&cost.device), cost.threads));
        facts.push(("Cost", parts.join(", ")));
    }
    for warning in &row.warnings {
        facts.push(("Warning", escape(warning)));
    }
    page.push_str("<dl class=\"list\">\n");
    for (name, value) in facts {
        put!(page, "<dt>{name}</dt><dd>{value}</dd>\n");
    }
    page.push_str("</dl>\n");
}

/// A value as it is typed.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn searched(search: &SearchTable, page: &mut String) {
    let n = search.tried.len();
    let (id, ood) = (&search.id.set, &search.ood.set);
    put!(
        page,
        "<details class=\"search\"><summary>Search: {n} combinations on {} and {}</summary>\n",
        escape(&id.to_string()),
        escape(&ood.to_string())
    );
    let mut places: Vec<usize> = (0..n).collect();
    if n > LISTED {
        let auroc = |place: usize| search.tried[place].metrics.auroc;
        // The sort is stable: of equals the first comes first, which is the one that is chosen.
        places.sort_by(|&a, &b| match (auroc(a), auroc(b)) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => match (a.is_some(), b.is_some()) {
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                _ => Ordering::Equal,
            },
        });
        places.truncate(LISTED);
        put!(page, "<p class=\"note\">The best {LISTED}; <code>search.csv</code> has all.</p>\n");
    }
    page.push_str("<div class=\"scroll\"><table class=\"plain\"><thead><tr>");
    for name in &search.parameters {
        put!(page, "<th>{}</th>", escape(name));
    }
    page.push_str(
        "<th class=\"n\">AUROC ↑</th><th class=\"n\">FPR@95 ↓</th><th></th></tr></thead><tbody>\n",
    );
    for place in places {
        let Tried { params, metrics, status, .. } = &search.tried[place];
        let is_chosen = search.chosen == Some(place);
        put!(page, "<tr{}>", if is_chosen { " class=\"chosen\"" } else { "" });
        for name in &search.parameters {
            let value = params.get(name).map(plain).unwrap_or_default();
            put!(page, "<td>{}</td>", escape(&value));
        }
        let note = match (is_chosen, status.reason()) {
            (true, _) => "chosen".to_owned(),
            (false, "") if status.word() == "done" => String::new(),
            (false, reason) => escape(&format!("{} {reason}", status.word())),
        };
        put!(
            page,
            "<td class=\"n\">{}</td><td class=\"n\">{}</td><td>{note}</td></tr>\n",
            or_absent(percent(metrics.auroc, DECIMALS)),
            or_absent(percent(metrics.fpr95, DECIMALS))
        );
    }
    page.push_str("</tbody></table></div>\n</details>\n");
}
