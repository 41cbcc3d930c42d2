//! Packs: finding them, loading them, and what they say about themselves.
//!
//! Loading a pack runs its constructors, so whoever does not trust a file opens it in a worker
//! process, which sends the [`PackSummary`] back as JSON. A pack is never unloaded: a new process
//! is the reload.

mod describe;
mod error;
mod file_kind;
mod load;
mod search;

pub use describe::{DetectorInfo, PackSummary, ParamInfo};
pub use error::PackError;
pub use load::{Pack, PackInfo};
pub use search::{Candidate, Catalogue, CatalogueError, Origin, SearchError, SearchPath};
