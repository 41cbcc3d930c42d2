//! Which classifier a run uses: the file, what is known about it, and where its normalisation
//! comes from. Normalisation belongs to the checkpoint: what the user states comes first, then
//! what is known of a published file by its content, then what the file says of itself, then the
//! benchmark's default.

use std::path::{Path, PathBuf};

use oodbench_datasets::Benchmark;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{
    Classifier, ClassifierError, ClassifierSpec, KnownCheckpoint, Normalisation,
};
use oodbench_nn::device::device;
use serde::{Deserialize, Serialize};

use crate::asset;
use crate::error::EngineError;
use crate::key::KeyBuilder;

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
                let spec = ClassifierSpec { arch, weights, classes: None, normalisation: None };
                (spec, file, place.clone())
            }
            (None, None) => {
                return Err(EngineError::NoClassifier { benchmark: benchmark.name.clone() });
            }
        };
        let known = KnownCheckpoint::find(&file.blake3);
        let default = Normalisation { mean: defaults.mean, std: defaults.std };
        let published = known.as_ref().map(|k| Normalisation { mean: k.mean, std: k.std });
        let n_classes = spec.classes.unwrap_or(benchmark.classes);
        if n_classes != benchmark.classes {
            return Err(EngineError::Usage {
                what: format!("classes of classifier `{name}`"),
                expected: format!("{} as in benchmark `{}`", benchmark.classes, benchmark.name),
                got: n_classes.to_string(),
            });
        }
        let stated = Normalisation::stated_in(&file.path);
        Ok(Self {
            name,
            weights: file.path,
            blake3: file.blake3,
            arch: spec.arch,
            n_classes,
            normalisation: spec.normalisation.or(published).or(stated).unwrap_or(default),
            stated_accuracy: known.map(|known| known.accuracy),
        })
    }

    /// Loads the network.
    ///
    /// # Errors
    /// See [`ClassifierError`]; a device that cannot be had.
    pub fn load(&self, on: &str) -> Result<Classifier, EngineError> {
        let device = device(on)?;
        let weights = StateDict::open(&self.weights).map_err(ClassifierError::from)?;
        let arch = self.arch.as_deref();
        Ok(Classifier::load(&weights, arch, self.n_classes, self.normalisation, &device)?)
    }

    /// Hash of all that decides its outputs: weights, normalisation, kind of device.
    pub fn key(&self, on: &str) -> String {
        let mut key = KeyBuilder::new("classifier/1");
        key.part("weights", &self.blake3);
        key.part("classes", &self.n_classes.to_string());
        let bits = |values: [f32; 3]| format!("{:?}", values.map(f32::to_bits));
        key.part("mean", &bits(self.normalisation.mean));
        key.part("std", &bits(self.normalisation.std));
        key.part("device", device_kind(on));
        key.finish()
    }
}

/// `cpu` or `cuda`: results of one kind of device are those of another one only nearly.
pub fn device_kind(device: &str) -> &str {
    device.split(':').next().unwrap_or(device)
}
