//! The table of the leaderboard: averages, and what can be shown beside them.

use oodbench_metrics::OodMetrics;

use super::detail::has_details;
use super::{DECIMALS, anchor, escape, group_name, put};
use crate::figures::{ABSENT, megabytes, number, speed};
use crate::leaderboard::{Group, Leaderboard};
use crate::row::{Row, Status};

/// Which of two numbers is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Greater,
    Less,
    /// Nothing is marked as the best.
    Neither,
}

/// Reads a number off a row.
type Value<'a> = Box<dyn Fn(&Row) -> Option<f64> + 'a>;

struct Column<'a> {
    /// The upper and the lower line of its head.
    heads: [String; 2],
    /// What hides it; empty for what is always shown.
    class: &'static str,
    better: Better,
    shown: fn(f64) -> String,
    /// Whether it is an AUROC, behind which a bar is drawn.
    has_bar: bool,
    value: Value<'a>,
}

/// A metric of an OOD set, or of a group of them.
struct Metric {
    name: &'static str,
    better: Better,
    /// Whether it has a column from the start.
    is_shown: bool,
    field: fn(&OodMetrics) -> Option<f64>,
}

const METRICS: [Metric; 4] = [
    Metric { name: "AUROC ↑", better: Better::Greater, is_shown: true, field: |it| it.auroc },
    Metric { name: "FPR@95 ↓", better: Better::Less, is_shown: true, field: |it| it.fpr95 },
    Metric {
        name: "AUPR-in ↑", better: Better::Greater, is_shown: false, field: |it| it.aupr_in
    },
    Metric {
        name: "AUPR-out ↑",
        better: Better::Greater,
        is_shown: false,
        field: |it| it.aupr_out,
    },
];

impl Metric {
    fn column<'a>(
        &self,
        head: String,
        class: &'static str,
        metrics: impl Fn(&Row) -> OodMetrics + 'a,
    ) -> Column<'a> {
        let field = self.field;
        Column {
            heads: [head, self.name.to_owned()],
            class,
            better: self.better,
            shown: rate,
            has_bar: self.name.starts_with("AUROC"),
            value: Box::new(move |row| field(&metrics(row)).map(|value| 100.0 * value)),
        }
    }
}

/// The section with the table.
pub(super) fn leaderboard(board: &Leaderboard, page: &mut String) {
    let columns = columns(board);
    page.push_str("<section class=\"board\">\n<h2>Leaderboard</h2>\n<div class=\"toggles\">");
    page.push_str("<span>Show</span>");
    for (id, text, checked) in
        [("t-aupr", "AUPR", ""), ("t-set", "each data set", ""), ("t-cost", "cost", " checked")]
    {
        put!(page, "<label><input type=\"checkbox\" id=\"{id}\"{checked}> {text}</label>");
    }
    page.push_str("</div>\n<div class=\"scroll\">\n<table class=\"leaderboard\" id=\"leaderboard\">\n<thead><tr>");
    page.push_str("<th class=\"n\">#</th><th class=\"method\">Method</th>");
    for column in &columns {
        let [upper, lower] = &column.heads;
        let class = format!("n {}", column.class);
        put!(page, "<th class=\"{}\"><span>{upper}</span> {lower}</th>", class.trim());
    }
    page.push_str("<th class=\"c-cost\">device</th><th>status</th></tr></thead>\n<tbody>\n");
    let marks: Vec<Vec<&str>> = columns.iter().map(|column| best(board, column)).collect();
    for (nth, row) in board.rows.iter().enumerate() {
        // What lacks something is listed below the figures, and may be longer than the table.
        if matches!(row.status, Status::Skipped { .. }) {
            continue;
        }
        let standing = board.standing(row);
        let is_ranked = row.status.is_ranked();
        put!(page, "<tr{}>", if is_ranked { "" } else { " class=\"absent\"" });
        match is_ranked {
            true => {
                put!(page, "<td class=\"n rank\" data-v=\"{0}\">{0}</td>", nth + 1);
            }
            false => page.push_str("<td class=\"n rank\"></td>"),
        }
        let dagger = if row.search.is_some() { " †" } else { "" };
        let mut label = escape(&row.label);
        if has_details(row) {
            label = format!("<a href=\"#{}\">{label}</a>", anchor(row));
        }
        put!(
            page,
            "<th scope=\"row\" class=\"method\">{label}{dagger}<small>{}</small></th>",
            escape(&row.title)
        );
        for (column, marks) in columns.iter().zip(&marks) {
            cell(column, (column.value)(row), marks[nth], page);
        }
        let device = row.cost.as_ref().map_or(ABSENT, |cost| &cost.device);
        put!(
            page,
            "<td class=\"c-cost\">{}</td><td class=\"status\" title=\"{}\">{}</td></tr>\n",
            escape(device),
            escape(&standing.reason),
            standing.word
        );
    }
    page.push_str("</tbody></table>\n</div>\n<p class=\"note\">");
    page.push_str("All rates in per cent. The best of a column is bold, the second underlined.");
    if Group::ALL.iter().any(|group| board.group(*group).is_partial()) {
        page.push_str(" * mean of the sets that are there: not the benchmark’s number.");
    }
    page.push_str("</p>\n</section>\n");
}

