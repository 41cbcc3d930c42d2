//! Classifier backbones, checkpoint import, device choice and fast kernels.

pub mod arch;
pub mod checkpoint;
pub mod classifier;
pub mod device;
pub mod dropout;
pub mod examples;
pub mod formula;
pub mod heads;
pub mod inception;
pub mod kernels;
pub mod layers;
pub mod maps;
pub mod npz;
pub mod optim;
pub mod precision;
pub mod tensor_file;
pub mod train;
mod values;
pub mod variables;
