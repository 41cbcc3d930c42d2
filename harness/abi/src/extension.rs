//! Ids of what detectors and hosts may offer beyond their tables.
//!
//! An id ends in a revision. Whoever does not know it answers `UNSUPPORTED`; nobody needs to know
//! all of them.

/// Detector: the fitted state as bytes, `[after fit]`. Input: nothing.
pub const SAVE_STATE: &str = "oodbench.state.save/1";

/// Detector: takes the place of `fit`. Input: what [`SAVE_STATE`] gave for the same parameters, of
/// which those marked [`READOUT`](crate::ParamKind::READOUT) may differ.
pub const LOAD_STATE: &str = "oodbench.state.load/1";

/// Detector: scores several sets of parameters in one pass, `[after fit]`. Input: a JSON array of
/// parameter objects, which differ from the detector's own in parameters marked
/// [`READOUT`](crate::ParamKind::READOUT) alone; absent ones take their defaults. Output: a JSON
/// array of as many [`VariantFault`]s, `null` for each set that can be read out of what was fitted.
///
/// When all of them are `null`, `score` writes a row of scores for each set from then on: its `out`
/// is `[set, image]`, and has as many elements. Otherwise nothing changes. An empty array goes back
/// to the detector's own parameters.
///
/// [`VariantFault`]: crate::descriptor::VariantFault
pub const VARIANTS: &str = "oodbench.variants/1";

/// Host: how the classifier normalises images in `[0, 1]` (`Needs::FORWARD`, `Needs::GRADIENT` or
/// `Needs::LAYERS`). Input: nothing. Output: a [`Normalisation`] as JSON.
///
/// [`Normalisation`]: crate::message::Normalisation
pub const NORMALISATION: &str = "oodbench.normalisation/1";

/// Host: what the names of [`Host::layer_names`](crate::Host::layer_names) stand for
/// (`Needs::LAYERS`). Input: nothing. Output: [`LayerGroups`] as JSON.
///
/// [`LayerGroups`]: crate::message::LayerGroups
pub const LAYER_GROUPS: &str = "oodbench.layer-groups/1";

/// Host: logits and features of activations put in place of those of a stage (`Needs::FORWARD` and
/// `Needs::LAYERS`). Input: a [message](crate::message) with the header [`ForwardFrom`] and the
/// activations. Output: one with the header [`ForwardSizes`], logits and features.
///
/// [`ForwardFrom`]: crate::message::ForwardFrom
/// [`ForwardSizes`]: crate::message::ForwardSizes
pub const FORWARD_FROM: &str = "oodbench.forward-from/1";

/// Host: logits and features that another classifier gives for images in `[0, 1]`
/// (`Needs::FORWARD` and `Needs::ASSETS`). Its weights are a file that a parameter names. Input: a
/// [message](crate::message) with the header [`ForwardWith`] and the images. Output: one with the
/// header [`ForwardSizes`], logits and features.
///
/// [`ForwardWith`]: crate::message::ForwardWith
/// [`ForwardSizes`]: crate::message::ForwardSizes
pub const FORWARD_WITH: &str = "oodbench.forward-with/1";
