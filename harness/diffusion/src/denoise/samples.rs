//! Files of denoised images, in the layout of the reference's `temp/sample/ID_SET_rREPEATS.npz`.
//!
//! | array | shape |
//! | --- | --- |
//! | `imgr` | [timestep, image x repeat, 3, height, width], pixels in `[0, 1]` |
//! | `feature` | [timestep, image x repeat, n_features] |
//! | `logit` | [timestep, image x repeat, n_classes] |
//!
//! All `f32`, the repeats of an image beside each other. Reading takes any floating type. A file
//! may be larger than memory: it is written and read in parts. What it was made with stands in
//! the comment of the archive, where numpy does not look.

mod read;
mod write;

use std::path::PathBuf;

use oodbench_nn::npz::NpzError;
use thiserror::Error;

use super::change::Space;
use super::error::DenoiseError;

pub use read::SampleFile;
pub use write::{SampleSizes, SampleWriter};

/// What reading or writing samples fails with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SamplesError {
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("array `{array}` of `{}` expected {expected}, got {got:?}", path.display())]
    Shape { path: PathBuf, array: &'static str, expected: String, got: Vec<usize> },
    #[error("`{}` expected an array `imgr`, `feature` or `logit`, got none", path.display())]
    Empty { path: PathBuf },
    #[error(
        "array `{array}` of `{}` expected finite values, got {got} in row {row} of timestep {timestep}",
        path.display()
    )]
    NotFinite { path: PathBuf, array: &'static str, timestep: usize, row: usize, got: f64 },
    #[error("write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` expected {expected} images, got {got}", path.display())]
    Unfinished { path: PathBuf, expected: usize, got: usize },
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
}

/// The name of the file of a set: `cifar10_svhn_r4.npz`.
pub fn file_name(id: &str, set: &str, repeats: usize) -> String {
    format!("{id}_{set}_r{repeats}.npz")
}

/// The array that holds a space.
fn array(space: Space) -> &'static str {
    match space {
        Space::Image => "imgr",
        Space::Feature => "feature",
        Space::Logit => "logit",
    }
}
