//! Where the sets of a run come from: the images of a benchmark, on which a classifier runs here, or
//! what a classifier elsewhere gave for them, exported to files. Detectors meet the same either
//! way, as far as there is anything to meet.

use std::path::{Path, PathBuf};

use oodbench_datasets::{Benchmark, DataDir, Located, Role, locate};
use oodbench_record::{MissingSet, SetRef};
use serde_json::{Map, Value};

use super::offers::Offers;
use super::{lacks, set_ref};
use crate::classifier::ClassifierRef;
use crate::error::EngineError;
use crate::features::{FeatureFolder, FeaturesError, file_of, folder_name};
use crate::pack::DetectorInfo;
use crate::text::chain;

/// Where the sets of a run come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Images of a benchmark, and a classifier.
    Images(Box<ImageSource>),
    /// A folder of exported features; see docs/features.md.
    Features(PathBuf),
}

/// Images of a benchmark, and the classifier that runs on them.
#[derive(Clone, Debug)]
pub struct ImageSource {
    pub benchmark: Benchmark,
    /// Where relative paths of the benchmark file start.
    pub base: PathBuf,
    pub data: PathBuf,
    /// What was typed; the benchmark's own classifier otherwise.
    pub classifier: Option<String>,
    pub allow_missing: bool,
}

impl Source {
    /// What to call a run of it where nobody names one.
    pub fn name(&self) -> String {
        match self {
            Self::Images(images) => images.benchmark.name.clone(),
            Self::Features(folder) => folder_name(folder),
        }
    }

    /// Detectors that run for comparison.
    pub(super) fn baselines(&self) -> &[String] {
        self.benchmark().map_or(&[], |benchmark| &benchmark.baselines)
    }

    /// Parameters that replace a detector's defaults.
    pub(super) fn presets(&self, detector: &str) -> Option<&Map<String, Value>> {
        self.benchmark()?.presets.get(detector)
    }

    /// The place of a file that detectors ask for by this name.
    pub(super) fn asset(&self, name: &str) -> Option<&String> {
        self.benchmark()?.assets.get(name)
    }

    /// Where relative paths of presets and assets start.
    pub(super) fn base(&self) -> &Path {
        match self {
            Self::Images(images) => &images.base,
            Self::Features(_) => Path::new(""),
        }
    }

    fn benchmark(&self) -> Option<&Benchmark> {
        match self {
            Self::Images(images) => Some(&images.benchmark),
            Self::Features(_) => None,
        }
    }

    /// Finds the sets, without computing anything.
    ///
    /// # Errors
    /// A set that is missing or broken, no classifier; validation sets that are missing where
    /// `search` needs them.
    pub(super) fn open(&self, cache: &Path, search: bool) -> Result<Opened<'_>, EngineError> {
        let lacking = |opened: &Opened<'_>| {
            let roles = opened.roles();
            let validation = [Role::IdVal, Role::OodVal];
            validation.into_iter().find(|role| search && !roles.contains(role))
        };
        match self {
            Self::Images(images) => {
                let opened = Opened::Images(images.open(cache)?);
                match lacking(&opened) {
                    None => Ok(opened),
                    Some(role) => {
                        let (benchmark, role) = (images.benchmark.name.clone(), role.to_string());
                        Err(EngineError::NoValidation { benchmark, role })
                    }
                }
            }
            Self::Features(folder) => {
                let opened = Opened::Features(FeatureFolder::open(folder)?);
                match lacking(&opened) {
                    None => Ok(opened),
                    Some(role) => {
                        let (path, file) = (folder.clone(), file_of(role));
                        Err(FeaturesError::NoValidation { path, file }.into())
                    }
                }
            }
        }
    }
}

impl ImageSource {
    fn open(&self, cache: &Path) -> Result<OpenedImages<'_>, EngineError> {
        let data = DataDir::new(&self.data, cache.join("scratch"));
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for set in locate(&self.benchmark, &data) {
            match set.source {
                Err(error) if error.is_missing() => {
                    let reason = chain(&error);
                    missing.push(MissingSet { set: set_ref(set.set.role, &set.set.name), reason });
                }
                Err(error) => return Err(error.into()),
                Ok(_) => present.push(set),
            }
        }
        let no_test = missing.iter().any(|set| set.set.role == Role::IdTest.as_str());
        let no_ood = !present.iter().any(|set| matches!(set.set.role, Role::Near | Role::Far));
        if !missing.is_empty() && (!self.allow_missing || no_test || no_ood) {
            let missing = missing.into_iter().map(|set| (set.set, set.reason)).collect();
            let benchmark = self.benchmark.name.clone();
            return Err(EngineError::MissingSets { benchmark, missing });
        }
        let typed = self.classifier.as_deref();
        let classifier = ClassifierRef::resolve(typed, &self.benchmark, &self.base, cache)?;
        let offers = Offers::of(&classifier)?;
        Ok(OpenedImages { source: self, classifier, offers, located: present, missing })
    }
}