fn columns(board: &Leaderboard) -> Vec<Column<'_>> {
    let mut columns = Vec::new();
    for group in Group::ALL.into_iter().filter(|group| !board.group(*group).is_empty()) {
        let star = if board.group(group).is_partial() { "*" } else { "" };
        for metric in &METRICS {
            let head = format!("{}{star}", group_name(group));
            let class = if metric.is_shown { "" } else { "c-aupr" };
            columns.push(metric.column(head, class, move |row| *board.average(row, group)));
        }
    }
    for (place, set) in board.ood_sets() {
        for metric in METRICS.iter().filter(|metric| metric.is_shown) {
            let head = escape(&set.listed.set.to_string());
            columns.push(metric.column(head, "c-set", move |row| row.metrics[place]));
        }
    }
    type Cost = (&'static str, fn(f64) -> String, fn(&Row) -> Option<f64>);
    let costs: [Cost; 3] = [
        ("fit s", rate, |row| row.cost.as_ref().map(|cost| cost.fit_s)),
        ("images/s", compact, |row| row.cost.as_ref()?.score_images_per_s),
        (
            "peak MB",
            |value| number(Some(value), 0),
            |row| row.cost.as_ref()?.peak_bytes.map(megabytes),
        ),
    ];
    for (name, shown, value) in costs {
        columns.push(Column {
            heads: [String::new(), name.to_owned()],
            class: "c-cost",
            better: Better::Neither,
            shown,
            has_bar: false,
            value: Box::new(value),
        });
    }
    columns
}

fn rate(value: f64) -> String {
    number(Some(value), DECIMALS)
}

/// About three digits.
pub(super) fn compact(value: f64) -> String {
    match value {
        _ if value >= 999_500.0 => format!("{} M", speed(Some(value / 1e6))),
        _ if value >= 9_999.5 => format!("{} k", speed(Some(value / 1e3))),
        _ => speed(Some(value)),
    }
}

/// A class for each row: `best`, `second` or nothing.
fn best(board: &Leaderboard, column: &Column<'_>) -> Vec<&'static str> {
    let shown = |row: &Row| {
        // What looks the same is as good.
        Some((100.0 * (column.value)(row)?).round())
    };
    let mut values: Vec<f64> = board.rows.iter().filter_map(shown).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    if column.better == Better::Greater {
        values.reverse();
    }
    let class = |row: &Row| match shown(row) {
        Some(_) if column.better == Better::Neither || values.len() < 2 => "",
        Some(value) if value == values[0] => "best",
        Some(value) if value == values[1] => "second",
        _ => "",
    };
    board.rows.iter().map(class).collect()
}

fn cell(column: &Column<'_>, value: Option<f64>, mark: &str, page: &mut String) {
    let bar = if column.has_bar && value.is_some() { "bar" } else { "" };
    let classes = ["n", bar, column.class, mark].into_iter().filter(|class| !class.is_empty());
    let classes = classes.collect::<Vec<_>>().join(" ");
    let Some(value) = value else {
        put!(page, "<td class=\"{classes}\">{ABSENT}</td>");
        return;
    };
    put!(page, "<td class=\"{classes}\" data-v=\"{value:.6}\"");
    if column.has_bar {
        // Guessing has no bar.
        put!(page, " style=\"--w:{:.2}\"", ((value - 50.0) / 50.0).max(0.0));
    }
    put!(page, ">{}</td>", (column.shown)(value));
}
