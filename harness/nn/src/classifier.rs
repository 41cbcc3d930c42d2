//! A classifier: an architecture, weights and the normalisation that belongs to them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::arch::{FAMILIES, Layer, Network, Outputs, Taps};
use crate::checkpoint::{CheckpointError, StateDict};
use crate::heads::Variant;
use crate::layers::Mode;

/// Mean and standard deviation of each channel, for images in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Normalisation {
    /// `(xs - mean) / std` per channel.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]`
    pub fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let mean = Tensor::new(&self.mean, xs.device())?.reshape((1, 3, 1, 1))?;
        let std = Tensor::new(&self.std, xs.device())?.reshape((1, 3, 1, 1))?;
        xs.broadcast_sub(&mean)?.broadcast_div(&std)
    }

    /// What a safetensors file says of itself under `mean` and `std`, as those that are trained
    /// here do.
    pub fn stated_in(path: &Path) -> Option<Self> {
        let text = crate::tensor_file::text_of(path).ok()?;
        let of = |key: &str| serde_json::from_str::<[f32; 3]>(text.get(key)?).ok();
        let stated = Self { mean: of("mean")?, std: of("std")? };
        let plausible = stated.mean.iter().all(|mean| mean.is_finite())
            && stated.std.iter().all(|std| std.is_finite() && *std > 0.0);
        plausible.then_some(stated)
    }
}

/// A checkpoint that its authors published, recognised by its content.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownCheckpoint {
    pub name: String,
    /// Of the file.
    pub blake3: String,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// As its authors state it, a fraction.
    pub accuracy: f64,
    pub source: String,
    pub licence: String,
}

impl KnownCheckpoint {
    /// The checkpoint with this content, if it is a known one.
    pub fn find(blake3: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct File {
            checkpoint: Vec<KnownCheckpoint>,
        }
        let file: File = toml::from_str(include_str!("known_checkpoints.toml"))
            .expect("the file is part of this crate and a test reads it");
        file.checkpoint.into_iter().find(|known| known.blake3 == blake3)
    }
}

/// What a user says about a classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierSpec {
    /// Name of the architecture; read off the weights where it is not stated.
    pub arch: Option<String>,
    /// The file.
    pub weights: PathBuf,
    /// Number of classes, if stated; the benchmark's otherwise.
    pub classes: Option<usize>,
    /// Normalisation that the file was trained with, if stated.
    pub normalisation: Option<Normalisation>,
    /// Groups of classes with a logit for "none of these" before each, in the order of the logits.
    pub groups: Option<Vec<Vec<usize>>>,
}

/// The table of a classifier's TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecFile {
    arch: Option<String>,
    weights: PathBuf,
    classes: Option<usize>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    groups: Option<Vec<Vec<usize>>>,
}

/// What a classifier fails with.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("read classifier `{}`", path.display())]
    ReadSpec {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read classifier `{}`", path.display())]
    ParseSpec {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("read classifier `{}`: {message}", path.display())]
    BadSpec { path: PathBuf, message: String },
    #[error("load checkpoint `{}`: its weights are of no known architecture", path.display())]
    UnknownWeights { path: PathBuf },
    #[error("load checkpoint `{}`: expected architecture `{expected}`, got `{found}`", path.display())]
    OtherArchitecture { path: PathBuf, expected: String, found: String },
    #[error("load checkpoint `{}`: `groups` expected {expected}, got {got}", path.display())]
    BadGroups { path: PathBuf, expected: String, got: String },
    #[error("load checkpoint `{}`: `{key}` expected [{expected}, {features}], got [{found}, {features}]", path.display())]
    OtherClasses { path: PathBuf, key: String, expected: usize, found: usize, features: usize },
    #[error("load checkpoint `{}` as `{arch}`", path.display())]
    Load {
        path: PathBuf,
        arch: String,
        #[source]
        source: candle_core::Error,
    },
    #[error("load checkpoint `{}` as `{arch}`: {} tensors belong to no layer, among them `{}`", path.display(), unused.len(), unused[0])]
    Unused { path: PathBuf, arch: String, unused: Vec<String> },
}

