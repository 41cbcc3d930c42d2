//! `leaderboard.csv`: a long table in OpenOOD's columns, for spreadsheets and scripts.
//!
//! One line for each row and OOD set, and one for each average, in OpenOOD's order. Percentages
//! are multiplied by 100 as in OpenOOD's files, with four decimals instead of its two: one image
//! among a million still shows. What is absent is an empty field.
//!
//! Fields are quoted where RFC 4180 asks for it, and never altered: a parameter or a reason that
//! begins like a formula is data, and stays what it is.

use oodbench_metrics::OodMetrics;

use crate::error::ReportError;
use crate::figures::{megabytes, number, one_line, percent};
use crate::leaderboard::{Group, Leaderboard};
use crate::row::Row;

/// The head of the table.
pub const COLUMNS: [&str; 20] = [
    "method",
    "params",
    "group",
    "dataset",
    "FPR@95",
    "AUROC",
    "AUPR_IN",
    "AUPR_OUT",
    "ACC",
    "FPR@95_id_positive",
    "FPR@95_openood",
    "n_id",
    "n_ood",
    "fit_s",
    "score_images_per_s",
    "peak_mb",
    "device",
    "status",
    "reason",
    "n_searched",
];

const DECIMALS: usize = 4;

/// The whole file.
///
/// # Errors
/// [`ReportError::Layout`] where the writer refuses.
pub fn render(board: &Leaderboard) -> Result<String, ReportError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    write(board, &mut writer).map_err(ReportError::layout("leaderboard.csv"))?;
    let bytes = writer.into_inner().map_err(ReportError::layout("leaderboard.csv"))?;
    String::from_utf8(bytes).map_err(ReportError::layout("leaderboard.csv"))
}

fn write(board: &Leaderboard, writer: &mut ::csv::Writer<Vec<u8>>) -> Result<(), ::csv::Error> {
    writer.write_record(COLUMNS)?;
    for row in &board.rows {
        for group in Group::ALL {
            let sets = board.group(group);
            let mut n_ood = 0;
            for &place in &sets.members {
                let set = &board.sets[place].listed;
                n_ood += set.n_images;
                let line =
                    line(board, row, group, &set.set.name, &row.metrics[place], set.n_images);
                writer.write_record(line)?;
            }
            if !sets.is_empty() {
                let metrics = board.average(row, group);
                let name = average_name(board, group);
                writer.write_record(line(board, row, group, &name, metrics, n_ood))?;
            }
        }
    }
    Ok(())
}

/// What an average is called: OpenOOD's name, but another one where sets are missing, so that no
/// script takes the one for the other.
fn average_name(board: &Leaderboard, group: Group) -> String {
    let mark = if board.group(group).is_partial() { "-partial" } else { "" };
    format!("{}{mark}", group.openood_name())
}

fn line(
    board: &Leaderboard,
    row: &Row,
    group: Group,
    dataset: &str,
    metrics: &OodMetrics,
    n_ood: usize,
) -> [String; COLUMNS.len()] {
    let standing = board.standing(row);
    // The counts belong to the metrics, and are absent with them.
    let count = |n: usize| metrics.auroc.map_or_else(String::new, |_| n.to_string());
    let cost = row.cost.as_ref();
    [
        one_line(&row.label),
        row.params_json(),
        group.openood_name().to_owned(),
        one_line(dataset),
        percent(metrics.fpr95, DECIMALS),
        percent(metrics.auroc, DECIMALS),
        percent(metrics.aupr_in, DECIMALS),
        percent(metrics.aupr_out, DECIMALS),
        percent(board.accuracy.filter(|_| row.status.is_ranked()), DECIMALS),
        percent(metrics.fpr95_id_positive, DECIMALS),
        percent(metrics.fpr95_openood, DECIMALS),
        count(board.n_id()),
        count(n_ood),
        number(cost.map(|cost| cost.fit_s), 3),
        number(cost.and_then(|cost| cost.score_images_per_s), 1),
        number(cost.and_then(|cost| cost.peak_bytes).map(megabytes), 1),
        cost.map_or_else(String::new, |cost| cost.device.clone()),
        standing.word.to_owned(),
        standing.reason,
        row.search.as_ref().map_or_else(String::new, |search| search.tried.len().to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    #[test]
    fn the_table_has_a_line_for_each_set_and_average() {
        let mut run = TestRun::small();
        run.missing("far", "svhn");
        run.manifest.sets[0].of_images = 10;
        run.manifest.limit = Some(4);
        let expected = r#"
method,params,group,dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC,FPR@95_id_positive,FPR@95_openood,n_id,n_ood,fit_s,score_images_per_s,peak_mb,device,status,reason,n_searched
mls,"{""temperature"":1.0}",nearood,letters,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
mls,"{""temperature"":1.0}",nearood,nearood,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
mls,"{""temperature"":1.0}",farood,noise,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
mls,"{""temperature"":1.0}",farood,farood-partial,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
msp,"{""temperature"":1.0}",nearood,letters,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
msp,"{""temperature"":1.0}",nearood,nearood,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
msp,"{""temperature"":1.0}",farood,noise,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
msp,"{""temperature"":1.0}",farood,farood-partial,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,partial,incomplete: missing far/svhn; limited to 4 images a set: not comparable,
odin,"{""temperature"":1.0}",nearood,letters,,,,,,,,,,,,,,skipped,"needs `GRADIENT`, which a feature bank | file has not",
odin,"{""temperature"":1.0}",nearood,nearood,,,,,,,,,,,,,,skipped,"needs `GRADIENT`, which a feature bank | file has not",
odin,"{""temperature"":1.0}",farood,noise,,,,,,,,,,,,,,skipped,"needs `GRADIENT`, which a feature bank | file has not",
odin,"{""temperature"":1.0}",farood,farood-partial,,,,,,,,,,,,,,skipped,"needs `GRADIENT`, which a feature bank | file has not",
faulty,"{""temperature"":1.0}",nearood,letters,,,,,,,,,,,,,,failed,panicked: index out of bounds,
faulty,"{""temperature"":1.0}",nearood,nearood,,,,,,,,,,,,,,failed,panicked: index out of bounds,
faulty,"{""temperature"":1.0}",farood,noise,,,,,,,,,,,,,,failed,panicked: index out of bounds,
faulty,"{""temperature"":1.0}",farood,farood-partial,,,,,,,,,,,,,,failed,panicked: index out of bounds,
"#;
        assert_eq!(render(&run.board()).unwrap(), expected.trim_start());
    }

    #[test]
    fn a_full_run_has_no_marks() {
        let text = render(&TestRun::small().board()).unwrap();
        let expected = r#"
msp,"{""temperature"":1.0}",nearood,letters,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,done,,
msp,"{""temperature"":1.0}",nearood,nearood,75.0000,83.3333,88.1250,86.1111,75.0000,33.3333,75.0000,4,3,0.250,6.0,12.3,cpu,done,,
msp,"{""temperature"":1.0}",farood,noise,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,done,,
msp,"{""temperature"":1.0}",farood,farood,0.0000,100.0000,100.0000,100.0000,75.0000,0.0000,0.0000,4,2,0.250,6.0,12.3,cpu,done,,
"#;
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("msp")).collect();
        assert_eq!(lines.join("\n") + "\n", expected.trim_start());
    }
}
