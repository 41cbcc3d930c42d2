//! What reading and writing a run folder fails with.

use std::io;
use std::path::{Path, PathBuf};

/// A file of a run that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system refused to read.
    #[error("read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The operating system refused to write: the disk is full, or the folder is not writable.
    #[error("write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The content is not what a run folder holds.
    #[error("read `{}`: expected {expected}, got {got}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: String,
        /// What is there.
        got: String,
    },
}

impl RecordError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn malformed(
        path: &Path,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Malformed { path: path.to_owned(), expected: expected.into(), got: got.into() }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space and start the same command again: what is finished is kept")
            }
            Self::Write { .. } => {
                Some("choose another folder with `--out`, or with `--cache` for what is prepared")
            }
            Self::Malformed { .. } => Some("delete the file; `--force` makes it again"),
            Self::Read { .. } => None,
        }
    }
}
