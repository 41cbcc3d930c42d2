//! Ids of what detectors and hosts may offer beyond their tables.
//!
//! An id ends in a revision. Whoever does not know it answers `UNSUPPORTED`; nobody needs to know
//! all of them.

/// Detector: the fitted state as bytes, `[after fit]`. Input: nothing.
pub const SAVE_STATE: &str = "oodbench.state.save/1";

/// Detector: takes the place of `fit`. Input: what [`SAVE_STATE`] gave for the same parameters.
pub const LOAD_STATE: &str = "oodbench.state.load/1";
