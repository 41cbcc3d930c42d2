//! A stand-in for NVIDIA's driver and libraries that computes on the CPU.
//!
//! One library answers as `libcuda.so.1`, `libcublas.so.13`, `libcudnn.so.9`, `libcurand.so.10`
//! and `libnccl.so.2`, so that a CUDA build runs on a machine without a GPU. Kernels come as PTX,
//! are translated to C, compiled with `cc` and run thread by thread. It proves wiring and
//! formulas: every argument of a launch, every stride, every descriptor, graph capture, lifetimes.
//! It says nothing about speed, and nothing about what only hardware shows: timing, memory
//! ordering, rounding of approximate instructions, races between warps.
//!
//! It is a strict teacher. What the real driver refuses, and what is undefined there, ends in an
//! error code and one line on standard error that begins with `standin:`. An illegal access in a
//! kernel spoils the context, as it does there: every later call fails.
//!
//! # Use
//!
//! ```text
//! cargo build --release -p oodbench-standin --target-dir target/standin
//! target/standin/release/standin-links FOLDER
//! LD_LIBRARY_PATH=FOLDER PROGRAM
//! ```
//!
//! | variable | meaning |
//! | --- | --- |
//! | `STANDIN_MEMORY` | bytes of device memory, 8 GiB unless told |
//! | `STANDIN_CACHE` | folder of compiled kernels, `oodbench-standin` in the temporary folder unless told |
//! | `STANDIN_LAZY=1` | work of a stream runs only when something waits for it |
//! | `STANDIN_RACES=1` | threads of one launch that touch the same global memory without an order end it (slow) |
//! | `STANDIN_ORDER` | turns of blocks, and of threads between barriers: `forward`, `reverse`, `shuffle`, `shuffle:SEED` |
//! | `STANDIN_TF32=1` | products round their inputs to TF32 where the caller's mode allows it |
//! | `STANDIN_TRACE=1` | one line on standard error for each piece of work |
//!
//! What is not there answers with an error: fatbins and cubins, textures, tensor-core
//! instructions in kernels, clusters, cooperative launches, peer devices.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod absent;
mod api;
mod blas;
mod curand;
mod dnn;
mod driver;
mod exec;
mod half;
mod nccl;
mod ptx;
mod work;
