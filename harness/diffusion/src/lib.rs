//! Diffusion networks, schedules, samplers, guidance and training.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod denoise;
pub mod fid;
pub mod guidance;
pub mod interpolate;
pub mod net;
pub mod picture;
pub mod replay;
pub mod sample;
pub mod sampler;
pub mod schedule;
pub mod train;
