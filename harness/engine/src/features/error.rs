//! What is wrong with exported files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oodbench_nn::npz::NpzError;

/// What is wrong with a folder of features.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    #[error("read features `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// What stands under a name that ends on `.safetensors`.
    #[error("read `{}`: expected a whole safetensors file, got {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    /// A file without which there is nothing to score.
    #[error("read features `{}`: expected {expected}, got none", path.display())]
    Nothing { path: PathBuf, expected: &'static str },
    /// Two files of the same set.
    #[error("read features: expected one file for `{set}`, got `{}` and `{}`", first.display(), second.display())]
    Twice { set: String, first: PathBuf, second: PathBuf },
    /// A set that is called what cannot be a part of file names and tables.
    #[error(
        "read `{}`: the name of a set expected up to 64 ASCII letters, digits and `-_.+`, got `{name}`",
        path.display()
    )]
    Name { path: PathBuf, name: String },
    /// A tensor of another kind, or none.
    #[error("read `{}`: `{tensor}` expected {expected}, got {got}", path.display())]
    Tensor { path: PathBuf, tensor: &'static str, expected: String, got: String },
    /// A number that is none.
    #[error(
        "read `{}`: `{tensor}` expected finite f32 values, got `{value:?}` in row {row}, column {column}",
        path.display()
    )]
    NotFinite { path: PathBuf, tensor: &'static str, row: usize, column: usize, value: f64 },
    /// A class that the classifier does not have.
    #[error("read `{}`: `labels` expected {expected}, got `{got}` in row {row}", path.display())]
    Label { path: PathBuf, row: usize, expected: String, got: i64 },
    /// A search without the sets that it looks at.
    #[error("search parameters on features `{}`: expected `{file}`, got none", path.display())]
    NoValidation { path: PathBuf, file: &'static str },
}

impl FeaturesError {
    pub(super) fn tensor(
        path: &Path,
        tensor: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        let (path, expected, got) = (path.to_owned(), expected.into(), got.into());
        Self::Tensor { path, tensor, expected, got }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. }
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                "`--features` names a folder with `test.safetensors`, `near/NAME.safetensors` and \
                 others; docs/features.md has a snippet that writes it"
            }
            Self::Read { .. } => return None,
            Self::Npz(NpzError::Read { .. }) => return None,
            Self::Npz(NpzError::Archive { .. }) | Self::Damaged { .. } => {
                "export the file again: it was cut short, or is another file"
            }
            Self::Npz(_) => "arrays of plain numbers are read, as `numpy.savez` writes them",
            Self::Nothing { .. } => "docs/features.md has the layout, and a snippet that writes it",
            Self::Twice { .. } => "remove or rename one of them",
            Self::Name { .. } => "rename the file",
            Self::Tensor { tensor: "labels" | "ids", .. } => {
                "labels and ids are integers, one for each row, as `torch.long` or `numpy.int64`"
            }
            Self::Tensor { tensor: "features" | "weight" | "bias", .. } => {
                "features are the input of the last linear layer, flat, one row for each image; the \
                 head is that layer's `weight` [classes, features] and `bias` [classes]"
            }
            Self::Tensor { .. } => {
                "`logits` has one row for each image and one column for each class, in every file"
            }
            Self::NotFinite { .. } => {
                "find out where the network gives such a number, or leave that image out"
            }
            Self::Label { .. } => {
                "labels count from 0 in the order of the logits' columns; -1, for no class, may stand \
                 in `test` and `csid` only"
            }
            Self::NoValidation { .. } => "run without `--aps`, or export that set too",
        }
        .to_owned())
    }
}
