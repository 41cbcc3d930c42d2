//! Everything that can be wrong with an image set, a benchmark file or a prepared pack.
//!
//! A message is one line in lower case that fits after "failed to" or after a colon, with the path
//! in it, and expected before got. [`DatasetError::hint`] is the remedy, where there is one that
//! holds without knowing the command line. The cause below an error is its `source`, not part of
//! its own text.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::decode::{DecodeError, MAX_PIXELS};
use crate::preprocess::OutputTooLarge;

/// What went wrong with the data, and where.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The operating system refused.
    #[error("{action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// A file or folder that the benchmark names is in none of the places where it may be.
    #[error("find {what}: nothing at {}", list_paths(looked))]
    NotFound { what: String, looked: Vec<PathBuf> },

    /// An image list names images that are not there.
    #[error(
        "find the images of `{}`: {found} of {expected} are there; the first missing one is \
         `{first}` (line {line}), looked for at {}",
        list.display(), list_paths(looked)
    )]
    MissingImages {
        list: PathBuf,
        found: usize,
        expected: usize,
        first: String,
        line: usize,
        looked: Vec<PathBuf>,
    },

    /// A line of an image list that does not parse.
    #[error("read `{}` line {line}: expected {expected}, got `{got}`", list.display())]
    ListLine { list: PathBuf, line: usize, expected: &'static str, got: String },

    /// A path that would leave the folder or archive that it belongs to.
    #[error("read `{}`: expected paths below its root, got `{entry}`", origin.display())]
    UnsafePath { origin: PathBuf, entry: String },

    /// An archive as a whole that cannot be read.
    #[error("open archive `{}`", path.display())]
    Archive { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    /// One entry of an archive that cannot be read.
    #[error("read {place}")]
    ArchiveEntry { place: ImagePlace, source: Box<dyn std::error::Error + Send + Sync> },

    /// An image that cannot be decoded.
    #[error("decode {place}")]
    Decode { place: ImagePlace, source: DecodeError },

    /// A file that is not laid out as its format says.
    #[error("read `{}`: expected {expected}, got {got}", path.display())]
    Malformed { path: PathBuf, expected: String, got: String },

    /// A Python pickle that holds something else than the set.
    #[error("read pickle `{}`", path.display())]
    Pickle { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    /// A set without images.
    #[error("read `{}`: expected at least one image, got none", path.display())]
    Empty { path: PathBuf },

    /// A class index that the benchmark does not have.
    #[error("read {role} set `{set}`: label of `{id}` expected from 0 to {last}, got {label}")]
    LabelOutOfRange { role: &'static str, set: String, id: String, last: usize, label: i64 },

    /// A set that has not the size which the benchmark states.
    #[error("read {role} set `{set}`: expected {expected} images, got {got}")]
    WrongSize { role: &'static str, set: String, expected: usize, got: usize },

    /// Images of different sizes, which no crop made equal.
    #[error(
        "prepare `{id}`: expected {}x{} like the images before it, got {}x{}",
        expected.0, expected.1, got.0, got.1
    )]
    MixedSizes { id: String, expected: (u32, u32), got: (u32, u32) },

    /// A resize that would blow one image up beyond what is reasonable.
    #[error("prepare `{id}`")]
    OutputTooLarge { id: String, source: OutputTooLarge },

    /// A benchmark file that is not TOML or has unknown, missing or ill-typed keys.
    #[error("read benchmark `{origin}` line {line} column {column}: {message}")]
    BenchmarkSyntax { origin: String, line: usize, column: usize, message: String },

    /// A benchmark file that parses and makes no sense.
    #[error("read benchmark `{origin}`: expected {expected}, got {got}")]
    Benchmark { origin: String, expected: String, got: String },

    /// A prepared pack that is not one, or of another version.
    #[error("open pack `{}`: expected {expected}, got {got}", path.display())]
    Pack { path: PathBuf, expected: String, got: String },

    /// A prepared pack whose bytes are not those that were written.
    #[error("verify pack `{}`: expected content {expected}, got {got}", path.display())]
    PackContent { path: PathBuf, expected: String, got: String },
}

/// Where an image lies, in words that let one open it by hand.
#[derive(Clone, Debug)]
pub struct ImagePlace {
    /// The file, or the archive.
    pub file: PathBuf,
    /// The entry of the archive.
    pub entry: Option<String>,
    /// The image list and its line, from 1.
    pub list: Option<(PathBuf, usize)>,
}

impl ImagePlace {
    pub(crate) fn file(path: &Path) -> Self {
        Self { file: path.to_owned(), entry: None, list: None }
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}`", self.file.display())?;
        if let Some(entry) = &self.entry {
            write!(out, " entry `{entry}`")?;
        }
        if let Some((list, line)) = &self.list {
            write!(out, " (`{}` line {line})", list.display())?;
        }
        Ok(())
    }
}

impl DatasetError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn malformed(
        path: &Path,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Malformed { path: path.to_owned(), expected: expected.into(), got: got.into() }
    }

    /// Whether the data is absent, rather than there and wrong: what `--allow-missing` forgives.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::MissingImages { .. })
    }

    /// Every place that was searched, for an error that [is missing](Self::is_missing) data.
    #[must_use]
    pub fn looked(&self) -> &[PathBuf] {
        match self {
            Self::NotFound { looked, .. } | Self::MissingImages { looked, .. } => looked,
            _ => &[],
        }
    }

    /// What the user can do about it, if that can be said here.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotFound { .. } => {
                "put the data there, or name the folder that holds it with `--data`".to_owned()
            }
            Self::MissingImages { found: 0, .. } => {
                "put the folder, or the archive of that name, below the list's root".to_owned()
            }
            Self::MissingImages { .. } => {
                "the set is incomplete: fetch the rest, or leave it out".to_owned()
            }
            Self::ListLine { .. } => {
                "a line is a path, a space and a class index; -1 is out-of-distribution".to_owned()
            }
            Self::Archive { .. } | Self::ArchiveEntry { .. } => {
                "the archive is damaged or was not copied to its end: fetch it again".to_owned()
            }
            Self::Decode { source: DecodeError::TooLarge { .. }, .. } => {
                format!("images of more than {MAX_PIXELS} pixels are refused: shrink it first")
            }
            Self::Decode { source: DecodeError::UnknownFormat { .. }, .. } => {
                "convert the image to PNG, which loses nothing".to_owned()
            }
            Self::Decode { .. } => {
                "truncated and corrupt images are refused, not filled with grey as OpenOOD does: \
                 fetch the file again, or take its line out of a copy of the list"
                    .to_owned()
            }
            Self::MixedSizes { .. } => "give the benchmark a `preprocess.crop`".to_owned(),
            Self::OutputTooLarge { .. } => "give the benchmark a `preprocess.crop`".to_owned(),
            Self::LabelOutOfRange { .. } => {
                "compare `classes` of the benchmark with the labels of the list".to_owned()
            }
            Self::Pack { .. } | Self::PackContent { .. } => {
                "delete the pack; it is prepared again".to_owned()
            }
            _ => return None,
        };
        Some(text)
    }
}

fn list_paths(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}
