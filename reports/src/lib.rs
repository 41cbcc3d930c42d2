//! Leaderboards from the records of a run: one exporter per file.
//!
//! [`Leaderboard::new`] reads a run folder and computes every metric from the raw scores; nothing
//! that was computed before is trusted. The exporters only lay out what it holds, and print
//! nothing: text goes back to the caller, or with [`write_all`] into the run folder. Apart from
//! the costs, what they write depends on the scores and the plan alone, byte for byte.
//!
//! `docs/leaderboard.md` tells users what each column means.
//!
//! ```no_run
//! use oodbench_record::RunFolder;
//! use oodbench_reports::{Leaderboard, terminal, write_all};
//!
//! let run = RunFolder::new("runs/latest");
//! let board = Leaderboard::new(&run)?;
//! let written = write_all(&board, &run)?;
//! let table = terminal::render(&board, 100, false);
//! # Ok::<(), oodbench_reports::ReportError>(())
//! ```

pub mod csv;
mod error;
mod figures;
#[cfg(test)]
mod fixture;
pub mod html;
pub mod json;
mod leaderboard;
pub mod markdown;
mod row;
pub mod scores;
pub mod search;
pub mod terminal;
mod write;

pub use error::ReportError;
pub use leaderboard::{Group, GroupSets, Leaderboard, ScoredSet, Standing};
pub use row::{Row, RowCost, Status};
pub use search::{SearchTable, Tried};
pub use write::{Written, write_all};
