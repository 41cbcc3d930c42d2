//! Reads Python pickles as plain data, without running anything in them.
//!
//! A pickle is a program for a small stack machine, and Python's own reader will import and call
//! whatever that program names. This one never does: a class or function is a name ([`Global`]), and
//! what calling it would have made is a record of the call ([`Object`]). Protocols 0 to 5 are read.
//!
//! - [`parse`] reads one pickle from the front of a slice.
//! - [`numpy::NdArray`] makes an array of the records that numpy leaves behind.
//! - [`torch::TorchFile`] reads checkpoints of PyTorch, and [`torch::flatten_state_dict`] finds the
//!   weights in them.
//!
//! **Invariant**: no input makes this crate panic, overflow the stack, or allocate much more than a
//! fixed multiple of the input's length. Lengths are checked against the data that are there before
//! anything is allocated; values that contain themselves, nest deeper than [`MAX_DEPTH`] or grow past
//! [`MAX_VALUES`] are errors.
//!
//! ```
//! use oodbench_pickle::parse;
//!
//! // pickle.dumps({"epoch": 3, "names": ["cat", "dog"]}, protocol=2)
//! let bytes = b"\x80\x02}q\x00(X\x05\x00\x00\x00epochq\x01K\x03X\x05\x00\x00\x00namesq\x02\
//!     ]q\x03(X\x03\x00\x00\x00catq\x04X\x03\x00\x00\x00dogq\x05eu.";
//! let (value, consumed) = parse(bytes)?;
//! assert_eq!(consumed, bytes.len());
//! assert_eq!(value.get("epoch").and_then(|epoch| epoch.as_i64()), Some(3));
//! assert_eq!(value.get("names").and_then(|names| names.as_list()).map(<[_]>::len), Some(2));
//! # Ok::<(), oodbench_pickle::PickleError>(())
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod graph;
mod machine;
pub mod numpy;
mod plain;
mod text;
pub mod torch;
mod value;

pub use crate::{
    error::PickleError,
    value::{Global, Object, Value},
};

/// How deep values may nest. Plain data nest a dozen levels; the recursion that drops, compares or
/// prints a [`Value`] fits the smallest stack at this depth.
pub const MAX_DEPTH: usize = 200;

/// How many values a pickle may hold when each repeat of a shared value is counted.
pub const MAX_VALUES: usize = 1 << 25;

/// Reads the pickle at the front of `bytes`. Returns its value and how many bytes it takes, so that
/// what follows can be read on.
///
/// # Errors
///
/// Damaged data, and what no tree of plain data can hold; see [`PickleError`].
pub fn parse(bytes: &[u8]) -> Result<(Value, usize), PickleError> {
    machine::parse_with(bytes, &mut plain::Plain::new(bytes.len()))
}
