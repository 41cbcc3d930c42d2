//! What making a leaderboard fails with.

use std::error::Error;
use std::io::ErrorKind;
use std::path::PathBuf;

use oodbench_metrics::MetricError;
use oodbench_record::{RecordError, SetRef};

/// A run that no leaderboard can be made of, or one that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file of the run cannot be read.
    #[error(transparent)]
    Run(RecordError),
    /// A report cannot be written: the disk is full, or the folder is not writable.
    #[error(transparent)]
    Write(RecordError),
    /// A set has scores but nothing tells its images.
    #[error("read the images of `{set}`: expected a file below `sets/`, found none")]
    NoImages {
        /// The set.
        set: SetRef,
    },
    /// A set holds another number of images than was planned.
    #[error("read the images of `{set}`: expected {expected}, as planned, got {got}")]
    Images {
        /// The set.
        set: SetRef,
        /// How many were planned.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A record holds another number of scores than its set has images.
    #[error(
        "read `{}`: expected {expected} scores, one for each image of `{set}`, got {got}",
        path.display()
    )]
    Scores {
        /// The record.
        path: PathBuf,
        /// What was scored.
        set: SetRef,
        /// How many images there are.
        expected: usize,
        /// How many scores there are.
        got: usize,
    },
    /// Scores that no metric can be computed from.
    #[error("compute the metrics of `{label}` on `{set}`")]
    Metrics {
        /// The row.
        label: String,
        /// The OOD set.
        set: SetRef,
        /// What is wrong with them.
        source: MetricError,
    },
    /// A report that cannot be put into its format.
    #[error("lay out `{what}`")]
    Layout {
        /// The report.
        what: String,
        /// What the format's writer said.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ReportError {
    pub(crate) fn layout<E: Error + Send + Sync + 'static>(
        what: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Layout { what, source: Box::new(source) }
    }

    /// Whether the run was read and understood, and only saving the reports failed.
    pub fn is_write_failure(&self) -> bool {
        matches!(self, Self::Write(_))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Run(error @ RecordError::Read { source, .. }) => {
                if source.kind() != ErrorKind::NotFound {
                    return error.hint();
                }
                Some("name the folder of a run: the one that holds `run.json`")
            }
            Self::Run(error) | Self::Write(error) => error.hint(),
            Self::NoImages { .. } | Self::Images { .. } => {
                Some("start the same command again: it makes the missing files")
            }
            Self::Scores { .. } | Self::Metrics { .. } => {
                Some("delete the record, or make it again with `--force`")
            }
            Self::Layout { .. } => None,
        }
    }
}

impl From<RecordError> for ReportError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Write { .. } => Self::Write(error),
            RecordError::Read { .. } | RecordError::Malformed { .. } => Self::Run(error),
        }
    }
}
