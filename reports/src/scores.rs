//! `scores/LABEL.csv`: the raw scores of a row, for whoever wants to plot their own.
//!
//! One line for each image, in the order of the benchmark's sets and of the images in them. A
//! score is written with the fewest digits that read back as the same `f32`.

use std::collections::HashSet;

use crate::error::ReportError;
use crate::leaderboard::Leaderboard;
use crate::row::Row;

/// The head of the table.
pub const COLUMNS: [&str; 4] = ["dataset", "group", "image_id", "ood_score"];

/// Longest file name without its ending; file systems stop at 255 bytes.
const MAX_NAME: usize = 120;

/// The whole file of a row; `None` where nothing was scored.
///
/// # Errors
/// [`ReportError::Layout`] where the writer refuses; [`ReportError::NoImages`] where the images of
/// a scored set are not known.
pub fn render(board: &Leaderboard, row: &Row) -> Result<Option<String>, ReportError> {
    let what = || format!("scores of {}", row.label);
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(ReportError::layout(what()))?;
    let mut is_empty = true;
    for (place, set) in board.sets.iter().enumerate() {
        let Some(scores) = row.scores(place) else { continue };
        let name = &set.listed.set;
        let images = set.images.as_ref().ok_or(ReportError::NoImages { set: name.clone() })?;
        is_empty = false;
        for (id, score) in images.ids.iter().zip(scores) {
            // `Debug` goes over to an exponent where `Display` writes dozens of zeros.
            let line = [name.name.as_str(), set.openood_group(), id, &format!("{score:?}")];
            writer.write_record(line).map_err(ReportError::layout(what()))?;
        }
    }
    if is_empty {
        return Ok(None);
    }
    let bytes = writer.into_inner().map_err(ReportError::layout(what()))?;
    String::from_utf8(bytes).map_err(ReportError::layout(what())).map(Some)
}

/// The file name of each planned detector's scores, in planned order.
///
/// Letters, digits and a few signs of a label stay, anything else becomes `_`, so that no label
/// leaves the folder or hides a file. Labels that become the same name, on file systems that do not
/// tell case too, are numbered.
pub fn file_names<'a>(labels: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut names = Vec::new();
    for label in labels {
        let stem = safe_stem(label);
        let mut name = stem.clone();
        let mut count = 1;
        while !taken.insert(name.to_ascii_lowercase()) {
            count += 1;
            name = format!("{stem}-{count}");
        }
        names.push(format!("{name}.csv"));
    }
    names
}

fn safe_stem(label: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_.=,+()".contains(c);
    let safe = label.chars().take(MAX_NAME).map(|c| if is_safe(c) { c } else { '_' });
    let mut stem: String = safe.collect();
    // A dot would hide the file, a dash would pass for an option.
    if stem.is_empty() || stem.starts_with(['.', '-']) {
        stem.insert(0, '_');
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    #[test]
    fn every_scored_image_has_a_line() {
        let run = TestRun::small();
        let board = run.board();
        let row = board.rows.iter().find(|row| row.label == "msp").unwrap();
        let expected = "\
dataset,group,image_id,ood_score
digits,id,digits/0.png,0.1
digits,id,digits/1.png,0.2
digits,id,digits/2.png,0.2
digits,id,digits/3.png,0.4
letters,nearood,letters/0.png,0.2
letters,nearood,letters/1.png,0.5
letters,nearood,letters/2.png,0.7
noise,farood,noise/0.png,0.9
noise,farood,noise/1.png,1.5
";
        assert_eq!(render(&board, row).unwrap().unwrap(), expected);
    }

    #[test]
    fn rows_without_scores_have_no_file() {
        let board = TestRun::small().board();
        let row = board.rows.iter().find(|row| row.label == "faulty").unwrap();
        assert_eq!(render(&board, row).unwrap(), None);
    }

    #[test]
    fn scores_read_back_bit_for_bit() {
        let scores = [1e-45_f32, -0.0, f32::MAX, 0.1 + 0.2, 16_777_216.0];
        for score in scores {
            let text = format!("{score:?}");
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), score.to_bits(), "{text}");
            assert!(text.len() <= 14, "{text}");
        }
    }

    #[test]
    fn labels_become_distinct_names_inside_the_folder() {
        let labels = ["knn(K=50)", "../x", "a/b", "a_b", "A_B", "", "-f", "café|"];
        let expected = [
            "knn(K=50).csv",
            "_.._x.csv",
            "a_b.csv",
            "a_b-2.csv",
            "A_B-3.csv",
            "_.csv",
            "_-f.csv",
            "caf__.csv",
        ];
        assert_eq!(file_names(labels), expected);
    }
}
