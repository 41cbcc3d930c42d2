//! What a run leaves on disk: the contract between the engine, which writes it, and the reports,
//! which read it. Nothing that can be computed from it is stored.
//!
//! ```text
//! RUN/run.json                what was planned, on which benchmark, classifier and machine
//! RUN/sets/ROLE-NAME.json     image ids, labels and predicted classes of one set
//! RUN/cells/KEY.safetensors   the scores of one cell (tensor `scores`, F32 [n]) and how they
//!                             came about (metadata `record`, JSON)
//! RUN/cells/KEY.failure.json  why a cell has no scores; gone once it has
//! ```
//!
//! Every file appears under its name only when it is whole and on the disk, so a run that is
//! killed at any moment can be read, and goes on when it is started again. Unknown fields are
//! ignored when reading, so that a later version may add some; another `schema` is refused.

#![deny(missing_docs)]

mod cell;
mod error;
mod folder;
mod manifest;
mod search;
mod warning;
mod write;

pub use cell::{Cost, Failure, Outcome, PackId, Record, SetRef};
pub use error::RecordError;
pub use folder::{CellState, RunFolder};
pub use manifest::{
    Classifier, Gpu, ListedSet, Machine, MissingSet, PlannedCell, PlannedDetector, RunManifest,
    SetFile,
};
pub use search::{Combination, Search};
pub use warning::{SweepEnd, Warning};
pub use write::{partial_file, write_atomically};

/// The version of everything in a run folder.
pub const SCHEMA: u32 = 1;
