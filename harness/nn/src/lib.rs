//! Classifier backbones, checkpoint import, device choice and fast kernels.

pub mod arch;
pub mod checkpoint;
pub mod classifier;
pub mod device;
pub mod examples;
pub mod formula;
pub mod kernels;
pub mod layers;
pub mod optim;
pub mod train;
pub mod variables;
