//! Image sets for oodbench: where they lie, how they are read, what becomes of them, and which of
//! them make up a benchmark.
//!
//! 1. A [`Benchmark`] is data: sets with roles, preprocessing, normalisation.
//! 2. [`locate`] opens its sets in a [`DataDir`], each as an [`ImageSource`], or says what is
//!    missing.
//! 3. [`prepare()`] decodes, resizes and crops a source once into a [`Pack`], a memory-mapped
//!    safetensors file; after that nobody decodes anything.
//!
//! Pixels come out as OpenOOD's preprocessing (Pillow and torchvision) gives them, bit for bit;
//! normalisation belongs to the classifier and is not done here.
//!
//! **Invariant**: no printing, no environment, no network, no tensors. Progress goes to a
//! [`Progress`], threads are rayon's current pool.

#![deny(unsafe_code)]

mod archive;
mod benchmark;
mod data_dir;
mod decode;
mod embedded;
mod error;
mod fingerprint;
pub mod glyphs;
mod mapped;
mod pack;
mod prepare;
mod preprocess;
mod progress;
mod resize;
mod source;
#[cfg(test)]
mod testing;

pub use benchmark::{
    BENCHMARK_SCHEMA, Benchmark, Builtin, ClassifierDefaults, Located, Role, SetSpec, builtin,
    builtins, locate,
};
pub use data_dir::DataDir;
pub use decode::{DecodeError, MAX_PIXELS, RgbImage, decode};
pub use embedded::embedded;
pub use error::{DatasetError, ImagePlace};
pub use fingerprint::{Fingerprint, Fingerprinter};
pub use mapped::SharedBytes;
pub use pack::{PACK_VERSION, Pack};
pub use prepare::{PrepareRequest, pack_path, prepare};
pub use preprocess::{MAX_SIDE, OutputTooLarge, Preprocess};
pub use progress::{NoProgress, Progress};
pub use source::{ImageSource, SourceSpec, TrainTest, TrainValTest};
