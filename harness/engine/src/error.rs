//! What keeps a run from starting or going on. What happens inside of a detector is no error of
//! the engine but an [`Outcome`](oodbench_record::Outcome) of its cells.

use std::io;
use std::path::{Path, PathBuf};

use oodbench_datasets::DatasetError;
use oodbench_nn::classifier::ClassifierError;
use oodbench_nn::device::{DeviceError, is_out_of_memory};
use oodbench_nn::precision::PrecisionError;
use oodbench_record::{RecordError, SetRef};

use crate::catalogue::Refused;
use crate::features::FeaturesError;
use crate::pack::{CatalogueError, PackError, SearchError};

/// What the engine fails with.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Images, lists, archives, benchmark files.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Weights and what is said about them.
    #[error(transparent)]
    Classifier(#[from] ClassifierError),
    /// Exported features.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The device that was asked for.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A library that is no pack of this host.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A library that was named and is refused.
    #[error("{}", .0.message)]
    Refused(Box<Refused>),
    /// Packs that do not go together, or a detector that none has.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A place where packs were to be looked for.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The run folder.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Images that a benchmark names and that are not there.
    #[error("{}", missing_text(benchmark, missing))]
    MissingSets { benchmark: String, missing: Vec<(SetRef, String)> },
    /// A name that nothing has.
    #[error("{what} expected one of {}, got `{got}`", known.join(", "))]
    Unknown { what: String, got: String, known: Vec<String> },
    /// A value that a parameter cannot have.
    #[error("parameter `{parameter}` of `{detector}` expected {expected}, got `{got}`")]
    BadParameter { detector: String, parameter: String, expected: String, got: String },
    /// Parameters that a detector does not take.
    #[error("create `{detector}`: {message}")]
    RefusedValue { detector: String, message: String },
    /// A file that a detector cannot do without.
    #[error(
        "`{detector}` needs the {} `{parameter}`, and the benchmark has none",
        if *many { "files" } else { "file" }
    )]
    NoAsset { detector: String, parameter: String, many: bool },
    /// Anything else that was typed and makes no sense.
    #[error("{what} expected {expected}, got `{got}`")]
    Usage { what: String, expected: String, got: String },
    /// A benchmark without a classifier of its own, and none was named.
    #[error("benchmark `{benchmark}` has no classifier of its own")]
    NoClassifier { benchmark: String },
    /// A parameter search without the images that it needs.
    #[error("search parameters on benchmark `{benchmark}`: expected {role} images, got none")]
    NoValidation { benchmark: String, role: String },
    /// Every detector that was asked for lacks something.
    #[error("nothing to run: {}", reasons.join("; "))]
    NothingSelected { reasons: Vec<String> },
    /// Two runs in one folder.
    #[error("another run is writing to `{}`", path.display())]
    Locked { path: PathBuf },
    /// The classifier's output is not usable.
    #[error(
        "run the classifier on {set}: {what} of `{image}` expected finite values, got `{value}`"
    )]
    NotFinite { set: String, image: String, what: &'static str, value: f32 },
    /// A file of the feature bank that is not one.
    #[error("open feature bank `{}`: expected {expected}, got {got}", path.display())]
    Bank { path: PathBuf, expected: String, got: String },
    /// The operating system refused.
    #[error("{action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The memory of the classifier's device does not suffice.
    #[error(
        "run the classifier on {set}: a batch of {batch} images does not fit into the memory of the device, {}",
        fits.map_or("no smaller one does".to_owned(), |fits| format!("{fits} would"))
    )]
    OutOfMemory { set: String, batch: usize, fits: Option<usize> },
    /// The numbers that the classifier was to compute in.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The network refused.
    #[error("run the classifier on {set}")]
    Network { set: String, source: candle_core::Error },
}

/// What kind of failure it is, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was typed.
    Usage,
    /// What the run needs and has not.
    Setup,
    /// A pack.
    PackRefused,
    /// Nothing is left to run.
    NothingSelected,
    /// A result that cannot be saved.
    Write,
    /// The memory of a device.
    OutOfMemory,
    /// Anything else.
    Unforeseen,
}

