//! Configuration files: one schema, spelt as TOML, JSON or YAML.
//!
//! Sections and keys are those of the reference, whose `config/*.yml` are read unchanged:
//! `Dataset`, `Model`, `Schedule`, `Train`, `Optim`, `Sample`. A section may be absent where a
//! command does not need it. A key that is unknown is an error, and so is a value that asks for
//! what is not done here; a key without effect is documented as such where it is declared.

mod dataset;
mod keys;
mod schedule;
mod train;
mod yaml;

use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use dataset::{DatasetConfig, SampleConfig};
pub use keys::KeyError;
pub use schedule::ScheduleSection;
pub use train::{IterType, LossType, OptimConfig, OptimizerType, TimestepType, TrainConfig};
pub use yaml::YamlError;

use crate::net::NetConfig;
use crate::schedule::ScheduleConfig;
use keys::Node;

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// Where it was read from.
    #[serde(skip)]
    pub path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<NetConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optim: Option<OptimConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleConfig>,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("read configuration `{}`", path.display())]
pub struct ConfigError {
    pub path: PathBuf,
    #[source]
    pub source: ConfigProblem,
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Toml(#[from] Box<toml::de::Error>),
    #[error(transparent)]
    Yaml(#[from] YamlError),
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A command needs what the file may leave out.
    #[error("expected section `{section}`, got none\n\nhint: {hint}")]
    NoSection { section: &'static str, hint: &'static str },
    /// As [`Self::NoSection`], for a key.
    #[error("expected key `{key}`, got none\n\nhint: {hint}")]
    NoKey { key: &'static str, hint: &'static str },
}

impl Config {
    /// Reads a file. Its ending tells the spelling; where it is another than `.toml`, `.json`,
    /// `.yml` and `.yaml`, the content does.
    ///
    /// # Errors
    /// See [`ConfigProblem`]; everything but a section that is absent.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = || -> Result<Self, ConfigProblem> {
            let text = std::fs::read_to_string(path)?;
            let mut tree = match Spelling::of(path, &text) {
                Spelling::Json => serde_json::from_str(&text)?,
                Spelling::Toml => {
                    let table: toml::Table = toml::from_str(&text).map_err(Box::new)?;
                    serde_json::to_value(table)?
                }
                Spelling::Yaml => yaml::parse(&text)?,
            };
            if tree.is_null() {
                // A file of nothing but comments.
                tree = Value::Object(Default::default());
            }
            Ok(Self { path: path.to_owned(), ..Self::from_tree(&tree)? })
        };
        read().map_err(|source| ConfigError { path: path.to_owned(), source })
    }

    fn from_tree(tree: &Value) -> Result<Self, KeyError> {
        /// The file before its sections are looked at.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a table of sections")]
        struct Sections {
            dataset: Option<Value>,
            model: Option<Value>,
            schedule: Option<Value>,
            train: Option<Value>,
            optim: Option<Value>,
            sample: Option<Value>,
        }

        let file = Sections::deserialize(Node(tree))?;
        Ok(Self {
            path: PathBuf::new(),
            dataset: section("Dataset", file.dataset, DatasetConfig::check)?,
            model: file
                .model
                .map(|model| self::model(model).map_err(|err| err.within("Model")))
                .transpose()?,
            schedule: section("Schedule", file.schedule, ScheduleSection::check)?,
            train: section("Train", file.train, TrainConfig::check)?,
            optim: section("Optim", file.optim, OptimConfig::check)?,
            sample: section("Sample", file.sample, SampleConfig::check)?,
        })
    }

    /// The network.
    ///
    /// # Errors
    /// A file without section `Model`.
    pub fn model(&self) -> Result<&NetConfig, ConfigError> {
        self.section("Model", "it describes the network: `struc`, `image_size`, …", &self.model)
    }

    /// The schedule; that of DDPM where the file has no section `Schedule`.
    pub fn schedule(&self) -> ScheduleConfig {
        self.schedule.as_ref().map_or_else(Default::default, ScheduleSection::config)
    }

    /// What to train on.
    ///
    /// # Errors
    /// A file without section `Dataset`.
    pub fn dataset(&self) -> Result<&DatasetConfig, ConfigError> {
        self.section("Dataset", "it describes the images: `name`, `batch_size`, …", &self.dataset)
    }

