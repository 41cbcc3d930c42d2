//! One row of a leaderboard: a detector with one set of parameters.

use oodbench_metrics::OodMetrics;
use oodbench_record::{CellState, PackId, PlannedDetector, SetRef};
use serde_json::{Map, Value};

use crate::figures::{listed, one_line};
use crate::search::SearchTable;

/// How far a detector got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every set has scores.
    Done,
    /// Some sets have scores; the others failed or were not run yet.
    Partial {
        /// One line: which sets have none, and why.
        reason: String,
    },
    /// No set has scores, and at least one failed.
    Failed {
        /// One line: why.
        reason: String,
    },
    /// It was not run, for it lacks something.
    Skipped {
        /// One line: what it lacks.
        reason: String,
    },
    /// It was not run yet.
    Outstanding,
}

impl Status {
    /// `done`, `partial`, `failed`, `skipped` or `outstanding`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Partial { .. } => "partial",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
            Self::Outstanding => "outstanding",
        }
    }

    /// One line: why it is not done. Empty where nothing is to be said.
    pub fn reason(&self) -> &str {
        match self {
            Self::Partial { reason } | Self::Failed { reason } | Self::Skipped { reason } => reason,
            Self::Done | Self::Outstanding => "",
        }
    }

    /// Whether there are scores to rank it by.
    pub fn is_ranked(&self) -> bool {
        matches!(self, Self::Done | Self::Partial { .. })
    }

    /// What the states of the cells amount to.
    pub(crate) fn new(skipped: Option<&str>, cells: &[(&SetRef, &CellState)]) -> Self {
        if let Some(reason) = skipped {
            return Self::Skipped { reason: one_line(reason) };
        }
        let mut n_done = 0;
        let mut unseen = Vec::new();
        // Sets that failed alike are named together, in the order of the first of them.
        let mut causes: Vec<(String, Vec<&SetRef>)> = Vec::new();
        for &(set, state) in cells {
            match state {
                CellState::Done(..) => n_done += 1,
                CellState::Outstanding => unseen.push(set),
                CellState::Failed(failure) => {
                    let cause = cause(&failure.outcome.to_string(), &failure.message);
                    match causes.iter_mut().find(|(known, _)| *known == cause) {
                        Some((_, sets)) => sets.push(set),
                        None => causes.push((cause, vec![set])),
                    }
                }
            }
        }
        if n_done == cells.len() && n_done > 0 {
            return Self::Done;
        }
        if n_done == 0 && causes.is_empty() {
            return Self::Outstanding;
        }
        let reason = match causes.as_slice() {
            [(cause, sets)] if sets.len() == cells.len() => cause.clone(),
            _ => {
                let failed = causes
                    .iter()
                    .map(|(cause, sets)| format!("{}: {cause}", listed(sets.iter().copied())));
                let unseen = (!unseen.is_empty())
                    .then(|| format!("not run yet: {}", listed(unseen.iter().copied())));
                failed.chain(unseen).collect::<Vec<_>>().join("; ")
            }
        };
        if n_done > 0 { Self::Partial { reason } } else { Self::Failed { reason } }
    }
}

/// `OUTCOME: MESSAGE`, without saying the same twice.
fn cause(outcome: &str, message: &str) -> String {
    let (outcome, message) = (one_line(outcome), one_line(message));
    if message.is_empty() || outcome == message {
        outcome
    } else if message.starts_with(&outcome) {
        message
    } else {
        format!("{outcome}: {message}")
    }
}

/// What a row cost, over all of its cells that have scores.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCost {
    /// Seconds for `create` and `fit`: the most that any of its workers took, for after an
    /// interruption the others load what the first one fitted.
    pub fit_s: f64,
    /// Images scored in a second, without the network's forward pass where the detector reads the
    /// feature bank. Absent where no time was measured.
    pub score_images_per_s: Option<f64>,
    /// The greatest resident memory of any of its workers. Absent where none was measured.
    pub peak_bytes: Option<u64>,
    /// Where it computed, a GPU by its name; several, joined by `+`, where a run moved on.
    pub device: String,
    /// The most threads that it was allowed.
    pub threads: usize,
}