fn missing_text(benchmark: &str, missing: &[(SetRef, String)]) -> String {
    let sets: Vec<String> =
        missing.iter().map(|(set, reason)| format!("\n  {set}: {reason}")).collect();
    format!("benchmark `{benchmark}` is incomplete:{}", sets.concat())
}

impl EngineError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// An unknown name, with every known one.
    pub fn unknown<'a>(
        what: impl Into<String>,
        got: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known = known.into_iter().map(str::to_owned).collect();
        Self::Unknown { what: what.into(), got: got.to_owned(), known }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dataset(error) => error.hint(),
            Self::Classifier(error) => error.hint(),
            Self::Features(error) => error.hint(),
            Self::Device(error) => error.hint(),
            Self::OutOfMemory { fits: Some(fits), .. } => {
                Some(format!("start the same command with `--batch-size {fits}`"))
            }
            Self::OutOfMemory { fits: None, .. } => {
                Some("`nvidia-smi` shows what else takes memory".into())
            }
            Self::Pack(error) => error.hint(),
            Self::Refused(refused) => refused.hint.clone(),
            Self::Catalogue(error) => Some(error.hint()),
            Self::Record(error) => error.hint().map(str::to_owned),
            Self::MissingSets { .. } => Some(
                "put the data there, name its folder with `--data`, or run the rest with `--allow-missing`".into(),
            ),
            Self::Unknown { got, known, .. } => {
                did_you_mean(got, known).map(|name| format!("did you mean `{name}`?"))
            }
            Self::NoAsset { detector, parameter, many: false } => {
                Some(format!("name it with `--set {detector}.{parameter}=FILE`"))
            }
            Self::NoAsset { detector, parameter, many: true } => Some(format!(
                "name them with `--set '{detector}.{parameter}=[\"FILE\", \"FILE\"]'`"
            )),
            Self::NoClassifier { .. } => {
                Some("name one with `--classifier FILE` or `--classifier ARCH:FILE`".into())
            }
            Self::NothingSelected { .. } => {
                Some("`oodbench plugin list` shows what each detector needs".into())
            }
            Self::NoValidation { role, .. } => Some(format!(
                "run without `--aps`, or add a set with `role = \"{role}\"` to the benchmark's file"
            )),
            Self::Locked { .. } => {
                Some("wait for it, or choose another folder with `--out`".into())
            }
            Self::Bank { .. } => Some("delete the file; it is made again".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some(
                "free some space and start the same command again: what is finished is kept".into(),
            ),
            Self::NotFinite { .. } => {
                Some("the weights do not fit the network, or the normalisation is wrong".into())
            }
            _ => None,
        }
    }

    /// For the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. }
            | Self::BadParameter { .. }
            | Self::RefusedValue { .. }
            | Self::NoAsset { .. }
            | Self::NoClassifier { .. }
            | Self::Precision(_)
            | Self::Usage { .. } => ErrorKind::Usage,
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Self::Device(DeviceError::Unknown(_)) => ErrorKind::Usage,
            Self::Device(error) if is_out_of_memory(error) => ErrorKind::OutOfMemory,
            Self::Dataset(
                DatasetError::BenchmarkSyntax { .. } | DatasetError::Benchmark { .. },
            ) => ErrorKind::Usage,
            Self::Catalogue(CatalogueError::Unknown { .. }) => ErrorKind::Usage,
            Self::Pack(_) | Self::Refused(_) | Self::Catalogue(_) | Self::Search(_) => {
                ErrorKind::PackRefused
            }
            Self::NothingSelected { .. } => ErrorKind::NothingSelected,
            Self::Record(RecordError::Write { .. }) => ErrorKind::Write,
            Self::Io { source, action, .. }
                if action.starts_with("write") || source.kind() == io::ErrorKind::StorageFull =>
            {
                ErrorKind::Write
            }
            _ => ErrorKind::Setup,
        }
    }
}

/// The known name that is nearest to what was typed, if one is near.
pub fn did_you_mean<'a>(typed: &str, known: &'a [String]) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase()), name.as_str()))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        let known: Vec<String> = ["msp", "react", "knn", "diffood"].map(str::to_owned).into();
        assert_eq!(did_you_mean("reakt", &known), Some("react"));
        assert_eq!(did_you_mean("DifFood", &known), Some("diffood"));
        assert_eq!(did_you_mean("mahalanobis", &known), None);
    }
}