    /// How to train.
    ///
    /// # Errors
    /// A file without section `Train`.
    pub fn train(&self) -> Result<&TrainConfig, ConfigError> {
        self.section("Train", "it describes the training: `epoch`, `loss_type`, …", &self.train)
    }

    /// What moves the weights.
    ///
    /// # Errors
    /// A file without section `Optim`.
    pub fn optim(&self) -> Result<&OptimConfig, ConfigError> {
        self.section("Optim", "it describes the optimiser: `optimizer`, `lr`, …", &self.optim)
    }

    /// How many images are sampled; the defaults where the file has no section `Sample`.
    pub fn sample(&self) -> SampleConfig {
        self.sample.clone().unwrap_or_default()
    }

    /// Images in a batch of training: `Dataset.batch_size`, which is what the reference's loader
    /// is built from, else `Train.batch_size`, which nothing of the reference reads. In two pairs
    /// of its files they differ.
    ///
    /// # Errors
    /// A file that has neither.
    pub fn batch_size(&self) -> Result<usize, ConfigError> {
        let of_dataset = self.dataset.as_ref().and_then(|dataset| dataset.batch_size);
        let of_train = self.train.as_ref().and_then(|train| train.batch_size);
        of_dataset.or(of_train).ok_or_else(|| {
            let key = "Dataset.batch_size";
            self.lacks(ConfigProblem::NoKey { key, hint: "the number of images in a batch" })
        })
    }

    fn section<'a, T>(
        &self,
        section: &'static str,
        hint: &'static str,
        value: &'a Option<T>,
    ) -> Result<&'a T, ConfigError> {
        value.as_ref().ok_or_else(|| self.lacks(ConfigProblem::NoSection { section, hint }))
    }

    fn lacks(&self, source: ConfigProblem) -> ConfigError {
        ConfigError { path: self.path.clone(), source }
    }
}

fn section<T: DeserializeOwned>(
    name: &'static str,
    tree: Option<Value>,
    check: impl Fn(&T) -> Result<(), KeyError>,
) -> Result<Option<T>, KeyError> {
    // A section that says nothing is as good as none.
    let Some(tree) = tree.filter(|tree| !tree.as_object().is_some_and(Map::is_empty)) else {
        return Ok(None);
    };
    let parse = || {
        let section = T::deserialize(Node(&tree))?;
        check(&section).map(|()| section)
    };
    parse().map(Some).map_err(|err| err.within(name))
}

/// The section `Model`, whose keys depend on `struc`. serde's own tagged enums would do, but
/// their errors name no place.
fn model(mut tree: Value) -> Result<NetConfig, KeyError> {
    let Some(keys) = tree.as_object_mut() else {
        return Err(KeyError::refused("struc", "expected a key of a table".to_owned(), None));
    };
    let Some(struc) = keys.shift_remove("struc") else {
        return Err(KeyError::missing_field("struc"));
    };
    let net = match struc.as_str() {
        Some("DDIM") => NetConfig::Ddim(Deserialize::deserialize(Node(&tree))?),
        Some("iDDPM") => NetConfig::Iddpm(Deserialize::deserialize(Node(&tree))?),
        _ => {
            let got = struc.as_str().map_or_else(|| struc.to_string(), str::to_owned);
            let err = KeyError::unknown_variant(&got, &["DDIM", "iDDPM"]);
            return Err(err.within("struc"));
        }
    };
    match net.check() {
        Ok(()) => Ok(net),
        Err(err) => Err(KeyError::refused(err.key, err.message, None)),
    }
}

enum Spelling {
    Json,
    Toml,
    Yaml,
}

impl Spelling {
    fn of(path: &Path, text: &str) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
        match ending.as_deref() {
            Some("yml" | "yaml") => return Self::Yaml,
            Some("toml") => return Self::Toml,
            Some("json") => return Self::Json,
            _ => {}
        }
        if text.trim_start().starts_with('{') {
            return Self::Json;
        }
        let mut lines = text.lines().map(str::trim);
        let is_nothing = |line: &str| line.is_empty() || line.starts_with('#') || line == "---";
        match lines.find(|line| !is_nothing(line)) {
            Some(line) if !line.starts_with('[') && !line.contains('=') => Self::Yaml,
            _ => Self::Toml,
        }
    }
}

#[cfg(test)]
mod tests;
