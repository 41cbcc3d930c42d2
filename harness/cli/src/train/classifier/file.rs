//! The file that says how a classifier is trained.

use std::path::Path;

use oodbench_nn::classifier::Normalisation;
use oodbench_nn::examples::Augmentation;
use oodbench_nn::optim::Rule;
use oodbench_nn::train::ClassifierRecipe;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Failure, SETUP};
use crate::train::RunArgs;
use crate::train::images::Images;

/// The configuration. Defaults are those of OpenOOD's baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClassifierFile {
    /// A benchmark by name or file; its training images are trained on, its `id-val` measured.
    pub(super) benchmark: String,
    pub(super) arch: String,
    /// The benchmark's where it is not given.
    pub(super) mean: Option<[f32; 3]>,
    pub(super) std: Option<[f32; 3]>,
    pub(super) epochs: u64,
    pub(super) batch_size: usize,
    pub(super) learning_rate: f64,
    pub(super) last_learning_rate: f64,
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f64,
    pub(super) crop_padding: usize,
    pub(super) horizontal_flip: bool,
}

impl Default for ClassifierFile {
    fn default() -> Self {
        Self {
            benchmark: "cifar10".to_owned(),
            arch: "resnet18_32x32".to_owned(),
            mean: None,
            std: None,
            epochs: 100,
            batch_size: 128,
            learning_rate: 0.1,
            last_learning_rate: 1e-6,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            crop_padding: 4,
            horizontal_flip: true,
        }
    }
}

impl ClassifierFile {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let what = |message: &str| format!("read configuration `{}`: {message}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| Failure {
            message: what(&error.to_string()),
            hint: None,
            code: SETUP,
        })?;
        let file: Self = toml::from_str(&text).map_err(|error| {
            let message = error.message().replace('\n', ", ");
            Failure::usage(what(&message), did_you_mean(&message))
        })?;
        let refused = |key: &str, expected: &str, got: String| {
            Err(Failure::usage(what(&format!("`{key}` expected {expected}, got {got}")), None))
        };
        if file.epochs == 0 || file.batch_size == 0 {
            let key = if file.epochs == 0 { "epochs" } else { "batch_size" };
            return refused(key, "at least 1", "0".to_owned());
        }
        let rates = [
            ("learning_rate", file.learning_rate),
            ("last_learning_rate", file.last_learning_rate),
            ("momentum", file.momentum),
            ("weight_decay", file.weight_decay),
        ];
        if let Some((key, value)) = rates.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return refused(key, "a number from 0", value.to_string());
        }
        if file.std.is_some_and(|std| std.iter().any(|s| !(s.is_finite() && *s > 0.0))) {
            return refused(
                "std",
                "numbers above 0",
                format!("{:?}", file.std.unwrap_or_default()),
            );
        }
        if file.mean.is_some() != file.std.is_some() {
            return refused("mean", "`std` beside it", "one of the two".to_owned());
        }
        Ok(file)
    }

    pub(super) fn recipe(&self, seed: u64) -> ClassifierRecipe {
        ClassifierRecipe {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            last_learning_rate: self.last_learning_rate,
            rule: Rule::Sgd {
                momentum: self.momentum,
                nesterov: self.nesterov,
                weight_decay: self.weight_decay,
            },
            augmentation: Augmentation {
                crop_padding: self.crop_padding,
                horizontal_flip: self.horizontal_flip,
            },
            seed,
        }
    }
}

/// The known key that a message of serde's names an unknown one instead of.
fn did_you_mean(message: &str) -> Option<String> {
    let unknown = message.strip_prefix("unknown field `")?.split('`').next()?;
    let known = serde_json::to_value(ClassifierFile::default()).ok()?;
    let keys = known.as_object()?.keys().cloned().collect::<Vec<_>>();
    let nearest = oodbench_engine::did_you_mean(unknown, &keys);
    nearest.map(|key| format!("did you mean `{key}`?"))
}

/// What the course of a training follows from.
pub(super) fn configuration(
    file: &ClassifierFile,
    normalisation: Normalisation,
    run: &RunArgs,
    [train, val]: [&Images; 2],
) -> Result<Value, Failure> {
    let value = || -> serde_json::Result<Value> {
        let mut value = serde_json::to_value(file)?;
        if let Some(keys) = value.as_object_mut() {
            // The name of a benchmark file says nothing; its images do.
            keys.insert("benchmark".to_owned(), [train.content(), val.content()].join(", ").into());
            keys.insert("mean".to_owned(), serde_json::to_value(normalisation.mean)?);
            keys.insert("std".to_owned(), serde_json::to_value(normalisation.std)?);
            keys.insert("precision".to_owned(), run.precision.name().into());
            keys.insert("seed".to_owned(), run.seed.into());
        }
        Ok(value)
    };
    value().map_err(|error| anyhow::Error::from(error).context("describe the training").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ClassifierFile, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        ClassifierFile::load(&path)
    }

    #[test]
    fn an_empty_file_is_the_baseline_of_openood() {
        let file = load("").unwrap();
        assert_eq!(file, ClassifierFile::default());
        let recipe = file.recipe(3);
        assert_eq!((recipe.epochs, recipe.batch_size, recipe.seed), (100, 128, 3));
        let rule = Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 };
        assert_eq!(recipe.rule, rule);
        assert_eq!((recipe.learning_rate, recipe.last_learning_rate), (0.1, 1e-6));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let failure = load("epoch = 3").unwrap_err();
        assert!(failure.message.contains("unknown field `epoch`"), "{failure:?}");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `epochs`?"));
        for (text, part) in [
            ("epochs = 0", "`epochs` expected at least 1"),
            ("momentum = -1.0", "`momentum` expected a number from 0, got -1"),
            ("mean = [0.5, 0.5, 0.5]", "`mean` expected `std` beside it"),
            ("mean = [0.5, 0.5, 0.5]\nstd = [0.0, 1.0, 1.0]", "`std` expected numbers above 0"),
        ] {
            let failure = load(text).unwrap_err();
            assert!(failure.message.contains(part), "{failure:?}");
        }
    }
}
