//! What a training fails with.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::tensor_file::TensorFileError;

/// What a training fails with.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("training expected at least a batch of {batch} images, got {images}")]
    TooFewImages { batch: usize, images: usize },
    #[error("`{key}` expected {expected}, got {got}")]
    Recipe { key: String, expected: String, got: String },
    /// The training has diverged. The step is the one that was not made.
    #[error("{what} at step {step} expected a finite number, got {value}")]
    NotFinite { what: &'static str, step: u64, value: f64 },
    #[error(
        "continue from `{}`: `{key}` expected {expected} as in the checkpoint, got {got}",
        path.display()
    )]
    OtherConfiguration { path: PathBuf, key: String, expected: String, got: String },
    #[error("continue from `{}`: expected a checkpoint of a training, got {got}", path.display())]
    NotACheckpoint { path: PathBuf, got: String },
    #[error(transparent)]
    File(#[from] TensorFileError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// A setting that makes no sense.
    pub fn recipe(key: &str, expected: impl ToString, got: impl ToString) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Self::Recipe { key: key.to_owned(), expected, got }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::OtherConfiguration { .. } => {
                Some("a training goes on with the configuration that it began with")
            }
            Self::NotFinite { .. } => Some(
                "a lower learning rate, a longer warm-up, or stricter clipping of the gradient \
                 keeps a training from diverging",
            ),
            Self::Recipe { key, .. } if key == "Model.image_size" => {
                Some("`Dataset.image_size` is the side that images are resized to")
            }
            Self::TooFewImages { .. } => Some("use a smaller batch, or more images"),
            _ => None,
        }
    }
}
