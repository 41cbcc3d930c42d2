//! The network and the images of `resnet_layers.safetensors`, both by formula.
//!
//! The network is a ResNet18_32x32 whose last weight is ten times the formula's, with a stored
//! bias. Images mix a fine, a coarse and a flat pattern; out-of-distribution ones are cubed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use candle_core::{Device, Tensor};
use oodbench_engine::check::memory::{
    ImageNetwork, MemoryData, MemoryHead, MemorySplit, MemoryTensor,
};
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::formula;
use oodbench_tests::network;
use serde_json::Value;

use super::{Tensors, json, numbers, shared, tensors};

const SIDE: usize = 32;
const ARCHITECTURE: Architecture = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
pub const NORMALISATION: Normalisation =
    Normalisation { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };

/// What the reference recorded, and the data and the network behind it.
pub struct ResNetSet {
    /// Training labels are the images' numbers modulo the number of classes.
    pub data: Arc<MemoryData>,
    pub network: Arc<dyn ImageNetwork>,
    pub test: MemorySplit,
    pub ood: MemorySplit,
    /// `resnet_layers.safetensors`
    pub references: Tensors,
    /// `resnet_layers.json`
    pub results: Value,
}

/// The set, built once for all tests.
pub fn set() -> &'static ResNetSet {
    static SET: LazyLock<ResNetSet> = LazyLock::new(ResNetSet::open);
    &SET
}

impl ResNetSet {
    /// Builds network and images, and checks both against the stored outputs.
    fn open() -> Self {
        let folder = shared().join("golden/openood");
        let references = tensors(&folder.join("resnet_layers.safetensors"));
        let results = json(&folder.join("resnet_layers.json"));
        let bias = &references["net.fc.bias"];
        let n_classes = bias.dim(0).expect("a vector");
        let classifier = network::classifier(&weights(bias), n_classes, NORMALISATION);
        let n_features = classifier.n_features();
        let (weight, bias) = classifier.head().expect("a head");
        let network: Arc<dyn ImageNetwork> = Arc::new(classifier);
        let split = |name: &str, stream: &str, cubed: bool| {
            let logits = &references[&format!("{name}.logits")];
            let n = logits.dim(0).expect("a matrix");
            let images = images(stream, n, cubed);
            if name == "test" {
                first_image_is_theirs(&images, &references);
            }
            let outputs = network.forward(&images, (SIDE, SIDE)).expect("a forward pass");
            let ours = |what: &str, ours: &[f32]| {
                let key = format!("{name}.{what}");
                let expected = numbers(&references, &key);
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
        let labelled = |split: MemorySplit| {
            let labels = (0..split.len()).map(|i| (i % n_classes) as i64).collect();
            MemorySplit { labels, ..split }
        };
        let data = MemoryData {
            n_classes,
            n_features,
            image_size: Some((SIDE, SIDE)),
            head: Some(MemoryHead { weight, bias }),
            train: labelled(split("train", "input_train", false)),
            val: labelled(split("val", "input_val", false)),
            val_ood: Some(split("ood_val", "input_ood_val", true)),
        };
        let test = split("test", "input", false);
        let ood = split("ood", "input_ood", true);
        Self { data: Arc::new(data), network, test, ood, references, results }
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
pub fn weights(bias: &Tensor) -> HashMap<String, Tensor> {
    let n_classes = bias.dim(0).expect("a vector");
    let mut weights = network::formula_weights(ARCHITECTURE, n_classes);
    let head = weights["fc.weight"].affine(10.0, 0.0).expect("ten times the formula");
    weights.insert("fc.weight".to_owned(), head);
    weights.insert("fc.bias".to_owned(), bias.clone());
    weights
}
