//! The leaderboard as an aligned table for a terminal.
//!
//! Where the terminal is narrow, columns go, costs first; the method, its near-OOD AUROC and its
//! status stay. The text comes back; printing it is for the caller.

use owo_colors::Style;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::figures::{listed, megabytes, number, one_line, or_absent, percent, speed};
use crate::leaderboard::{Group, Leaderboard};
use crate::row::{Row, Status};

const GAP: &str = "  ";

/// The least that is shown of a method's name.
const MIN_METHOD: usize = 8;

/// What an average over less than the whole group bears.
const PARTIAL: &str = "*";

/// What the name of a row bears whose parameters were searched.
const SEARCHED: &str = "†";

/// The table, the marks of the run, and a line for each row that is not done. What was skipped has
/// that line alone: of all detectors many go with a training or a file of their own.
///
/// `width` is the number of columns of the terminal; lines of prose are left for it to wrap.
/// `styled` adds colours, which say nothing that the words do not.
pub fn render(board: &Leaderboard, width: usize, styled: bool) -> String {
    let paint = |text: &str, style: Style| {
        if styled { style.style(text).to_string() } else { text.to_owned() }
    };
    let mut out = String::new();
    put(&mut out, &paint(&title(board), Style::new().bold()));
    put(&mut out, "");
    let columns = fit(columns(board), width);
    for head in [0, 1] {
        let line = columns.iter().map(|column| column.pad(column.heads[head]));
        put(&mut out, &paint(join(line).trim_end(), Style::new().bold()));
    }
    for (position, row) in shown(board).enumerate() {
        let line = join(columns.iter().map(|column| column.pad(&column.cells[position])));
        put(&mut out, &paint(line.trim_end(), row_style(row)));
    }
    let mut notes: Vec<String> = board
        .marks
        .iter()
        .map(|mark| paint(&one_line(&mark.cause()), Style::new().yellow()))
        .collect();
    let partial: Vec<_> = Group::ALL
        .map(|group| board.group(group))
        .into_iter()
        .filter(|it| it.is_partial())
        .collect();
    if !partial.is_empty() && !board.rows.is_empty() {
        let mut without = Vec::new();
        for set in partial.iter().flat_map(|group| &group.without) {
            if !without.contains(&set) {
                without.push(set);
            }
        }
        let without = one_line(&listed(without));
        notes.push(format!("{PARTIAL} mean of the sets that are there, without {without}"));
    }
    if let Some(search) = board.rows.iter().find_map(|row| row.search.as_ref()) {
        let (id, ood) = (&search.id.set, &search.ood.set);
        let sets = one_line(&listed([id, ood]));
        notes.push(format!("{SEARCHED} parameters chosen on {sets}: see `search.csv`"));
    }
    let mut reasons: Vec<(&Row, Vec<String>)> = Vec::new();
    for row in board.rows.iter().filter(|row| !row.status.reason().is_empty()) {
        let label = one_line(&row.label);
        match reasons.iter_mut().find(|(first, _)| first.status == row.status) {
            Some((_, labels)) => labels.push(label),
            None => reasons.push((row, vec![label])),
        }
    }
    for (row, labels) in reasons {
        let word = paint(row.status.word(), row_style(row));
        notes.push(format!("{word} {}: {}", labels.join(", "), row.status.reason()));
    }
    if !notes.is_empty() {
        put(&mut out, "");
        put(&mut out, &notes.join("\n"));
    }
    out
}

/// The rows of the table.
fn shown(board: &Leaderboard) -> impl Iterator<Item = &Row> {
    board.rows.iter().filter(|row| !matches!(row.status, Status::Skipped { .. }))
}

fn title(board: &Leaderboard) -> String {
    let manifest = &board.manifest;
    let mut title = format!(
        "{} {}, {}",
        one_line(&manifest.title),
        one_line(&manifest.benchmark_version),
        one_line(&manifest.classifier.name)
    );
    if board.accuracy.is_some() {
        title.push_str(&format!(", accuracy {} %", percent(board.accuracy, 2)));
    }
    if manifest.full_spectrum {
        title.push_str(", full spectrum");
    }
    format!("{title}, seed {}", manifest.seed)
}

