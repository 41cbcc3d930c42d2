//! The services of a host that are extensions of its table: bytes in, bytes out. What they read,
//! what they refuse and how they answer is the same for every host.

use oodbench_abi::abi_stable::std_types::RVec;
use oodbench_abi::message::{
    self, ForwardFrom, ForwardSizes, ForwardWith, LayerGroups, Normalisation,
};
use oodbench_abi::{ErrorCode, ForwardOutputs, Needs, RawError, extension};
use serde::Serialize;

use crate::check::memory::{MemoryTensor, bad_input};

/// What a host does for [`answer`]. Needs and the shape of inputs are checked already.
pub(crate) trait Extended {
    /// What its detector has asked for.
    fn needs(&self) -> Needs;

    fn normalisation(&self) -> Result<Normalisation, RawError>;

    fn layer_groups(&self) -> Result<LayerGroups, RawError>;

    /// Logits and features of at least one activation put in place of those of a stage.
    fn forward_from(&self, at: &str, activation: &MemoryTensor)
    -> Result<ForwardOutputs, RawError>;

    /// Logits and features of at least one image, of the classifier that a parameter names.
    fn forward_with(&self, asset: &str, images: &MemoryTensor) -> Result<ForwardOutputs, RawError>;
}

/// What a detector is told that asks for what it has not declared.
pub(crate) fn check_needs(declared: Needs, need: Needs, service: &str) -> Result<(), RawError> {
    let missing = need.names().into_iter().filter(|name| !declared.names().contains(name));
    let missing: Vec<&str> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join("`, `");
    let message = format!("service `{service}` was not asked for: add `{missing}` to the needs");
    Err(RawError::new(ErrorCode::UNAVAILABLE, message))
}

/// Answers a detector that asks for an extension.
///
/// # Errors
/// An id that is not known here, a need that was not declared, input that is no such message, and
/// what the service says.
pub(crate) fn answer(host: &impl Extended, id: &str, input: &[u8]) -> Result<RVec<u8>, RawError> {
    let needs = host.needs();
    match id {
        extension::NORMALISATION => {
            let any = [Needs::FORWARD, Needs::GRADIENT, Needs::LAYERS];
            if !any.iter().any(|&need| needs.contains(need)) {
                check_needs(needs, Needs::FORWARD, "normalisation")?;
            }
            json(&host.normalisation()?)
        }
        extension::LAYER_GROUPS => {
            check_needs(needs, Needs::LAYERS, "layer_groups")?;
            json(&host.layer_groups()?)
        }
        extension::FORWARD_FROM => {
            check_needs(needs, Needs::FORWARD.and(Needs::LAYERS), "forward_from")?;
            let (ForwardFrom { at, shape }, values) = message::decode(input).map_err(bad_input)?;
            let activation = array("activation", "[n, channels, height, width]", shape, values)?;
            outputs(&activation, |activation| host.forward_from(&at, activation))
        }
        extension::FORWARD_WITH => {
            check_needs(needs, Needs::FORWARD.and(Needs::ASSETS), "forward_with")?;
            let (ForwardWith { asset, shape }, values) =
                message::decode(input).map_err(bad_input)?;
            let expected = "[n, 3, height, width]";
            let images = array("images", expected, shape, values)?;
            if images.shape[1] != 3 {
                let got = &images.shape;
                return Err(bad_input(format!("images expected {expected}, got {got:?}")));
            }
            outputs(&images, |images| host.forward_with(&asset, images))
        }
        _ => {
            let message = format!("unknown extension `{id}`");
            Err(RawError::new(ErrorCode::UNSUPPORTED, message))
        }
    }
}

fn json(answer: &impl Serialize) -> Result<RVec<u8>, RawError> {
    let bytes = serde_json::to_vec(answer);
    bytes.map(RVec::from).map_err(|err| RawError::new(ErrorCode::FAILED, err.to_string()))
}

/// The array of a message, which has four dimensions and finite values.
fn array(
    what: &str,
    expected: &str,
    shape: Vec<usize>,
    data: Vec<f32>,
) -> Result<MemoryTensor, RawError> {
    let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let is_empty_image = shape.iter().skip(1).any(|&size| size == 0);
    if shape.len() != 4 || is_empty_image || elements != Some(data.len()) {
        let n = data.len();
        return Err(bad_input(format!("{what} expected {expected}, got {shape:?} and {n} values")));
    }
    if let Some(i) = data.iter().position(|value| !value.is_finite()) {
        return Err(bad_input(format!("{what} expected finite values, got `{}` at {i}", data[i])));
    }
    Ok(MemoryTensor { data, shape })
}

/// What a classifier gives, as a message; it is not asked about nothing.
fn outputs(
    input: &MemoryTensor,
    run: impl FnOnce(&MemoryTensor) -> Result<ForwardOutputs, RawError>,
) -> Result<RVec<u8>, RawError> {
    let n = input.n_rows();
    if n == 0 {
        let sizes = ForwardSizes { n, n_classes: 0, n_features: 0 };
        return Ok(message::encode(&sizes, &[]).into());
    }
    let ForwardOutputs { logits, features } = run(input)?;
    let sizes = ForwardSizes { n, n_classes: logits.len() / n, n_features: features.len() / n };
    Ok(message::encode(&sizes, &[&logits, &features]).into())
}
