//! All reports of a run, into its folder.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oodbench_record::{RecordError, RunFolder, write_atomically};

use crate::error::ReportError;
use crate::leaderboard::Leaderboard;
use crate::{csv, html, json, markdown, scores, search};

/// Where the reports lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `leaderboard.csv`.
    pub csv: PathBuf,
    /// `leaderboard.md`.
    pub markdown: PathBuf,
    /// `leaderboard.json`.
    pub json: PathBuf,
    /// `leaderboard.html`.
    pub html: PathBuf,
    /// `search.csv`; absent for a run without a search.
    pub search: Option<PathBuf>,
    /// `scores/LABEL.csv` of each row that has scores, in the order of the rows.
    pub scores: Vec<PathBuf>,
}

/// Writes every report, each as a whole or not at all. What an earlier report left of the scores of
/// a row that has none any more is removed; nothing else in the folder is touched.
///
/// # Errors
/// [`ReportError::Write`], and whatever the exporters refuse.
pub fn write_all(board: &Leaderboard, run: &RunFolder) -> Result<Written, ReportError> {
    let root = run.root();
    let mut written = Written {
        csv: root.join("leaderboard.csv"),
        markdown: root.join("leaderboard.md"),
        json: root.join("leaderboard.json"),
        html: root.join("leaderboard.html"),
        search: None,
        scores: Vec::new(),
    };
    let names = scores::file_names(board.manifest.detectors.iter().map(|plan| plan.label.as_str()));
    for row in &board.rows {
        let path = root.join("scores").join(&names[row.position]);
        match scores::render(board, row)? {
            Some(text) => {
                write_atomically(&path, text.as_bytes())?;
                written.scores.push(path);
            }
            None => remove(&path)?,
        }
    }
    let path = root.join("search.csv");
    match search::render(board)? {
        Some(text) => {
            write_atomically(&path, text.as_bytes())?;
            written.search = Some(path);
        }
        None => remove(&path)?,
    }
    write_atomically(&written.csv, csv::render(board)?.as_bytes())?;
    write_atomically(&written.markdown, markdown::render(board).as_bytes())?;
    write_atomically(&written.json, json::render(board)?.as_bytes())?;
    write_atomically(&written.html, html::render(board).as_bytes())?;
    Ok(written)
}

fn remove(path: &Path) -> Result<(), ReportError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(ReportError::Write(RecordError::Write { path: path.to_owned(), source }))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRun;

    #[test]
    fn writing_twice_gives_the_same_bytes() {
        let run = TestRun::small();
        let read = |written: &Written| -> Vec<Vec<u8>> {
            let one = [&written.csv, &written.markdown, &written.json, &written.html];
            one.into_iter()
                .chain(&written.scores)
                .map(|path| std::fs::read(path).unwrap())
                .collect()
        };
        let once = write_all(&run.board(), run.folder()).unwrap();
        let bytes = read(&once);
        let again = write_all(&run.board(), run.folder()).unwrap();
        assert_eq!(again, once);
        assert_eq!(read(&again), bytes);
        let names: Vec<_> = once.scores.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["mls.csv", "msp.csv"]);
    }

    #[test]
    fn stale_scores_of_a_failed_row_are_removed_and_foreign_files_stay() {
        let run = TestRun::small();
        let folder = run.folder().root().join("scores");
        std::fs::create_dir(&folder).unwrap();
        for name in ["faulty.csv", "mine.csv"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        write_all(&run.board(), run.folder()).unwrap();
        assert!(!folder.join("faulty.csv").exists());
        assert!(folder.join("mine.csv").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_from_a_run_that_cannot_be_read() {
        let run = TestRun::small();
        let board = run.board();
        std::fs::write(run.folder().root().join("scores"), "a file in the way").unwrap();
        let error = write_all(&board, run.folder()).unwrap_err();
        assert!(error.is_write_failure(), "{error:?}");
        assert_eq!(
            error.hint(),
            Some("choose another folder with `--out`, or with `--cache` for what is prepared")
        );

        let error = Leaderboard::new(&RunFolder::new(run.folder().root().join("no"))).unwrap_err();
        assert!(!error.is_write_failure());
        assert_eq!(error.hint(), Some("name the folder of a run: the one that holds `run.json`"));
    }
}
