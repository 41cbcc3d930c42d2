//! DiffOOD's process, apart from where images, noise and the classifier come from: an image is
//! diffused, denoised, clamped and classified, and what counts is how much that changed it.
//!
//! Liu et al., "Diffusion Denoising Process for Perceptron Bias in Out-of-distribution
//! Detection", 2022.
//!
//! - [`Denoiser`] denoises images from one timestep;
//! - [`Scoring`] does so from several, group by group, and reads every asked [`Readout`] off one
//!   pass: denoising costs seconds, reading a change off its result nothing;
//! - [`noise::noise`] is the noise that belongs to an image;
//! - [`network`] reads the diffusion network, [`samples`] the files of denoised images.
//!
//! Only slices of `f32` cross to callers, so that a detector behind an ABI and a command that
//! writes files go the same way, to the same last bit.

mod change;
pub(crate) mod error;
pub mod network;
pub mod noise;
mod process;
pub mod samples;
mod scoring;

/// The most repeats, and the most images of a batch, that settings may ask for. Both decide how
/// much is in memory at once, so that a slip of the finger would end the process.
pub const MOST_AT_ONCE: usize = 1 << 16;

pub use change::{Change, Mode, Readout, Space, changes};
pub use error::{DenoiseError, Refusal};
pub use process::{Classify, Denoiser, Images, Outputs, Sample, Subjects, Tick, predicted};
pub use scoring::{Group, Noise, Scoring};
