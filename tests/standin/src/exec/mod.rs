//! Running translated kernels: compiling them, and scheduling the threads of a block.

mod compile;
mod coroutine;
mod launch;
mod order;
mod watch;

pub(crate) use compile::Kernel;
pub(crate) use launch::{Shape, run};
