//! The gradient step on a CUDA device: one pass over all variables, which moves them, their moments
//! and their averages; see `oodbench_cuda::optim`. A build without CUDA has no device that fits.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod cuda;

#[cfg(not(feature = "cuda"))]
pub(super) use absent::Fused;
#[cfg(feature = "cuda")]
pub(super) use cuda::Fused;