/// A source whose sets have been found.
pub(super) enum Opened<'a> {
    Images(OpenedImages<'a>),
    Features(FeatureFolder),
}

/// Images that have been found, and the classifier.
pub(super) struct OpenedImages<'a> {
    pub(super) source: &'a ImageSource,
    pub(super) classifier: ClassifierRef,
    pub(super) offers: Offers,
    pub(super) located: Vec<Located>,
    /// The sets that are not there although they should be.
    pub(super) missing: Vec<MissingSet>,
}

/// Where the outputs that detectors see come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A classifier that runs on the images of a benchmark.
    Images { benchmark: String, version: String, classifier: ClassifierRef },
    /// Exported by another program.
    Features { folder: PathBuf, n_classes: usize, n_features: usize, has_head: bool },
}

impl Origin {
    /// The classifier, where it can run here.
    pub(super) fn classifier(&self) -> Option<&ClassifierRef> {
        match self {
            Self::Images { classifier, .. } => Some(classifier),
            Self::Features { .. } => None,
        }
    }
}

impl Opened<'_> {
    fn roles(&self) -> Vec<Role> {
        match self {
            Self::Images(images) => images.located.iter().map(|set| set.set.role).collect(),
            Self::Features(folder) => folder.sets.iter().map(|set| set.role).collect(),
        }
    }

    /// Every set with its number of images.
    pub(super) fn listed(&self) -> Vec<(SetRef, usize)> {
        match self {
            Self::Images(images) => {
                let count = |set: &Located| set.source.as_ref().map_or(0, |source| source.len());
                let listed = |set: &Located| (set_ref(set.set.role, &set.set.name), count(set));
                images.located.iter().map(listed).collect()
            }
            Self::Features(folder) => {
                folder.sets.iter().map(|set| (set_ref(set.role, &set.name), set.len)).collect()
            }
        }
    }

    /// The sets that are not there although they should be.
    pub(super) fn missing(&self) -> &[MissingSet] {
        match self {
            Self::Images(images) => &images.missing,
            Self::Features(_) => &[],
        }
    }

    /// What the user should know of the sets.
    pub(super) fn warnings(&self) -> &[String] {
        match self {
            Self::Images(_) => &[],
            Self::Features(folder) => &folder.warnings,
        }
    }

    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Images(images) => Origin::Images {
                benchmark: images.source.benchmark.name.clone(),
                version: images.source.benchmark.version.clone(),
                classifier: images.classifier.clone(),
            },
            Self::Features(folder) => Origin::Features {
                folder: folder.path.clone(),
                n_classes: folder.n_classes,
                n_features: folder.n_features,
                has_head: folder.head.is_some(),
            },
        }
    }

    /// What a detector needs and this run has not.
    pub(super) fn lacks(&self, info: &DetectorInfo, search: bool) -> Option<String> {
        if info.needs.names().contains(&"unknown") {
            return Some("needs a service that this host does not know".to_owned());
        }
        match self {
            Self::Images(images) => {
                lacks::of_images(info.needs, &self.roles()).or_else(|| images.offers.lacks(info))
            }
            Self::Features(folder) => {
                let searched = search && info.params.iter().any(|param| !param.sweep.is_empty());
                lacks::of_features(info.needs, folder, searched)
            }
        }
    }
}

impl Opened<'_> {
    /// Why a detector is not among those that `all` stands for: it goes with a training method that
    /// nothing tells the classifier to come from.
    pub(super) fn is_no_companion(&self, info: &DetectorInfo) -> Option<String> {
        let training = &info.companion_of;
        if training.is_empty() {
            return None;
        }
        let name = match self {
            Self::Images(images) if images.offers.is_of(training) => return None,
            Self::Images(images) => images.offers.name.clone(),
            Self::Features(folder) => format!("`{}`", folder.path.display()),
        };
        let id = &info.id;
        Some(format!(
            "goes with training by {training}, and nothing says that {name} comes from it: name `{id}` to run it"
        ))
    }
}
