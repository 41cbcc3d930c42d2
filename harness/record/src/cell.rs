//! One cell: the scores of one detector, with one set of parameters, on one set of images.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which set of a benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SetRef {
    /// `id-test`, `near`, `far` or `csid`.
    pub role: String,
    /// Its name within the role.
    pub name: String,
}

impl fmt::Display for SetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// The pack that a detector came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackId {
    /// The crate's name.
    pub name: String,
    /// The crate's version.
    pub version: String,
    /// BLAKE3 of the library.
    pub blake3: String,
}

/// What a cell cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall time of `create` and `fit`, or of loading the fitted state, in seconds. Shared by all
    /// cells of the same worker.
    pub fit_wall_s: f64,
    /// Wall time of `score` over the whole set, in seconds; where several sets of parameters were
    /// scored in one pass, an equal part of it.
    pub score_wall_s: f64,
    /// Greatest resident memory of the worker until the cell was finished, in bytes; absent where
    /// the system does not tell, and without a worker process.
    pub peak_bytes: Option<u64>,
    /// Where the detector was asked to compute.
    pub device: String,
    /// The name of the GPU, if that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// How many threads it was allowed.
    pub threads: usize,
}

/// How the scores of a cell came about; the scores lie beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Hash of the content of all inputs.
    pub key: String,
    /// The detector.
    pub detector: String,
    /// All of its parameters.
    pub params: Map<String, Value>,
    /// What was scored.
    pub set: SetRef,
    /// The seed of the run.
    pub seed: u64,
    /// How many images were scored.
    pub n_images: usize,
    /// How many the set has; more than were scored with `--limit`.
    pub of_images: usize,
    /// What it cost.
    pub cost: Cost,
    /// Where the detector came from.
    pub pack: PackId,
    /// The version of oodbench.
    pub version: String,
    /// What the detector or the engine warned of.
    pub warnings: Vec<String>,
}

/// Why a cell has no scores. Every way in which a detector can end has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Outcome {
    /// The detector said so.
    Error,
    /// It panicked.
    Panicked,
    /// A signal ended the worker.
    Crashed {
        /// `SIGSEGV` and the like.
        signal: String,
    },
    /// The worker ended without its last word, as `process::exit` does.
    ExitedEarly {
        /// Its exit status.
        status: i32,
    },
    /// It was silent for longer than the time limit.
    TimedOut,
    /// It wanted more memory than the limit, or than there was.
    OutOfMemory,
    /// A score was NaN or infinite.
    NonFinite,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("error"),
            Self::Panicked => f.write_str("panicked"),
            Self::Crashed { signal } => write!(f, "crashed ({signal})"),
            Self::ExitedEarly { status } => write!(f, "exited early ({status})"),
            Self::TimedOut => f.write_str("timed out"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::NonFinite => f.write_str("non-finite scores"),
        }
    }
}

/// A cell that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Hash of the content of all inputs.
    pub key: String,
    /// The detector.
    pub detector: String,
    /// What was to be scored.
    pub set: SetRef,
    /// How it ended.
    pub outcome: Outcome,
    /// One line: the reason.
    pub message: String,
}
