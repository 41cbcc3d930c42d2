//! Classifiers whose weights follow from formulas, loaded as checkpoints are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use oodbench_nn::arch::Architecture;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{Classifier, Normalisation};
use oodbench_nn::formula;

/// The weights of an architecture, by key, each from the stream with its name.
///
/// # Panics
///
/// When the architecture cannot be built.
pub fn formula_weights(architecture: Architecture, n_classes: usize) -> HashMap<String, Tensor> {
    let weights = Arc::new(Mutex::new(HashMap::new()));
    let backend: Box<dyn SimpleBackend> = Box::new(Recorder { weights: Arc::clone(&weights) });
    architecture
        .build(n_classes, VarBuilder::from_backend(backend, DType::F32, Device::Cpu))
        .expect("a network");
    std::mem::take(&mut *weights.lock().expect("nobody else holds it"))
}

/// A classifier with these weights.
///
/// # Panics
///
/// When they are of no architecture.
pub fn classifier(
    weights: &HashMap<String, Tensor>,
    n_classes: usize,
    normalisation: Normalisation,
) -> Classifier {
    let bytes = safetensors::serialize(weights, None).expect("weights in f32");
    let weights = StateDict::from_bytes(&bytes, Path::new("formula")).expect("a state dict");
    Classifier::load(&weights, None, n_classes, normalisation, &Device::Cpu).expect("a classifier")
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
