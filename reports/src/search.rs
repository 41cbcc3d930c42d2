//! The searches for parameters of a run, computed from the scores of the validation images, and
//! `search.csv`: a long table with a line for each combination that was tried.
//!
//! Numbers in `search.csv` are laid out as in `leaderboard.csv`. They are of the validation images:
//! what was chosen by them says little about how well it does on others.

use oodbench_metrics::OodMetrics;
use oodbench_record::{CellState, ListedSet, PlannedDetector, RunFolder, Search};
use serde_json::{Map, Value};

use crate::error::ReportError;
use crate::figures::{number, one_line, percent};
use crate::leaderboard::Leaderboard;
use crate::row::Status;

/// The head of `search.csv`.
pub const COLUMNS: [&str; 14] = [
    "method", "params", "chosen", "id_set", "ood_set", "AUROC", "FPR@95", "AUPR_IN", "AUPR_OUT",
    "n_id", "n_ood", "score_s", "status", "reason",
];

const DECIMALS: usize = 4;

/// What a search tried and chose.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchTable {
    /// The in-distribution validation images.
    pub id: ListedSet,
    /// The out-of-distribution validation images.
    pub ood: ListedSet,
    /// The parameters that were searched.
    pub parameters: Vec<String>,
    /// Every combination, in the order of the search.
    pub tried: Vec<Tried>,
    /// The place of the chosen one; absent until the search has ended, and where nothing could be
    /// chosen.
    pub chosen: Option<usize>,
}

/// One combination of parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// What is searched, in the order of [`SearchTable::parameters`].
    pub params: Map<String, Value>,
    /// How far it got.
    pub status: Status,
    /// The OOD validation images against the ID ones; absent where one of them has no scores.
    pub metrics: OodMetrics,
    /// Seconds for scoring both sets, as far as they were scored.
    pub score_s: Option<f64>,
    /// Whether both cells have ended, well or not.
    pub has_ended: bool,
}

impl SearchTable {
    /// Computes the table of a planned detector; `None` for one without a search.
    pub(crate) fn new(
        run: &RunFolder,
        planned: &PlannedDetector,
    ) -> Result<Option<Self>, ReportError> {
        let Some(search) = &planned.search else { return Ok(None) };
        let mut tried = Vec::with_capacity(search.combinations.len());
        for combination in &search.combinations {
            let cells = [
                scored(run, &combination.id, &search.id)?,
                scored(run, &combination.ood, &search.ood)?,
            ];
            let metrics = match &cells {
                [CellState::Done(_, id), CellState::Done(_, ood)] => OodMetrics::new(id, ood)
                    .map_err(|source| {
                        let (label, set) = (planned.label.clone(), search.ood.set.clone());
                        ReportError::Metrics { label, set, source }
                    })?,
                _ => OodMetrics::default(),
            };
            let states = [(&search.id.set, &cells[0]), (&search.ood.set, &cells[1])];
            let seconds = cells.iter().filter_map(|cell| match cell {
                CellState::Done(record, _) => Some(record.cost.score_wall_s),
                _ => None,
            });
            tried.push(Tried {
                params: searched(search, &combination.params),
                status: Status::new(None, &states),
                metrics,
                score_s: seconds.reduce(|a, b| a + b),
                has_ended: !cells.contains(&CellState::Outstanding),
            });
        }
        Ok(Some(Self {
            id: search.id.clone(),
            ood: search.ood.clone(),
            parameters: search.parameters.clone(),
            tried,
            chosen: search.chosen,
        }))
    }

    /// What was chosen, with what it achieved.
    pub fn chosen(&self) -> Option<&Tried> {
        self.tried.get(self.chosen?)
    }

    /// Whether a validation set was scored in part.
    pub fn is_limited(&self) -> bool {
        [&self.id, &self.ood].iter().any(|set| set.n_images < set.of_images)
    }

    /// Why nothing was chosen, where every combination ended without a choice; one line.
    pub(crate) fn failure(&self) -> Option<String> {
        let has_failed = |tried: &Tried| tried.has_ended && tried.metrics.auroc.is_none();
        if self.chosen.is_some() || !self.tried.iter().all(has_failed) {
            return None;
        }
        let (n, reason) = (self.tried.len(), self.tried.first()?.status.reason());
        Some(format!("every one of {n} combinations failed, the first: {reason}"))
    }
}

/// The state of a cell, whose scores must be as many as its set has images.
fn scored(run: &RunFolder, key: &str, set: &ListedSet) -> Result<CellState, ReportError> {
    let state = run.cell(key)?;
    match &state {
        CellState::Done(_, scores) if scores.len() != set.n_images => Err(ReportError::Scores {
            path: run.record_path(key),
            set: set.set.clone(),
            expected: set.n_images,
            got: scores.len(),
        }),
        _ => Ok(state),
    }
}

