//! A real classifier behind a host whose data lie in memory.

use std::path::Path;

use candle_core::Tensor;
use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{ErrorCode, ForwardOutputs, RawError};
use oodbench_nn::arch::{Layer, LayerKind, Outputs};
use oodbench_nn::classifier::Classifier;

use super::memory::{ImageNetwork, MemoryTensor, bad_input};
use crate::classifier::load_other;
use crate::text::chain;

/// A service failed.
pub(crate) fn failed(error: impl std::error::Error + 'static) -> RawError {
    let full = oodbench_nn::device::is_out_of_memory(&error);
    let code = if full { ErrorCode::OUT_OF_MEMORY } else { ErrorCode::FAILED };
    RawError::new(code, chain(&error))
}

/// The elements of a tensor, row-major.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>, RawError> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)
}

/// What the classifier gives, as the ABI has it.
pub(crate) fn outputs(outputs: &Outputs) -> Result<ForwardOutputs, RawError> {
    let (logits, features) = (values(&outputs.logits)?, values(&outputs.features)?);
    Ok(ForwardOutputs { logits: logits.into(), features: features.into() })
}

/// Layers by what they are.
pub(crate) fn groups(layers: Vec<Layer>) -> LayerGroups {
    let mut groups = LayerGroups::default();
    for Layer { name, kind } in layers {
        match kind {
            LayerKind::Stage => groups.stages.push(name),
            LayerKind::Map => groups.maps.push(name),
            LayerKind::Head => groups.heads.push(name),
        }
    }
    groups
}

/// Normalisation as the ABI has it.
pub(crate) fn normalisation(classifier: &Classifier) -> Normalisation {
    let own = classifier.normalisation();
    Normalisation { mean: own.mean, std: own.std }
}

/// The layers of a batch, in the order of `names`.
pub(crate) fn layers(
    classifier: &Classifier,
    images: &[f32],
    size: (usize, usize),
    names: &[String],
) -> Result<Vec<MemoryTensor>, RawError> {
    let mut taken = classifier.layers(images, size, names).map_err(failed)?;
    let layer = |name: &String| {
        let tensor = taken.remove(name);
        let tensor = tensor.ok_or_else(|| bad_input(format!("layer `{name}` was named twice")))?;
        Ok(MemoryTensor::new(values(&tensor)?, tensor.dims()))
    };
    names.iter().map(layer).collect()
}

impl ImageNetwork for Classifier {
    fn forward(&self, images: &[f32], size: (usize, usize)) -> Result<ForwardOutputs, RawError> {
        outputs(&Classifier::forward(self, images, size).map_err(failed)?)
    }

    fn forward_from(
        &self,
        at: &str,
        activation: &MemoryTensor,
    ) -> Result<ForwardOutputs, RawError> {
        let MemoryTensor { data, shape } = activation;
        outputs(&Classifier::forward_from(self, at, data, shape).map_err(failed)?)
    }

    fn forward_with(
        &self,
        weights: &Path,
        images: &[f32],
        size: (usize, usize),
    ) -> Result<ForwardOutputs, RawError> {
        let other = load_other(weights, self.n_classes(), self.normalisation(), self.device())
            .map_err(failed)?;
        ImageNetwork::forward(&other, images, size)
    }

    fn vjp(
        &self,
        images: &[f32],
        size: (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> Result<Vec<f32>, RawError> {
        Classifier::vjp(self, images, size, at, cotangent).map_err(failed)
    }

    fn normalisation(&self) -> Normalisation {
        normalisation(self)
    }

    fn layer_names(&self) -> Vec<String> {
        Classifier::layer_names(self)
    }

    fn layer_groups(&self) -> LayerGroups {
        groups(self.tapped())
    }

    fn layers(
        &self,
        images: &[f32],
        size: (usize, usize),
        names: &[String],
    ) -> Result<Vec<MemoryTensor>, RawError> {
        layers(self, images, size, names)
    }
}