impl ClassifierError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownWeights { .. } | Self::OtherArchitecture { .. } => {
                let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
                Some(format!("architectures are {}", names.join(", ")))
            }
            Self::OtherClasses { expected, found, .. } => {
                // Each group of MOS has a class at least.
                let grouped = match found.checked_sub(*expected) {
                    Some(n) if (1..=*expected).contains(&n) => format!(
                        ", or say which classes are in which of {n} groups, if it was trained by MOS: `groups = [[0, …], …]` in a TOML file"
                    ),
                    _ => String::new(),
                };
                let text = format!("choose a benchmark of {found} classes, or another checkpoint");
                Some(text + &grouped)
            }
            _ => None,
        }
    }
}

impl ClassifierSpec {
    /// Reads `arch:file`, a plain weights file, or a TOML file with `arch`, `weights`, `mean`, `std`.
    ///
    /// # Errors
    /// A TOML file that cannot be read.
    pub fn parse(text: &str) -> std::result::Result<Self, ClassifierError> {
        if text.ends_with(".toml") {
            return Self::from_toml(Path::new(text));
        }
        // A path may hold a colon; an architecture holds no slash.
        let (arch, weights) = match text.split_once(':') {
            Some((arch, file)) if !arch.contains(['/', '\\', '.']) && !arch.is_empty() => {
                (Some(arch.to_owned()), file)
            }
            _ => (None, text),
        };
        let weights = weights.into();
        Ok(Self { arch, weights, classes: None, normalisation: None, groups: None })
    }

    fn from_toml(path: &Path) -> std::result::Result<Self, ClassifierError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClassifierError::ReadSpec { path: path.to_owned(), source })?;
        let file: SpecFile = toml::from_str(&text).map_err(|source| {
            ClassifierError::ParseSpec { path: path.to_owned(), source: Box::new(source) }
        })?;
        let bad = |message: &str| ClassifierError::BadSpec {
            path: path.to_owned(),
            message: message.to_owned(),
        };
        let normalisation = match (file.mean, file.std) {
            (Some(mean), Some(std)) if std.iter().all(|s| *s > 0.0 && s.is_finite()) => {
                Some(Normalisation { mean, std })
            }
            (Some(_), Some(_)) => return Err(bad("`std` expected positive numbers")),
            (None, None) => None,
            _ => return Err(bad("`mean` and `std` expected together, got one of them")),
        };
        if file.classes == Some(0) {
            return Err(bad("`classes` expected at least 1, got 0"));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let weights = folder.join(file.weights);
        let SpecFile { arch, classes, groups, .. } = file;
        Ok(Self { arch, weights, classes, normalisation, groups })
    }
}

/// Tells from the names and shapes in a checkpoint which network it is of.
///
/// # Errors
/// Weights of no known architecture, of another one than `arch`, or with another number of classes;
/// groups that do not hold each class once, or that do not go with the weights.
pub fn variant(
    path: &Path,
    shapes: &BTreeMap<String, Vec<usize>>,
    arch: Option<&str>,
    groups: Option<&[Vec<usize>]>,
    n_classes: usize,
) -> std::result::Result<Variant, ClassifierError> {
    let path = path.to_owned();
    let Some(mut found) = Variant::infer(shapes) else {
        return Err(ClassifierError::UnknownWeights { path });
    };
    if let Some(expected) = arch.filter(|name| !found.backbone.is_named(name)) {
        let (expected, found) = (expected.to_owned(), found.to_string());
        return Err(ClassifierError::OtherArchitecture { path, expected, found });
    }
    if let Some(groups) = groups {
        let mut classes = groups.concat();
        classes.sort_unstable();
        if !classes.iter().copied().eq(0..n_classes) || groups.iter().any(Vec::is_empty) {
            let expected = format!("each class from 0 to {} once", n_classes.saturating_sub(1));
            return Err(ClassifierError::BadGroups { path, expected, got: format!("{groups:?}") });
        }
        let Some(grouped) = found.grouped(groups) else {
            let expected = "an ordinary network".to_owned();
            return Err(ClassifierError::BadGroups { path, expected, got: found.to_string() });
        };
        found = grouped;
    }
    if let Some(key) = found.logits_key()
        && let Some(&[rows, features]) = shapes.get(&key).map(Vec::as_slice)
        && rows != found.n_logits(n_classes)
    {
        let (expected, found) = (found.n_logits(n_classes), rows);
        return Err(ClassifierError::OtherClasses { path, key, expected, found, features });
    }
    Ok(found)
}

