//! What goes wrong with a classifier, and what to do about it.

use std::path::PathBuf;

use crate::arch::FAMILIES;
use crate::checkpoint::CheckpointError;

/// What a classifier fails with.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("read classifier `{}`", path.display())]
    ReadSpec {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read classifier `{}`", path.display())]
    ParseSpec {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("read classifier `{}`: {message}", path.display())]
    BadSpec { path: PathBuf, message: String },
    #[error("load checkpoint `{}`: its weights are of no known architecture", path.display())]
    UnknownWeights { path: PathBuf },
    #[error("load checkpoint `{}`: expected architecture `{expected}`, got `{found}`", path.display())]
    OtherArchitecture { path: PathBuf, expected: String, found: String },
    #[error("load checkpoint `{}`: `groups` expected {expected}, got {got}", path.display())]
    BadGroups { path: PathBuf, expected: String, got: String },
    #[error("load checkpoint `{}`: `{key}` expected [{expected}, {features}], got [{found}, {features}]", path.display())]
    OtherClasses { path: PathBuf, key: String, expected: usize, found: usize, features: usize },
    #[error("load checkpoint `{}` as `{arch}`", path.display())]
    Load {
        path: PathBuf,
        arch: String,
        #[source]
        source: candle_core::Error,
    },
    #[error("load checkpoint `{}` as `{arch}`: {} tensors belong to no layer, among them `{}`", path.display(), unused.len(), unused[0])]
    Unused { path: PathBuf, arch: String, unused: Vec<String> },
}

impl ClassifierError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownWeights { .. } | Self::OtherArchitecture { .. } => {
                let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
                Some(format!("architectures are {}", names.join(", ")))
            }
            Self::OtherClasses { expected, found, .. } => {
                // Each group of MOS has a class at least.
                let grouped = match found.checked_sub(*expected) {
                    Some(n) if (1..=*expected).contains(&n) => format!(
                        ", or say which classes are in which of {n} groups, if it was trained by MOS: `groups = [[0, …], …]` in a TOML file"
                    ),
                    _ => String::new(),
                };
                let text = format!("choose a benchmark of {found} classes, or another checkpoint");
                Some(text + &grouped)
            }
            _ => None,
        }
    }
}
