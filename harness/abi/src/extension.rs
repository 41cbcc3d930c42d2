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