/// A classifier that is ready to run.
pub struct Classifier {
    network: Box<dyn Network>,
    arch: Variant,
    normalisation: Normalisation,
    device: Device,
    n_classes: usize,
    n_features: usize,
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Classifier({}, {} classes)", self.arch, self.n_classes)
    }
}

impl Classifier {
    /// Builds the network on a checkpoint.
    ///
    /// # Errors
    /// Weights of another architecture or with another number of classes; a key that is missing,
    /// has another shape, or belongs to no layer.
    pub fn load(
        weights: &StateDict,
        arch: Option<&str>,
        n_classes: usize,
        normalisation: Normalisation,
        device: &Device,
    ) -> std::result::Result<Self, ClassifierError> {
        Self::load_grouped(weights, arch, None, n_classes, normalisation, device)
    }

    /// The same with logits in groups of classes, as training by MOS leaves them.
    ///
    /// # Errors
    /// As [`Classifier::load`], and groups that do not go with the weights.
    pub fn load_grouped(
        weights: &StateDict,
        arch: Option<&str>,
        groups: Option<&[Vec<usize>]>,
        n_classes: usize,
        normalisation: Normalisation,
        device: &Device,
    ) -> std::result::Result<Self, ClassifierError> {
        let path = weights.path().to_owned();
        let found = variant(&path, &weights.shapes(), arch, groups, n_classes)?;
        let (vb, usage) = weights.builder(device);
        let network = found.build(n_classes, vb).map_err(|source| ClassifierError::Load {
            path: path.clone(),
            arch: found.to_string(),
            source,
        })?;
        let unused = usage.unused();
        if !unused.is_empty() {
            return Err(ClassifierError::Unused { path, arch: found.to_string(), unused });
        }
        let n_features = network.head().weight().dim(1).unwrap_or(0);
        Ok(Self {
            network,
            arch: found,
            normalisation,
            device: device.clone(),
            n_classes,
            n_features,
        })
    }

    /// Which network it is, and how it was trained as far as the weights tell.
    pub fn arch(&self) -> &Variant {
        &self.arch
    }

    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Weight `[n_classes, n_features]` and bias `[n_classes]` of the last layer, row-major.
    pub fn head(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let head = self.network.head();
        Ok((head.weight().flatten_all()?.to_vec1()?, head.bias().to_vec1()?))
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How images in `[0, 1]` are normalised.
    pub fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    /// The activations that [`Classifier::layers`] can give and what they are, in order of
    /// execution.
    pub fn tapped(&self) -> Vec<Layer> {
        self.network.layers()
    }

    /// The names of [`Classifier::tapped`].
    pub fn layer_names(&self) -> Vec<String> {
        self.network.layers().into_iter().map(|layer| layer.name).collect()
    }

    fn images(&self, values: &[f32], (height, width): (usize, usize)) -> Result<Tensor> {
        Tensor::from_slice(values, ((), 3, height, width), &self.device)
    }

    /// Logits and features of images in `[0, 1]`, `[n, 3, height, width]`.
    pub fn forward(&self, images: &[f32], size: (usize, usize)) -> Result<Outputs> {
        let xs = self.normalisation.apply(&self.images(images, size)?)?;
        let outputs = self.network.forward(&xs, Mode::Eval, &mut Taps::none())?;
        Ok(Outputs { logits: outputs.logits.detach(), features: outputs.features.detach() })
    }

    /// Logits and features of activations put in place of those of the stage `at`.
    ///
    /// # Shapes
    /// `activation`: `[n, channels, height, width]`
    ///
    /// # Errors
    /// A name that is no stage's, or activations of another shape than the stage has.
    pub fn forward_from(&self, at: &str, activation: &[f32], shape: &[usize]) -> Result<Outputs> {
        let stages = self.network.stage_names();
        let Some(stage) = stages.iter().position(|name| name == at) else {
            candle_core::bail!("stage expected one of {}, got `{at}`", stages.join(", "));
        };
        let xs = Tensor::from_slice(activation, shape, &self.device)?;
        let mut taps = Taps::none();
        let outputs = self.network.forward_behind(Some(stage), &xs, Mode::Eval, &mut taps)?;
        Ok(Outputs { logits: outputs.logits.detach(), features: outputs.features.detach() })
    }

    /// Named activations of images in `[0, 1]`.
    ///
    /// # Errors
    /// A name that the network does not have.
    pub fn layers(
        &self,
        images: &[f32],
        size: (usize, usize),
        names: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        let known = self.layer_names();
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            candle_core::bail!("layer expected one of {}, got `{name}`", known.join(", "));
        }
        let xs = self.normalisation.apply(&self.images(images, size)?)?;
        let mut taps = Taps::of(names);
        self.network.forward(&xs, Mode::Eval, &mut taps)?;
        Ok(taps.into_taken())
    }

