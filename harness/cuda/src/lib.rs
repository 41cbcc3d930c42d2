//! What the diffusion networks do on an NVIDIA GPU: fused kernels, convolutions by cuDNN, CUDA
//! graphs, and what is to be known about the device's memory.
//!
//! Without the feature `cuda` the crate is empty. Activations are channels-last, `[batch, height,
//! width, channels]`, in `f32` or `bf16`; parameters are `f32`. Every operation is differentiable
//! and has a reference on the CPU that the device tests hold it against.
#![cfg(feature = "cuda")]

pub mod augment;
#[cfg(feature = "nccl")]
pub mod collective;
pub mod conv;
#[cfg(feature = "cudnn")]
mod cudnn;
pub mod gemm;
pub mod graph;
mod im2col;
mod launch;
pub mod memory;
mod op;
mod open;
pub mod ops;
pub mod optim;
mod pinned;
pub mod probe;
pub mod sampler;
pub mod staging;
pub mod upload;
mod workspace;

pub use gemm::{set_tf32, tf32};
pub use open::open;

/// The kernels, as PTX.
#[expect(unreachable_pub, reason = "cudaforge writes it so")]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}
