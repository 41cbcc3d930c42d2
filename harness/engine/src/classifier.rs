//! Which classifier a run uses: the file, what is known about it, and where its normalisation
//! comes from. Normalisation belongs to the checkpoint: what the user states comes first, then
//! what is known of a published file by its content, then what the file says of itself, then the
//! benchmark's default.

use std::path::{Path, PathBuf};

use candle_core::Device;
use oodbench_datasets::Benchmark;
use oodbench_nn::checkpoint::{self, StateDict};
use oodbench_nn::classifier::{
    self, Classifier, ClassifierError, ClassifierSpec, KnownCheckpoint, Normalisation,
};
use oodbench_nn::device::{device, set_precision};
use oodbench_nn::heads::Variant;
use oodbench_nn::precision::Precision;
use serde::{Deserialize, Serialize};

use crate::asset;
use crate::error::EngineError;
use crate::key::{KeyBuilder, hash_file};

/// A classifier as a worker is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierRef {
    /// What to call it.
    pub name: String,
    pub weights: PathBuf,
    pub blake3: String,
    pub arch: Option<String>,
    pub n_classes: usize,
    pub normalisation: Normalisation,
    /// Groups of classes, where each has a logit for "none of these".
    pub groups: Option<Vec<Vec<usize>>>,
    /// The accuracy that its authors state on the official CIFAR-10 test set, if it is known.
    pub stated_accuracy: Option<f64>,
}

impl ClassifierRef {
    /// Resolves what was typed, or the benchmark's own classifier where nothing was.
    ///
    /// # Errors
    /// No classifier at all, or a file that is not there.
    pub fn resolve(
        typed: Option<&str>,
        benchmark: &Benchmark,
        base: &Path,
        cache: &Path,
    ) -> Result<Self, EngineError> {
        let defaults = &benchmark.classifier;
        let (spec, file, name) = match (typed, &defaults.weights) {
            (Some(text), _) => {
                let spec = ClassifierSpec::parse(text)?;
                let name = spec.weights.file_name().unwrap_or_default().to_string_lossy();
                let name = name.into_owned();
                let place = spec.weights.display().to_string();
                (spec, asset::resolve(&place, Path::new(""), cache)?, name)
            }
            (None, Some(place)) => {
                let file = asset::resolve(place, base, cache)?;
                let (weights, arch) = (file.path.clone(), defaults.arch.clone());
                let spec = ClassifierSpec {
                    arch,
                    weights,
                    classes: None,
                    normalisation: None,
                    groups: None,
                };
                (spec, file, place.clone())
            }
            (None, None) => {
                return Err(EngineError::NoClassifier { benchmark: benchmark.name.clone() });
            }
        };
        let known = KnownCheckpoint::find(&file.blake3);
        let default = Normalisation { mean: defaults.mean, std: defaults.std };
        let n_classes = spec.classes.unwrap_or(benchmark.classes);
        if n_classes != benchmark.classes {
            return Err(EngineError::Usage {
                what: format!("classes of classifier `{name}`"),
                expected: format!("{} as in benchmark `{}`", benchmark.classes, benchmark.name),
                got: n_classes.to_string(),
            });
        }
        let own = own_normalisation(&file.path, known.as_ref());
        Ok(Self {
            name,
            weights: file.path,
            blake3: file.blake3,
            arch: spec.arch,
            n_classes,
            normalisation: spec.normalisation.or(own).unwrap_or(default),
            groups: spec.groups,
            stated_accuracy: known.map(|known| known.accuracy),
        })
    }

    /// Loads the network.
    ///
    /// # Errors
    /// See [`ClassifierError`]; a device that cannot be had, or does not have the precision.
    pub fn load(&self, on: &str, precision: Precision) -> Result<Classifier, EngineError> {
        let device = device(on)?;
        set_precision(precision, &device)?;
        let weights = StateDict::open(&self.weights).map_err(ClassifierError::from)?;
        let (arch, groups) = (self.arch.as_deref(), self.groups.as_deref());
        let Self { n_classes, normalisation, .. } = *self;
        Ok(Classifier::load_grouped(&weights, arch, groups, n_classes, normalisation, &device)?)
    }

    /// Which network it is, without its weights.
    ///
    /// # Errors
    /// See [`ClassifierError`].
    pub fn variant(&self) -> Result<Variant, EngineError> {
        let shapes = checkpoint::shapes(&self.weights).map_err(ClassifierError::from)?;
        let (arch, groups) = (self.arch.as_deref(), self.groups.as_deref());
        Ok(classifier::variant(&self.weights, &shapes, arch, groups, self.n_classes)?)
    }

    /// Hash of all that decides its outputs: weights, normalisation, kind of device, precision.
    pub fn key(&self, on: &str, precision: Precision) -> String {
        let mut key = KeyBuilder::new("classifier/1");
        key.part("weights", &self.blake3);
        key.part("classes", &self.n_classes.to_string());
        if let Some(groups) = &self.groups {
            key.part("groups", &format!("{groups:?}"));
        }
        let bits = |values: [f32; 3]| format!("{:?}", values.map(f32::to_bits));
        key.part("mean", &bits(self.normalisation.mean));
        key.part("std", &bits(self.normalisation.std));
        key.part("device", device_kind(on));
        // Absent where it is what it was before there was a choice.
        if precision != Precision::F32 {
            key.part("precision", precision.name());
        }
        key.finish()
    }
}

/// The normalisation that is known of a published file by its content, or that the file states.
fn own_normalisation(weights: &Path, known: Option<&KnownCheckpoint>) -> Option<Normalisation> {
    let published = known.map(|known| Normalisation { mean: known.mean, std: known.std });
    published.or_else(|| Normalisation::stated_in(weights))
}

/// Loads another classifier for as many classes. Its architecture is read off the weights, and
/// `normalisation` is used where the file has none of its own.
///
/// # Errors
/// See [`ClassifierError`]; a file that cannot be read.
pub(crate) fn load_other(
    weights: &Path,
    n_classes: usize,
    normalisation: Normalisation,
    device: &Device,
) -> Result<Classifier, EngineError> {
    let blake3 = hash_file(weights).map_err(EngineError::io("read", weights))?;
    let known = KnownCheckpoint::find(&blake3);
    let normalisation = own_normalisation(weights, known.as_ref()).unwrap_or(normalisation);
    let weights = StateDict::open(weights).map_err(ClassifierError::from)?;
    Ok(Classifier::load(&weights, None, n_classes, normalisation, device)?)
}

/// `cpu` or `cuda`: results of one kind of device are those of another one only nearly.
pub fn device_kind(device: &str) -> &str {
    device.split(':').next().unwrap_or(device)
}