    /// The gradient of `sum(cotangent * at)` with respect to images in `[0, 1]`, where `at` is
    /// `logits`, `features` or a layer.
    ///
    /// # Errors
    /// A name that the network does not have, or a cotangent of another shape.
    pub fn vjp(
        &self,
        images: &[f32],
        size: (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> Result<Vec<f32>> {
        let images = Var::from_tensor(&self.images(images, size)?)?;
        let xs = self.normalisation.apply(&images)?;
        let mut taps = Taps::of(&[at.to_owned()]);
        let outputs = self.network.forward(&xs, Mode::Eval, &mut taps)?;
        let target = match at {
            "logits" => outputs.logits,
            "features" => outputs.features,
            layer => match taps.into_taken().remove(layer) {
                Some(activation) => activation,
                None => candle_core::bail!(
                    "layer expected logits, features, {}, got `{layer}`",
                    self.layer_names().join(", ")
                ),
            },
        };
        let cotangent = Tensor::from_slice(cotangent, target.shape(), &self.device)?;
        let grads = (target * cotangent)?.sum_all()?.backward()?;
        match grads.get(&images) {
            Some(grad) => grad.flatten_all()?.to_vec1(),
            None => candle_core::bail!("`{at}` does not depend on the images"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Architecture;
    use crate::formula;
    use crate::heads::Training;

    #[test]
    fn a_spec_is_a_file_with_or_without_an_architecture() {
        let spec = |text| ClassifierSpec::parse(text).unwrap();
        assert_eq!(spec("wrn:a/b.pt").arch.as_deref(), Some("wrn"));
        assert_eq!(spec("wrn:a/b.pt").weights, Path::new("a/b.pt"));
        assert_eq!(spec("../a:b.pt").arch, None);
        assert_eq!(spec("b.th").weights, Path::new("b.th"));
    }

    #[test]
    fn the_known_checkpoints_can_be_read() {
        assert!(KnownCheckpoint::find("").is_none());
    }

    #[test]
    fn a_gradient_agrees_with_finite_differences() {
        let backbone = Architecture::ResNetCifar { blocks: 1, width: 16, projection: false };
        let network = backbone.build(3, formula::var_builder(Default::default())).unwrap();
        let training = Training::Ordinary { prefixed: false };
        let arch = Variant { backbone, training };
        let classifier = Classifier {
            n_features: 64,
            network,
            arch,
            normalisation: Normalisation { mean: [0.5; 3], std: [0.25; 3] },
            device: Device::Cpu,
            n_classes: 3,
        };
        let images = formula::uniform("images", 3 * 8 * 8, 0.0, 1.0);
        let cotangent = [1.0f32, -2.0, 0.5];
        let grad = classifier.vjp(&images, (8, 8), "logits", &cotangent).unwrap();
        let value = |images: &[f32]| -> f64 {
            let logits = classifier.forward(images, (8, 8)).unwrap().logits;
            let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            logits.iter().zip(cotangent).map(|(l, c)| f64::from(l * c)).sum()
        };
        for i in [0, 77, 191] {
            let (mut up, mut down) = (images.clone(), images.clone());
            // Small, so that few activations change sides in between.
            up[i] += 1e-3;
            down[i] -= 1e-3;
            let slope = (value(&up) - value(&down)) / 0.002;
            let g = f64::from(grad[i]);
            assert!((slope - g).abs() < 0.05 * g.abs().max(0.02), "{i}: {slope} {g}");
        }
        let err = classifier.vjp(&images, (8, 8), "layer9", &cotangent).unwrap_err();
        assert!(err.to_string().contains("layer3, got `layer9`"), "{err}");
    }
}
