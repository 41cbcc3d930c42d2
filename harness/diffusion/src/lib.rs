//! Diffusion networks, schedules, samplers, guidance and training.

pub mod checkpoint;
pub mod guidance;
pub mod net;
pub mod sampler;
pub mod schedule;
pub mod train;
