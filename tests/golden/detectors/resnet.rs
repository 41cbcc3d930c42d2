//! The network and the images of `resnet_layers.safetensors`, both by formula.
//!
//! The network is a ResNet18_32x32 whose last weight is ten times the formula's, with a stored
//! bias. Images mix a fine, a coarse and a flat pattern; out-of-distribution ones are cubed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use oodbench_engine::check::memory::{ImageNetwork, MemoryData, MemorySplit, MemoryTensor};
use oodbench_nn::arch::Architecture;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{Classifier, Normalisation};
use oodbench_nn::formula;
use oodbench_sdk::__private::abi::{ErrorCode, ForwardOutputs, RawError};
use serde_json::{Value, json};

use super::{Tensors, numbers};

const SIDE: usize = 32;
const ARCHITECTURE: Architecture = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
const NORMALISATION: Normalisation =
    Normalisation { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };

/// Parameters from the name of a variant: `T1000.eps0.0014`.
///
/// # Panics
///
/// A name that is not understood, because its variant would go untested.
pub fn params(detector: &str, settings: &str) -> Value {
    match (detector, settings.strip_prefix('T').and_then(|rest| rest.split_once(".eps"))) {
        ("odin", Some((temperature, noise))) => json!({
            "temperature": temperature.parse::<f64>().expect("a temperature"),
            "noise": noise.parse::<f64>().expect("a step"),
        }),
        _ => panic!("{detector}.{settings}: this test cannot tell its parameters"),
    }
}

pub struct ResNetSet {
    pub data: Arc<MemoryData>,
    pub network: Arc<FormulaNetwork>,
    pub test: MemorySplit,
    pub ood: MemorySplit,
}

impl ResNetSet {
    /// Builds network and images, and checks both against the stored outputs.
    pub fn new(references: &Tensors) -> Self {
        let classifier = classifier(&references["net.fc.bias"]);
        let data = MemoryData {
            n_classes: classifier.n_classes(),
            n_features: classifier.n_features(),
            image_size: Some((SIDE, SIDE)),
            ..MemoryData::default()
        };
        let network = Arc::new(FormulaNetwork { classifier });
        let split = |name: &str, stream: &str, cubed: bool| {
            let logits = &references[&format!("{name}.logits")];
            let n = logits.dim(0).expect("a matrix");
            let images = images(stream, n, cubed);
            if name == "test" {
                first_image_is_theirs(&images, references);
            }
            let outputs = network.forward(&images, (SIDE, SIDE)).expect("a forward pass");
            let ours = |what: &str, ours: &[f32]| {
                let key = format!("{name}.{what}");
                let expected = numbers(references, &key);
                let size = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
                let off = expected.iter().zip(ours).map(|(a, &b)| (a - f64::from(b)).abs());
                let off = off.fold(0.0, f64::max) / size;
                assert!(off < 1e-5, "{key}: off by {off:.1e} of the greatest");
                MemoryTensor::new(ours.to_vec(), references[&key].dims())
            };
            MemorySplit {
                labels: Vec::new(),
                logits: ours("logits", &outputs.logits),
                features: ours("features", &outputs.features),
                images: MemoryTensor::new(images, &[n, 3, SIDE, SIDE]),
            }
        };
        let test = split("test", "input", false);
        let ood = split("ood", "input_ood", true);
        Self { data: Arc::new(data), network, test, ood }
    }
}

/// Whether the first image, normalised, is the stored one.
fn first_image_is_theirs(images: &[f32], references: &Tensors) {
    let first = Tensor::from_slice(&images[..3 * SIDE * SIDE], (1, 3, SIDE, SIDE), &Device::Cpu);
    let ours = first.and_then(|first| NORMALISATION.apply(&first)?.flatten_all()?.to_vec1::<f32>());
    let expected = numbers(references, "test0.input_normalised");
    for (ours, expected) in ours.expect("an image").iter().zip(expected) {
        assert!((f64::from(*ours) - expected).abs() < 1e-6, "{ours} {expected}");
    }
}

