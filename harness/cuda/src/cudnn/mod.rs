//! Convolutions by cuDNN's graph interface: for each problem the fastest engine whose arithmetic is
//! good enough, chosen once and kept.
//!
//! One file for each concern: `descriptor` wraps cuDNN's objects, `graph` describes a convolution,
//! `engines` lists who could compute it, `plan` makes one ready and runs it, `session` chooses and
//! keeps plans, `timing` measures them.

mod descriptor;
mod engines;
mod graph;
mod plan;
mod session;
mod timing;

pub(crate) use session::{Outcome, Session};
