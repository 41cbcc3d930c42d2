//! What a run found, computed from its raw scores: what every exporter lays out.

mod sets;
mod warnings;

use std::cmp::Ordering;

use oodbench_metrics::{OodMetrics, accuracy};
use oodbench_record::{CellState, PlannedDetector, RunFolder, RunManifest, SetRef, Warning};

use crate::error::ReportError;
use crate::row::{Row, Status};
use crate::search::SearchTable;

pub use sets::{Group, GroupSets, ScoredSet};

/// The status of a row as reports show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The word of [`Status::word`], but `partial` for a row that is done in a run with a mark.
    pub word: &'static str,
    /// One line: why; empty for a row that is done.
    pub reason: String,
}

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaderboard {
    /// What was planned, and on what.
    pub manifest: RunManifest,
    /// The sets that were scored, in the order of the benchmark.
    pub sets: Vec<ScoredSet>,
    /// The places in `sets` of what counts as ID: the ID test images and, in full-spectrum mode,
    /// the covariate-shifted ones.
    pub id_sets: Vec<usize>,
    /// What near-OOD averages are made of.
    pub near: GroupSets,
    /// What far-OOD averages are made of.
    pub far: GroupSets,
    /// Of all ID images, the fraction that the classifier gets right.
    pub accuracy: Option<f64>,
    /// Why its numbers are not the benchmark's own; empty for a full run.
    pub marks: Vec<Warning>,
    /// Everything else that a reader should know: of the run, then of the rows in their order.
    pub warnings: Vec<Warning>,
    /// Ranked by near-OOD AUROC, then far-OOD AUROC, then label; what has no scores comes last, in
    /// the planned order.
    pub rows: Vec<Row>,
}

impl Leaderboard {
    /// Reads a run, be it finished or not, and computes everything.
    ///
    /// # Errors
    /// A file that is missing or broken, scores and images that do not fit each other, scores that
    /// are not finite.
    pub fn new(run: &RunFolder) -> Result<Self, ReportError> {
        let manifest = run.manifest()?;
        let sets = manifest
            .sets
            .iter()
            .map(|listed| ScoredSet::read(run, listed))
            .collect::<Result<Vec<_>, _>>()?;
        let is_id =
            |set: &SetRef| set.role == "id-test" || (manifest.full_spectrum && set.role == "csid");
        let places = |wanted: &dyn Fn(&SetRef) -> bool| -> Vec<usize> {
            (0..sets.len()).filter(|&place| wanted(&sets[place].listed.set)).collect()
        };
        let missing = |wanted: &dyn Fn(&SetRef) -> bool| -> Vec<SetRef> {
            manifest
                .missing
                .iter()
                .map(|missing| &missing.set)
                .filter(|set| wanted(set))
                .cloned()
                .collect()
        };
        let group = |group: Group| {
            let is_member = |set: &SetRef| set.role == group.role();
            let (members, mut without) = (places(&is_member), missing(&is_member));
            if !members.is_empty() || !without.is_empty() {
                without.extend(missing(&is_id));
            }
            GroupSets { group, members, without }
        };
        let mut board = Self {
            id_sets: places(&is_id),
            near: group(Group::Near),
            far: group(Group::Far),
            accuracy: None,
            marks: Vec::new(),
            warnings: Vec::new(),
            rows: Vec::new(),
            sets: Vec::new(),
            manifest: manifest.clone(),
        };
        let counts =
            |set: &SetRef| is_id(set) || Group::ALL.iter().any(|group| set.role == group.role());
        let missing = missing(&counts);
        if !missing.is_empty() {
            board.marks.push(Warning::Incomplete { missing });
        }
        board.sets = sets;
        board.accuracy = board.id_accuracy();
        for (position, planned) in manifest.detectors.iter().enumerate() {
            let row = board.row(run, position, planned)?;
            board.rows.push(row);
        }
        let is_limited = |set: &ScoredSet| set.listed.n_images < set.listed.of_images;
        let mut searches = board.rows.iter().filter_map(|row| row.search.as_ref());
        if board.sets.iter().any(is_limited) || searches.any(SearchTable::is_limited) {
            board.marks.push(Warning::Limited { limit: manifest.limit });
        }
        // The sort is stable, which keeps the planned order of rows without scores.
        board.rows.sort_by(by_rank);
        board.warnings = warnings::of(&board);
        Ok(board)
    }

    /// What the average of a group is made of.
    pub fn group(&self, group: Group) -> &GroupSets {
        match group {
            Group::Near => &self.near,
            Group::Far => &self.far,
        }
    }

