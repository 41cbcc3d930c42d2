//! Running a detector on arrays in memory: the data, the host's services on it, and the calls.
//!
//! The conformance check fits worked examples this way, and the golden tests reference data.
//! Nothing that the needs do not declare is handed over or offered.

mod data;
mod host;

use std::path::Path;

use oodbench_abi::abi_stable::std_types::{RNone, RSlice, RSliceMut, RSome};
use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{DetectorBox, ErrorCode, FitData, ForwardOutputs, Needs, RawError, ScoreBatch};

pub use data::{MemoryData, MemoryHead, MemorySplit, MemoryTensor};
pub use host::MemoryHost;

/// What runs images of a detector's own; images are in `[0, 1]`, `[n, 3, height, width]`.
pub trait ImageNetwork: Send + Sync {
    /// Logits and features.
    ///
    /// # Errors
    /// Images that it does not take.
    fn forward(&self, images: &[f32], size: (usize, usize)) -> Result<ForwardOutputs, RawError>;

    /// Logits and features of activations put in place of those of a stage.
    ///
    /// # Errors
    /// A layer that is no stage, activations of another shape.
    fn forward_from(&self, at: &str, activation: &MemoryTensor)
    -> Result<ForwardOutputs, RawError>;

    /// Logits and features that another network gives, whose weights are this file.
    ///
    /// # Errors
    /// A file that holds no such weights.
    fn forward_with(
        &self,
        weights: &Path,
        images: &[f32],
        size: (usize, usize),
    ) -> Result<ForwardOutputs, RawError>;

    /// The gradient of `sum(cotangent * at)` with respect to the images.
    ///
    /// # Errors
    /// A layer that it does not have, a cotangent of another shape.
    fn vjp(
        &self,
        images: &[f32],
        size: (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> Result<Vec<f32>, RawError>;

    /// How it normalises images.
    fn normalisation(&self) -> Normalisation;

    /// The names of its layers, in order of execution.
    fn layer_names(&self) -> Vec<String>;

    /// Its layers by what they are.
    fn layer_groups(&self) -> LayerGroups;

    /// The activations of layers, each `[n, …]`, in the order of `names`, from one pass.
    ///
    /// # Errors
    /// A layer that it does not have, or that is named twice.
    fn layers(
        &self,
        images: &[f32],
        size: (usize, usize),
        names: &[String],
    ) -> Result<Vec<MemoryTensor>, RawError>;
}

/// Fits a detector; it sees the splits, and of them the tensors, that its needs declare.
///
/// # Errors
/// What the detector says.
pub fn fit(detector: &mut DetectorBox, needs: Needs, data: &MemoryData) -> Result<(), RawError> {
    let nothing = MemorySplit::default();
    let asked = |need: Needs, split| if needs.contains(need) { split } else { &nothing };
    let val_ood = data.val_ood.as_ref().filter(|_| needs.contains(Needs::VAL_OOD));
    let data = FitData {
        train: asked(Needs::TRAIN, &data.train).view(needs),
        val: asked(Needs::VAL, &data.val).view(needs),
        val_ood: match val_ood {
            Some(split) => RSome(split.view(needs)),
            None => RNone,
        },
        n_classes: data.n_classes,
        n_features: data.n_features,
    };
    detector.fit(data).into_result()
}

/// Scores a batch; image `i` has the key `keys[i]`. A score that the detector did not write is NaN.
///
/// # Errors
/// What the detector says.
pub fn score(
    detector: &mut DetectorBox,
    needs: Needs,
    batch: &MemorySplit,
    keys: &[u64],
) -> Result<Vec<f32>, RawError> {
    score_variants(detector, needs, batch, keys, 1)
}

/// Scores a batch with a detector that was told of so many variants: `[variant, image]`.
///
/// # Errors
/// What the detector says.
pub fn score_variants(
    detector: &mut DetectorBox,
    needs: Needs,
    batch: &MemorySplit,
    keys: &[u64],
    n_variants: usize,
) -> Result<Vec<f32>, RawError> {
    let raw = ScoreBatch {
        len: keys.len(),
        keys: RSlice::from_slice(keys),
        logits: batch.logits.view(needs.contains(Needs::LOGITS)),
        features: batch.features.view(needs.contains(Needs::FEATURES)),
        images: batch.images.view(needs.contains(Needs::IMAGES)),
    };
    let mut scores = vec![f32::NAN; n_variants * keys.len()];
    detector.score(raw, RSliceMut::from_mut_slice(&mut scores)).into_result()?;
    Ok(scores)
}

fn unavailable(message: String) -> RawError {
    RawError::new(ErrorCode::UNAVAILABLE, message)
}

/// Data of another shape or content than expected.
pub(crate) fn bad_input(message: String) -> RawError {
    RawError::new(ErrorCode::BAD_INPUT, message)
}
