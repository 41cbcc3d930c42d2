//! Benchmarks as data: the schema of `datasets/benchmarks/*.toml` and of the user's own files.
//!
//! A published benchmark is never edited; a change is a new version. What a benchmark says is
//! checked here without looking at any data, which [`locate`] does.

mod builtin;
mod locate;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::mapped::read_small;
use crate::preprocess::Preprocess;
use crate::source::SourceSpec;

pub use builtin::{Builtin, builtin, builtins};
pub use locate::{Located, locate};

/// The version of the schema that is read.
pub const BENCHMARK_SCHEMA: u32 = 1;

/// An ID data set, OOD data sets, and the preprocessing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Benchmark {
    pub schema: u32,
    pub name: String,
    pub title: String,
    pub version: String,
    /// How many classes the ID data set has.
    pub classes: usize,
    /// One line: where the protocol comes from.
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub preprocess: Preprocess,
    pub classifier: ClassifierDefaults,
    pub sets: Vec<SetSpec>,
    /// Files that detectors ask for by name: a path relative to the benchmark file, or
    /// `embedded:NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub assets: BTreeMap<String, String>,
    /// Detectors that are run beside whichever are asked for, to compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<String>,
    /// By detector: parameters that replace its defaults on this benchmark.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub presets: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
}

/// What holds for a classifier that does not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierDefaults {
    /// Mean of red, green and blue, of pixels from 0 to 1.
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// The classifier that is used when none is named: a path relative to the benchmark file, or
    /// `embedded:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
}

/// One set of images and its part in the protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSpec {
    pub role: Role,
    pub name: String,
    pub images: SourceSpec,
    /// How many images there must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Replaces the benchmark's preprocessing as a whole; `{}` is none at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
}

/// What a set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What the classifier was trained on, and detectors are fitted on.
    IdTrain,
    IdVal,
    IdTest,
    /// Out-of-distribution images for choosing parameters; never reported.
    OodVal,
    Near,
    Far,
    /// Covariate-shifted ID: other images of the same classes.
    Csid,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IdTrain => "id-train",
            Self::IdVal => "id-val",
            Self::IdTest => "id-test",
            Self::OodVal => "ood-val",
            Self::Near => "near",
            Self::Far => "far",
            Self::Csid => "csid",
        }
    }

    /// Whether every image is out-of-distribution, whatever its label says.
    #[must_use]
    pub fn is_ood(self) -> bool {
        matches!(self, Self::OodVal | Self::Near | Self::Far)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Benchmark {
    /// Reads and checks a benchmark file.
    ///
    /// # Errors
    /// As [`Benchmark::parse`], or when there is no such file.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let bytes = read_small(path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| DatasetError::malformed(path, "TOML in UTF-8", "other bytes"))?;
        Self::parse(text, &path.display().to_string())
    }

    /// Checks the text of a benchmark. `origin` says in messages where it came from.
    ///
    /// # Errors
    /// [`DatasetError::BenchmarkSyntax`] with line and column for what is no TOML of this schema,
    /// an unknown key among it; [`DatasetError::Benchmark`] for one that contradicts itself.
    pub fn parse(text: &str, origin: &str) -> Result<Self, DatasetError> {
        let benchmark: Self = toml::from_str(text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start).min(text.len())];
            let start_of_line = before.rfind('\n').map_or(0, |at| at + 1);
            DatasetError::BenchmarkSyntax {
                origin: origin.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[start_of_line..].chars().count() + 1,
                message: error.message().trim().replace('\n', ", "),
            }
        })?;
        benchmark.validate(origin)?;
        Ok(benchmark)
    }

    /// The sets of one role, in the order of the file.
    pub fn sets_of(&self, role: Role) -> impl Iterator<Item = &SetSpec> {
        self.sets.iter().filter(move |set| set.role == role)
    }

    /// The preprocessing of a set of this benchmark.
    #[must_use]
    pub fn preprocess_of(&self, set: &SetSpec) -> Preprocess {
        set.preprocess.unwrap_or(self.preprocess)
    }
}