    /// The OOD sets, near ones first.
    pub fn ood_sets(&self) -> impl Iterator<Item = (usize, &ScoredSet)> {
        self.near.members.iter().chain(&self.far.members).map(|&place| (place, &self.sets[place]))
    }

    /// The number of ID images that every OOD set is compared with.
    pub fn n_id(&self) -> usize {
        self.id_sets.iter().map(|&place| self.sets[place].listed.n_images).sum()
    }

    /// The average of a row over a group; [`GroupSets::is_partial`] tells whether it is marked.
    pub fn average<'a>(&self, row: &'a Row, group: Group) -> &'a OodMetrics {
        match group {
            Group::Near => &row.near,
            Group::Far => &row.far,
        }
    }

    /// The status of a row, with the marks of the run.
    pub fn standing(&self, row: &Row) -> Standing {
        let mut reasons = vec![row.status.reason().to_owned()];
        let mut word = row.status.word();
        if row.status.is_ranked() && !self.marks.is_empty() {
            word = Status::Partial { reason: String::new() }.word();
            reasons.extend(self.marks.iter().map(Warning::cause));
        }
        reasons.retain(|reason| !reason.is_empty());
        Standing { word, reason: reasons.join("; ") }
    }

    fn id_accuracy(&self) -> Option<f64> {
        let (mut predictions, mut labels) = (Vec::new(), Vec::new());
        for &place in &self.id_sets {
            let images = self.sets[place].images.as_ref()?;
            predictions.extend_from_slice(&images.predictions);
            labels.extend_from_slice(&images.labels);
        }
        accuracy(&predictions, &labels).ok().flatten()
    }

    fn row(
        &self,
        run: &RunFolder,
        position: usize,
        planned: &PlannedDetector,
    ) -> Result<Row, ReportError> {
        let sets: Vec<&SetRef> = self.sets.iter().map(|set| &set.listed.set).collect();
        let mut cells = Vec::with_capacity(sets.len());
        for (set, place) in sets.iter().zip(0..) {
            let Some(cell) = planned.cells.iter().find(|cell| cell.set == **set) else {
                cells.push(CellState::Outstanding);
                continue;
            };
            let state = run.cell(&cell.key)?;
            if let CellState::Done(_, scores) = &state {
                self.check_scores(run, &cell.key, place, scores.len())?;
            }
            cells.push(state);
        }
        let search = SearchTable::new(run, planned)?;
        let mut row = Row::new(position, planned, &sets, cells, search);
        // All or nothing: fewer ID images would make another quantity under the same name.
        let id: Option<Vec<&[f32]>> = self.id_sets.iter().map(|&place| row.scores(place)).collect();
        let id = id.unwrap_or_default().concat();
        for (place, set) in self.ood_sets() {
            let Some(ood) = row.scores(place) else { continue };
            row.metrics[place] = OodMetrics::new(&id, ood).map_err(|source| {
                let (label, set) = (row.label.clone(), set.listed.set.clone());
                ReportError::Metrics { label, set, source }
            })?;
        }
        let mean = |group: &GroupSets| {
            let members: Vec<_> = group.members.iter().map(|&place| row.metrics[place]).collect();
            OodMetrics::group_mean(&members)
        };
        (row.near, row.far) = (mean(&self.near), mean(&self.far));
        Ok(row)
    }

    fn check_scores(
        &self,
        run: &RunFolder,
        key: &str,
        place: usize,
        got: usize,
    ) -> Result<(), ReportError> {
        let set = &self.sets[place];
        if set.images.is_none() {
            return Err(ReportError::NoImages { set: set.listed.set.clone() });
        }
        if got == set.listed.n_images {
            return Ok(());
        }
        Err(ReportError::Scores {
            path: run.record_path(key),
            set: set.listed.set.clone(),
            expected: set.listed.n_images,
            got,
        })
    }
}

/// The order of the rows. Costs have no say in it.
fn by_rank(a: &Row, b: &Row) -> Ordering {
    let ranked_first = b.status.is_ranked().cmp(&a.status.is_ranked());
    if ranked_first.is_ne() || !a.status.is_ranked() {
        return ranked_first;
    }
    descending(a.near.auroc, b.near.auroc)
        .then_with(|| descending(a.far.auroc, b.far.auroc))
        .then_with(|| a.label.cmp(&b.label))
        .then_with(|| a.id.cmp(&b.id))
        .then_with(|| a.params_json().cmp(&b.params_json()))
}

/// Greatest first, absent last.
fn descending(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        _ => b.is_some().cmp(&a.is_some()),
    }
}

#[cfg(test)]
mod tests;