impl RowCost {
    /// `None` without a scored cell.
    pub(crate) fn new(cells: &[CellState]) -> Option<Self> {
        let mut devices: Vec<&str> = Vec::new();
        let (mut n_images, mut score_s) = (0, 0.0);
        let mut sum = Self {
            fit_s: 0.0,
            score_images_per_s: None,
            peak_bytes: None,
            device: String::new(),
            threads: 0,
        };
        for cell in cells {
            let CellState::Done(record, scores) = cell else { continue };
            let cost = &record.cost;
            sum.fit_s = sum.fit_s.max(cost.fit_wall_s);
            sum.peak_bytes = sum.peak_bytes.max(cost.peak_bytes);
            sum.threads = sum.threads.max(cost.threads);
            n_images += scores.len();
            score_s += cost.score_wall_s;
            let device = cost.gpu.as_ref().unwrap_or(&cost.device);
            if !devices.contains(&device.as_str()) {
                devices.push(device);
            }
        }
        if devices.is_empty() {
            return None;
        }
        devices.sort_unstable();
        sum.device = devices.join("+");
        sum.score_images_per_s = (score_s > 0.0).then(|| n_images as f64 / score_s);
        Some(sum)
    }
}

/// A detector with one set of parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its place in the plan.
    pub position: usize,
    /// The detector.
    pub id: String,
    /// What the row is called.
    pub label: String,
    /// The detector's full name.
    pub title: String,
    /// What it reads off.
    pub family: String,
    /// The year of its paper.
    pub year: u32,
    /// All of its parameters.
    pub params: Map<String, Value>,
    /// The search that some of them come from; absent where all were given.
    pub search: Option<SearchTable>,
    /// How far it got.
    pub status: Status,
    /// Its cells with their scores, one for each of [`crate::Leaderboard::sets`].
    pub cells: Vec<CellState>,
    /// Its metrics, one for each of [`crate::Leaderboard::sets`]; all absent for sets that are not
    /// OOD, and where that set or a part of the ID images has no scores.
    pub metrics: Vec<OodMetrics>,
    /// The mean over the near-OOD sets; absent where a member is.
    pub near: OodMetrics,
    /// The mean over the far-OOD sets; absent where a member is.
    pub far: OodMetrics,
    /// What it cost; absent where nothing was scored.
    pub cost: Option<RowCost>,
    /// Where the detector came from; absent where nothing was scored.
    pub pack: Option<PackId>,
    /// What the detector or the engine warned of, each once.
    pub warnings: Vec<String>,
}

impl Row {
    /// A row of which the metrics are still to be computed.
    pub(crate) fn new(
        position: usize,
        planned: &PlannedDetector,
        sets: &[&SetRef],
        cells: Vec<CellState>,
        search: Option<SearchTable>,
    ) -> Self {
        let states: Vec<_> = sets.iter().copied().zip(&cells).collect();
        let failure = search.as_ref().and_then(SearchTable::failure);
        let status = match failure {
            Some(reason) => Status::Failed { reason: format!("parameter search: {reason}") },
            None => Status::new(planned.skipped.as_deref(), &states),
        };
        let records = || {
            cells.iter().filter_map(|cell| match cell {
                CellState::Done(record, _) => Some(record),
                _ => None,
            })
        };
        let mut warnings: Vec<String> = Vec::new();
        for warning in records().flat_map(|record| &record.warnings) {
            if !warnings.contains(warning) {
                warnings.push(warning.clone());
            }
        }
        Self {
            position,
            id: planned.id.clone(),
            label: planned.label.clone(),
            title: planned.title.clone(),
            family: planned.family.clone(),
            year: planned.year,
            params: planned.params.clone(),
            search,
            status,
            cost: RowCost::new(&cells),
            pack: records().next().map(|record| record.pack.clone()),
            warnings,
            metrics: vec![OodMetrics::default(); cells.len()],
            near: OodMetrics::default(),
            far: OodMetrics::default(),
            cells,
        }
    }

    /// The scores of the set at `set_idx`, where there are any.
    pub fn scores(&self, set_idx: usize) -> Option<&[f32]> {
        match &self.cells[set_idx] {
            CellState::Done(_, scores) => Some(scores),
            _ => None,
        }
    }

    /// Its parameters as JSON on one line.
    pub fn params_json(&self) -> String {
        Value::Object(self.params.clone()).to_string()
    }
}
