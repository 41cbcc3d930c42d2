//! A classifier: an architecture, weights and the normalisation that belongs to them.

mod error;
mod known;
mod spec;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use candle_core::{Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::arch::{Layer, Network, Outputs, Taps};
use crate::checkpoint::StateDict;
use crate::heads::Variant;
use crate::layers::Mode;
pub use error::ClassifierError;
pub use known::KnownCheckpoint;
pub use spec::ClassifierSpec;
pub use stream::{Answer, Pending, Stream};

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

    /// Named activations of images in `[0, 1]`. The network runs as far as these need it.
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
        self.network.fill(&xs, Mode::Eval, &mut taps)?;
        Ok(taps.into_taken())
    }

    /// The gradient of `sum(cotangent * at)` with respect to images in `[0, 1]`, where `at` is
    /// `logits`, `features` or a layer. The network runs as far as that needs it.
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
        let outputs = || self.network.forward(&xs, Mode::Eval, &mut Taps::none());
        let target = match at {
            "logits" => outputs()?.logits,
            "features" => outputs()?.features,
            layer => {
                let mut taps = Taps::of(&[layer.to_owned()]);
                self.network.fill(&xs, Mode::Eval, &mut taps)?;
                match taps.into_taken().remove(layer) {
                    Some(activation) => activation,
                    None => candle_core::bail!(
                        "layer expected logits, features, {}, got `{layer}`",
                        self.layer_names().join(", ")
                    ),
                }
            }
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
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::arch::Architecture;
    use crate::formula;
    use crate::heads::Training;
    use crate::layers::Linear;

    fn classifier() -> Classifier {
        let backbone = Architecture::ResNetCifar { blocks: 1, width: 16, projection: false };
        let network = backbone.build(3, formula::var_builder(Default::default())).unwrap();
        let training = Training::Ordinary { prefixed: false };
        Classifier {
            n_features: 64,
            network,
            arch: Variant { backbone, training },
            normalisation: Normalisation { mean: [0.5; 3], std: [0.25; 3] },
            device: Device::Cpu,
            n_classes: 3,
        }
    }

    /// A network that counts the stages it runs.
    struct Counted {
        network: Box<dyn Network>,
        stages: Arc<AtomicUsize>,
        finishes: Arc<AtomicUsize>,
    }

    impl Network for Counted {
        fn layers(&self) -> Vec<Layer> {
            self.network.layers()
        }

        fn run_stage(
            &self,
            stage: usize,
            xs: &Tensor,
            mode: Mode,
            taps: &mut Taps,
        ) -> Result<Tensor> {
            self.stages.fetch_add(1, Relaxed);
            self.network.run_stage(stage, xs, mode, taps)
        }

        fn finish(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
            self.finishes.fetch_add(1, Relaxed);
            self.network.finish(xs, mode, taps)
        }

        fn head(&self) -> &Linear {
            self.network.head()
        }
    }

    #[test]
    fn activations_and_gradients_of_a_layer_are_those_of_the_whole_network_and_stop_there() {
        let mut classifier = classifier();
        let images = formula::uniform("images", 2 * 3 * 8 * 8, 0.0, 1.0);
        // Whatever layer comes last, all of the network has run where logits are asked for.
        let var = Var::from_tensor(&classifier.images(&images, (8, 8)).unwrap()).unwrap();
        let xs = classifier.normalisation.apply(&var).unwrap();
        let mut taps = Taps::of(&classifier.layer_names());
        classifier.network.forward(&xs, Mode::Eval, &mut taps).unwrap();
        let all = taps.into_taken();
        let (stages, finishes) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        classifier.network = Box::new(Counted {
            network: classifier.network,
            stages: Arc::clone(&stages),
            finishes: Arc::clone(&finishes),
        });
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, n_stages) in [("conv1", 1), ("stem", 1), ("layer1.0.conv2", 2), ("layer3", 4)] {
            let cotangent = formula::uniform(name, all[name].elem_count(), -1.0, 1.0);
            let weights = Tensor::from_slice(&cotangent, all[name].shape(), &Device::Cpu).unwrap();
            let sum = (&all[name] * weights).unwrap().sum_all().unwrap();
            let expected = values(sum.backward().unwrap().get(&var).unwrap());
            let got = classifier.vjp(&images, (8, 8), name, &cotangent).unwrap();
            assert_eq!(got, expected, "{name}");
            assert_eq!(stages.swap(0, Relaxed), n_stages, "{name}");
            let got = classifier.layers(&images, (8, 8), &[name.to_owned()]).unwrap();
            assert_eq!(values(&got[name]), values(&all[name]), "{name}");
            assert_eq!(stages.swap(0, Relaxed), n_stages, "{name}");
        }
        assert_eq!(finishes.load(Relaxed), 0);
    }

    #[test]
    fn a_gradient_agrees_with_finite_differences() {
        let classifier = classifier();
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