/// `0.1 fine + 0.3 coarse + 0.6 colour` in f32, of the streams that belong to a name.
fn images(stream: &str, n: usize, cubed: bool) -> Vec<f32> {
    const CELLS: usize = 4;
    let uniform = |name: &str, per_image: usize| formula::uniform(name, n * per_image, 0.0, 1.0);
    let fine = uniform(stream, 3 * SIDE * SIDE);
    let coarse = uniform(&format!("{stream}/coarse"), 3 * CELLS * CELLS);
    let colour = uniform(&format!("{stream}/colour"), 3);
    let pixel = |i: usize| {
        let (channel, y, x) = (i / (SIDE * SIDE), i / SIDE % SIDE, i % SIDE);
        let cell = (y / (SIDE / CELLS)) * CELLS + x / (SIDE / CELLS);
        let v =
            0.1 * fine[i] + 0.3 * coarse[channel * CELLS * CELLS + cell] + 0.6 * colour[channel];
        if cubed { v * v * v } else { v }
    };
    (0..fine.len()).map(pixel).collect()
}

/// The weights: the formula's, but for the last layer.
fn weights(bias: &Tensor) -> HashMap<String, Tensor> {
    let n_classes = bias.dim(0).expect("a vector");
    let weights = Arc::new(Mutex::new(HashMap::new()));
    let backend: Box<dyn SimpleBackend> = Box::new(Recorder { weights: Arc::clone(&weights) });
    ARCHITECTURE
        .build(n_classes, VarBuilder::from_backend(backend, DType::F32, Device::Cpu))
        .expect("a network");
    let mut weights = std::mem::take(&mut *weights.lock().expect("nobody else holds it"));
    let head = weights["fc.weight"].affine(10.0, 0.0).expect("ten times the formula");
    weights.insert("fc.weight".to_owned(), head);
    weights.insert("fc.bias".to_owned(), bias.clone());
    weights
}

/// The classifier, loaded as a checkpoint is.
fn classifier(bias: &Tensor) -> Classifier {
    let n_classes = bias.dim(0).expect("a vector");
    let bytes = safetensors::serialize(&weights(bias), None).expect("weights in f32");
    let weights = StateDict::from_bytes(&bytes, Path::new("formula")).expect("a state dict");
    Classifier::load(&weights, None, n_classes, NORMALISATION, &Device::Cpu).expect("a classifier")
}

/// Gives weights by formula and keeps them.
struct Recorder {
    weights: Arc<Mutex<HashMap<String, Tensor>>>,
}

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: candle_nn::Init,
        _dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = Tensor::from_vec(formula::weight(name, shape.dims()), shape, device)?;
        let mut weights = self.weights.lock().expect("no thread panics while it holds it");
        weights.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> Result<Tensor> {
        candle_core::bail!("formula weight `{name}` needs a shape")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}

/// The classifier as a memory host runs it.
pub struct FormulaNetwork {
    classifier: Classifier,
}

fn failed(error: candle_core::Error) -> RawError {
    RawError::new(ErrorCode::FAILED, error.to_string())
}

fn values(tensor: &Tensor) -> std::result::Result<Vec<f32>, RawError> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)
}

impl ImageNetwork for FormulaNetwork {
    fn forward(
        &self,
        images: &[f32],
        size: (usize, usize),
    ) -> std::result::Result<ForwardOutputs, RawError> {
        let outputs = self.classifier.forward(images, size).map_err(failed)?;
        Ok(ForwardOutputs {
            logits: values(&outputs.logits)?.into(),
            features: values(&outputs.features)?.into(),
        })
    }

    fn vjp(
        &self,
        images: &[f32],
        size: (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> std::result::Result<Vec<f32>, RawError> {
        self.classifier.vjp(images, size, at, cotangent).map_err(failed)
    }

    fn layer_names(&self) -> Vec<String> {
        self.classifier.layer_names()
    }

    fn layer(
        &self,
        images: &[f32],
        size: (usize, usize),
        name: &str,
    ) -> std::result::Result<MemoryTensor, RawError> {
        let names = [name.to_owned()];
        let mut layers = self.classifier.layers(images, size, &names).map_err(failed)?;
        let layer = layers.remove(name).expect("the layers that were asked for");
        Ok(MemoryTensor::new(values(&layer)?, layer.dims()))
    }
}
