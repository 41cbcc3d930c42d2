//! From a plan of cells to records: plugin loading, feature bank, workers, resume.

pub mod asset;
pub mod bank;
pub mod bench;
pub mod catalogue;
pub mod check;
pub mod classifier;
mod error;
mod extension;
mod features;
pub mod host;
pub mod image;
pub mod job;
pub mod key;
pub mod pack;
pub mod process;
pub mod set;
pub mod supervise;
pub mod text;
mod variants;
pub mod worker;

pub use error::{EngineError, ErrorKind, did_you_mean};
pub use features::FeaturesError;
