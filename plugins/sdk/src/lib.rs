//! What a detector is written with: the trait [`Detector`] and one line of [`export_pack!`].
//!
//! A detector is one plain Rust file. It declares what it needs in its [`Info`]; the host hands
//! it that and nothing else. Scores are *higher = more out-of-distribution*, always.
//!
//! ```
//! use oodbench_sdk::prelude::*;
//!
//! /// Negative greatest logit.
//! pub struct MaxLogit;
//!
//! impl Detector for MaxLogit {
//!     type Params = NoParams;
//!
//!     fn info() -> Info {
//!         Info {
//!             id: "max-logit",
//!             title: "Maximum logit",
//!             summary: "the greatest logit, negated",
//!             needs: Needs::LOGITS,
//!             example: Example::of_logits(&[&[2.0, 1.0], &[0.5, 3.0]], &[-2.0, -3.0]),
//!             ..Info::default()
//!         }
//!     }
//!
//!     fn new(_params: NoParams, _host: Host) -> Result<Self> {
//!         Ok(Self)
//!     }
//!
//!     fn score(&mut self, batch: &Batch, scores: &mut [f32]) -> Result<()> {
//!         for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
//!             *score = -logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//!
//! In a crate of `crate-type = ["cdylib"]` the line `oodbench_sdk::export_pack!(MaxLogit);` makes
//! it a pack; `oodbench plugin check FILE` tests it.

#![deny(missing_docs)]

mod bridge;
mod data;
mod error;
mod example;
mod export;
mod host;
mod info;

pub use data::{Batch, FitData, Matrix, Split};
pub use error::{Error, Result};
pub use example::Example;
pub use host::{Forward, Head, Host, ImageBatch, Layer};
pub use info::{Info, Param};
pub use oodbench_abi::message::{LayerGroups, Normalisation};
pub use oodbench_abi::{DetectorBox, ExampleSplit, HostBox, Needs};
pub use serde;
pub use serde_json;

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the macro expands to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::bridge::{create, descriptor, guarded};
    pub use oodbench_abi as abi;
}

/// Makes a detector without a library around it, as the host would get it: for tests of a detector
/// in its own crate.
///
/// # Errors
/// Parameters, a JSON object, that are unknown, of another type, or out of range.
pub fn create<D: Detector>(params: &str, host: HostBox) -> Result<DetectorBox> {
    bridge::create::<D>(params, host)
}

/// What most detectors import.
pub mod prelude {
    pub use crate::serde::{self, Deserialize, Serialize};
    pub use crate::{
        Batch, Detector, Error, Example, ExampleSplit, FitData, Host, Info, Matrix, Needs,
        NoParams, Param, Result, Split,
    };
}

/// A detector.
pub trait Detector: Send + Sized + 'static {
    /// Parameters with their defaults. Derive `Serialize` and `Deserialize` with
    /// `#[serde(default, deny_unknown_fields)]`; each field has a [`Param`] in the info.
    type Params: Serialize + DeserializeOwned + Default + Send;

    /// What is known of it without running it.
    fn info() -> Info;

    /// Makes a detector. Parameters do not change afterwards; a sweep is more detectors.
    ///
    /// # Errors
    /// Parameters out of range.
    fn new(params: Self::Params, host: Host) -> Result<Self>;

    /// Learns from in-distribution images. Called once before `score`, or not at all when a state
    /// is loaded.
    ///
    /// # Errors
    /// Data that it cannot be fitted on.
    fn fit(&mut self, _data: &FitData<'_>) -> Result<()> {
        Ok(())
    }

    /// Writes one finite score for each image of the batch, higher = more out-of-distribution.
    /// A score depends on its image alone, not on the rest of the batch.
    ///
    /// # Errors
    /// What the host's services say.
    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()>;

    /// Writes the scores for several sets of parameters, `[variant, image]`, row by row, each the
    /// same to the last bit as [`Detector::score`] of a detector with these parameters. They differ
    /// from the detector's own, which may not be among them, in parameters marked
    /// [`Param::readout`] alone; a detector with such a parameter must have this method. Neither
    /// `batch` nor `variants` is empty, and [`Detector::check_readout`] has accepted each variant.
    ///
    /// # Errors
    /// What the host's services say.
    fn score_variants(
        &mut self,
        _batch: &Batch<'_>,
        _variants: &[Self::Params],
        _scores: &mut [f32],
    ) -> Result<()> {
        Err(Error::unsupported("this detector scores one set of parameters at a time"))
    }

    /// Whether scores for these parameters can be read out of what was fitted: called after `fit`
    /// or `load_state` and before the first score, with the detector's own parameters or with each
    /// of its variants. Here belongs what must be known of a [`Param::readout`] and depends on the
    /// data; what does not belongs to `new`, which has accepted them already.
    ///
    /// # Errors
    /// Parameters that do not go with the data.
    fn check_readout(&self, _params: &Self::Params) -> Result<()> {
        Ok(())
    }

    /// What `fit` has learned, as bytes, so that a fit done once serves every later run. `None`
    /// where fitting again is as quick as reading the state.
    ///
    /// # Errors
    /// A state that cannot be written.
    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Takes the place of `fit`: restores what [`Detector::save_state`] gave for the same
    /// parameters, those marked [`Param::readout`] excepted.
    ///
    /// # Errors
    /// Bytes that are no such state.
    fn load_state(&mut self, _state: &[u8]) -> Result<()> {
        Err(Error::new("this detector keeps no state"))
    }
}

/// The parameters of a detector that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoParams {}
