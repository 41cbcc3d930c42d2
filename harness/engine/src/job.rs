//! What a worker is told, and what it says: JSON, one job on its standard input, one event a line
//! on a descriptor of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oodbench_nn::precision::Precision;
use oodbench_record::{Outcome, PackId, SetRef};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::classifier::ClassifierRef;
use crate::pack::DetectorInfo;

/// A detector with its parameters, and the sets that it has to score.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The library.
    pub library: PathBuf,
    pub pack: PackId,
    pub detector: DetectorInfo,
    /// Sets of parameters, at least one. Where there are several, they differ in readouts alone,
    /// and are scored in one pass.
    pub variants: Vec<Variant>,
    /// The files that parameters stand for, by parameter.
    pub assets: BTreeMap<String, PathBuf>,
    pub seed: u64,
    pub threads: usize,
    pub device: String,
    /// The GPU's name, where the device is one.
    pub gpu: Option<String>,
    /// What the classifier computes in.
    pub precision: Precision,
    /// How many images a batch has where pixels are asked for.
    pub batch_size: usize,
    /// Resident and data memory that the worker may use, in bytes.
    pub memory_limit: Option<u64>,
    /// Absent where features were exported: it cannot run then.
    pub classifier: Option<ClassifierRef>,
    /// The last linear layer, in a file of the feature bank, if it is known.
    pub head: Option<PathBuf>,
    /// Classes of the classifier; 0 where nothing tells.
    pub n_classes: usize,
    /// Features of the classifier; 0 where there are none.
    pub n_features: usize,
    pub fit: FitSets,
    pub cells: Vec<CellJob>,
    /// The run folder.
    pub run: PathBuf,
    /// Where the fitted state is kept, for detectors that have one.
    pub state: PathBuf,
    /// The version of oodbench.
    pub version: String,
}

/// The sets that a detector is fitted on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FitSets {
    pub train: Option<SetFiles>,
    pub val: Option<SetFiles>,
    pub val_ood: Option<SetFiles>,
}

/// The files of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetFiles {
    /// Prepared images; absent where features were exported.
    pub pack: Option<PathBuf>,
    /// What the classifier gives for them.
    pub bank: PathBuf,
}

/// One set of parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// What to call it.
    pub label: String,
    pub params: Map<String, Value>,
}

/// One cell of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellJob {
    pub key: String,
    /// The place of its parameters among the variants.
    pub variant: usize,
    pub set: SetRef,
    pub files: SetFiles,
    pub of_images: usize,
}

/// What a worker says. The last event of a worker that ended as it should is [`Event::Done`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The detector is being fitted.
    Fitting,
    /// It is fitted, or its state was restored.
    Fitted { wall_s: f64 },
    /// So much of the present set is scored, for this cell and those that share its pass.
    Scoring { cell: usize, done: usize, total: usize },
    /// The detector is still alive.
    Progress { done: u64, total: u64 },
    /// The detector says something: 0 and 1 for `-v`, 2 for everybody.
    Log { level: u32, message: String },
    /// The record of a cell is on the disk.
    CellDone { cell: usize, wall_s: f64, n_images: usize },
    /// A cell has no scores; the others go on.
    CellFailed { cell: usize, outcome: Outcome, message: String },
    /// No further cell of this job can be scored.
    Failed { outcome: Outcome, message: String },
    /// A record cannot be written; the run cannot go on.
    WriteFailed { message: String, disk_full: bool },
    /// Everything is said.
    Done,
}