fn row_style(row: &Row) -> Style {
    match row.status {
        Status::Done => Style::new(),
        Status::Partial { .. } => Style::new().yellow(),
        Status::Failed { .. } => Style::new().red(),
        Status::Skipped { .. } | Status::Outstanding => Style::new().dimmed(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

struct Column {
    heads: [&'static str; 2],
    align: Align,
    /// The greatest is dropped first; 0 stays.
    drop_order: u8,
    width: usize,
    cells: Vec<String>,
}

impl Column {
    fn pad(&self, text: &str) -> String {
        let text = shorten(text, self.width);
        let blanks = " ".repeat(self.width - text.width());
        if self.align == Align::Left { text + &blanks } else { blanks + &text }
    }
}

fn columns(board: &Leaderboard) -> Vec<Column> {
    use Align::{Left, Right};
    let column = |heads: [&'static str; 2], align, drop_order, cell: &dyn Fn(&Row) -> String| {
        let cells: Vec<_> = shown(board).map(|row| or_absent(cell(row))).collect();
        let widest = cells.iter().map(|cell| cell.width()).max().unwrap_or(0);
        let width = heads.map(UnicodeWidthStr::width).into_iter().fold(widest, usize::max);
        Column { heads, align, drop_order, width, cells }
    };
    let average = |group: Group, value: Option<f64>| {
        let mut shown = percent(value, 2);
        if value.is_some() && board.group(group).is_partial() {
            shown.push_str(PARTIAL);
        }
        shown
    };
    let auroc = |group| move |row: &Row| average(group, board.average(row, group).auroc);
    let fpr = |group| move |row: &Row| average(group, board.average(row, group).fpr95);
    let cost = |row: &Row| row.cost.clone();
    let accuracy = |row: &Row| percent(board.accuracy.filter(|_| row.status.is_ranked()), 2);
    vec![
        column(["", "Method"], Left, 0, &|row| {
            let mark = if row.search.is_some() { SEARCHED } else { "" };
            format!("{}{mark}", one_line(&row.label))
        }),
        column(["Near", "AUROC ↑"], Right, 0, &auroc(Group::Near)),
        column(["Near", "FPR@95 ↓"], Right, 2, &fpr(Group::Near)),
        column(["Far", "AUROC ↑"], Right, 1, &auroc(Group::Far)),
        column(["Far", "FPR@95 ↓"], Right, 3, &fpr(Group::Far)),
        column(["", "ACC"], Right, 6, &accuracy),
        column(["", "fit s"], Right, 5, &|row| number(cost(row).map(|cost| cost.fit_s), 2)),
        column(["", "images/s"], Right, 4, &|row| {
            speed(cost(row).and_then(|cost| cost.score_images_per_s))
        }),
        column(["", "peak MB"], Right, 7, &|row| {
            number(cost(row).and_then(|cost| cost.peak_bytes).map(megabytes), 0)
        }),
        column(["", "device"], Left, 8, &|row| {
            cost(row).map_or_else(String::new, |cost| one_line(&cost.device))
        }),
        column(["", "status"], Left, 0, &|row| board.standing(row).word.to_owned()),
    ]
}

/// Drops columns until the rest fits, and as a last resort shortens the names.
fn fit(mut columns: Vec<Column>, width: usize) -> Vec<Column> {
    let total = |columns: &[Column]| -> usize {
        let gaps = GAP.len() * columns.len().saturating_sub(1);
        gaps + columns.iter().map(|column| column.width).sum::<usize>()
    };
    while total(&columns) > width {
        let last = columns.iter().map(|column| column.drop_order).max().unwrap_or(0);
        if last == 0 {
            break;
        }
        columns.retain(|column| column.drop_order != last);
    }
    let excess = total(&columns).saturating_sub(width);
    if let Some(method) = columns.first_mut() {
        method.width = method.width.min(method.width.saturating_sub(excess).max(MIN_METHOD));
    }
    columns
}

/// The text in at most `width` columns, with `…` where something is cut off.
fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 0;
    for c in text.chars() {
        let more = c.width().unwrap_or(0);
        if used + more >= width {
            break;
        }
        short.push(c);
        used += more;
    }
    short.push('…');
    short
}

fn join(cells: impl Iterator<Item = String>) -> String {
    cells.collect::<Vec<_>>().join(GAP)
}

fn put(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    #[test]
    fn a_wide_terminal_shows_every_column() {
        let expected = r#"
Toy digits 1, net.safetensors, accuracy 75.00 %, seed 7

           Near      Near      Far       Far
Method  AUROC ↑  FPR@95 ↓  AUROC ↑  FPR@95 ↓    ACC  fit s  images/s  peak MB  device  status
mls       83.33     75.00   100.00      0.00  75.00   0.25      6.00       12  cpu     done
msp       83.33     75.00   100.00      0.00  75.00   0.25      6.00       12  cpu     done
faulty        -         -        -         -      -      -         -        -  -       failed

skipped odin: needs `GRADIENT`, which a feature bank | file has not
failed faulty: panicked: index out of bounds
"#;
        assert_eq!(render(&TestRun::small().board(), 120, false), expected.trim_start());
    }

    #[test]
    fn columns_go_until_the_table_fits() {
        let mut run = TestRun::small();
        run.missing("far", "svhn");
        let expected = r#"
Toy digits 1, net.safetensors, accuracy 75.00 %, seed 7

           Near      Near      Far       Far
Method  AUROC ↑  FPR@95 ↓  AUROC ↑  FPR@95 ↓  status
mls       83.33     75.00  100.00*     0.00*  partial
msp       83.33     75.00  100.00*     0.00*  partial
faulty        -         -        -         -  failed

incomplete: missing far/svhn
* mean of the sets that are there, without far/svhn
skipped odin: needs `GRADIENT`, which a feature bank | file has not
failed faulty: panicked: index out of bounds
"#;
        assert_eq!(render(&run.board(), 60, false), expected.trim_start());
        let board = run.board();
        for width in 40..140 {
            let text = render(&board, width, false);
            let table = text.lines().skip(2).take_while(|line| !line.is_empty());
            for line in table {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_searched_row_is_marked() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("msp", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
        run.search("msp", &[&[&[0.0], &[0.5]]], Some(0));
        let expected = r#"
Toy digits 1, net.safetensors, accuracy 75.00 %, seed 7

           Near
Method  AUROC ↑  status
msp†      75.00  done

† parameters chosen on id-val/digits, ood-val/words: see `search.csv`
"#;
        assert_eq!(render(&run.board(), 30, false), expected.trim_start());
    }

    #[test]
    fn wide_names_are_measured_in_columns_of_the_terminal() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("近い隣人の検出器", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
        run.detector("é", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
        let expected = r#"
Toy digits 1, net.safetensors, accuracy 75.00 %, seed 7

                     Near
Method            AUROC ↑  status
é                   75.00  done
近い隣人の検出器    75.00  done
"#;
        assert_eq!(render(&run.board(), 36, false), expected.trim_start());
    }

    #[test]
    fn styles_add_nothing_but_escapes() {
        let board = TestRun::small().board();
        let styled = render(&board, 100, true);
        assert!(styled.contains("\u{1b}[31m"), "{styled}");
        let mut plain = String::new();
        let mut parts = styled.split('\u{1b}');
        plain.push_str(parts.next().unwrap());
        for part in parts {
            plain.push_str(part.split_once('m').unwrap().1);
        }
        assert_eq!(plain, render(&board, 100, false));
    }
}