fn searched(search: &Search, params: &Map<String, Value>) -> Map<String, Value> {
    let names = search.parameters.iter();
    names.filter_map(|name| Some((name.clone(), params.get(name)?.clone()))).collect()
}

/// The whole file; `None` for a run without a search.
///
/// # Errors
/// [`ReportError::Layout`] where the writer refuses.
pub fn render(board: &Leaderboard) -> Result<Option<String>, ReportError> {
    if board.rows.iter().all(|row| row.search.is_none()) {
        return Ok(None);
    }
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    write(board, &mut writer).map_err(ReportError::layout("search.csv"))?;
    let bytes = writer.into_inner().map_err(ReportError::layout("search.csv"))?;
    String::from_utf8(bytes).map_err(ReportError::layout("search.csv")).map(Some)
}

fn write(board: &Leaderboard, writer: &mut ::csv::Writer<Vec<u8>>) -> Result<(), ::csv::Error> {
    writer.write_record(COLUMNS)?;
    for row in &board.rows {
        let Some(search) = &row.search else { continue };
        for (place, tried) in search.tried.iter().enumerate() {
            let metrics = &tried.metrics;
            let count = |set: &ListedSet| {
                metrics.auroc.map_or_else(String::new, |_| set.n_images.to_string())
            };
            writer.write_record([
                one_line(&row.label),
                Value::Object(tried.params.clone()).to_string(),
                (search.chosen == Some(place)).to_string(),
                one_line(&search.id.set.to_string()),
                one_line(&search.ood.set.to_string()),
                percent(metrics.auroc, DECIMALS),
                percent(metrics.fpr95, DECIMALS),
                percent(metrics.aupr_in, DECIMALS),
                percent(metrics.aupr_out, DECIMALS),
                count(&search.id),
                count(&search.ood),
                number(tried.score_s, 3),
                tried.status.word().to_owned(),
                tried.status.reason().to_owned(),
            ])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TestRun, set};
    use oodbench_record::{Outcome, Warning};

    const ID: &[f32] = &[0.0, 0.25];

    /// Three combinations for `msp`: one that failed, and two.
    fn run() -> TestRun {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("msp", &[&[0.1, 0.2, 0.2, 0.4], &[0.3]]);
        run.search("msp", &[&[ID, &[]], &[ID, &[0.125]], &[ID, &[0.5]]], Some(2));
        run.fail("msp-search-0-ood", &set("ood-val", "words"), &Outcome::NonFinite, "NaN");
        run
    }

    #[test]
    fn every_combination_has_a_line() {
        let expected = r#"
method,params,chosen,id_set,ood_set,AUROC,FPR@95,AUPR_IN,AUPR_OUT,n_id,n_ood,score_s,status,reason
msp,"{""temperature"":0}",false,id-val/digits,ood-val/words,,,,,,,0.500,partial,ood-val/words: non-finite scores: NaN
msp,"{""temperature"":1}",false,id-val/digits,ood-val/words,50.0000,50.0000,79.1667,25.0000,2,1,1.000,done,
msp,"{""temperature"":2}",true,id-val/digits,ood-val/words,100.0000,0.0000,100.0000,100.0000,2,1,1.000,done,
"#;
        assert_eq!(render(&run().board()).unwrap().unwrap(), expected.trim_start());
        assert_eq!(render(&TestRun::small().board()).unwrap(), None);
    }

    #[test]
    fn a_search_in_which_everything_failed_fails_its_row() {
        let mut run = TestRun::new();
        run.ood("near", "letters", 1);
        run.detector("msp", &[&[], &[]]);
        run.manifest.detectors[0].cells.clear();
        run.search("msp", &[&[ID, &[]]], None);
        assert_eq!(run.board().rows[0].status, Status::Outstanding);
        run.fail("msp-search-0-ood", &set("ood-val", "words"), &Outcome::Error, "no");
        let reason = "parameter search: every one of 1 combinations failed, the first: \
                      ood-val/words: error: no"
            .to_owned();
        assert_eq!(run.board().rows[0].status, Status::Failed { reason });
    }

    #[test]
    fn a_limited_search_marks_the_run() {
        let mut run = run();
        assert_eq!(run.board().marks, []);
        run.manifest.limit = Some(2);
        run.manifest.detectors[0].search.as_mut().unwrap().id.of_images = 9;
        assert_eq!(run.board().marks, [Warning::Limited { limit: Some(2) }]);
    }

    #[test]
    fn scores_of_another_number_of_images_are_refused() {
        let mut run = run();
        run.manifest.detectors[0].search.as_mut().unwrap().ood.n_images = 3;
        run.folder().write_manifest(&run.manifest).unwrap();
        let error = Leaderboard::new(run.folder()).unwrap_err();
        assert!(matches!(error, ReportError::Scores { expected: 3, got: 1, .. }), "{error:?}");
    }
}
