//! The scoring ABI: what the host and a detector pack both link, and nothing else.
//!
//! A **pack** is a dynamic library that exports one root module, [`PackRef`]. The host reads its
//! [`EPOCH`] before anything else, then lets abi_stable compare the layout of every type, then
//! asks for [`Descriptor`]s and creates detectors. Authors do not see this crate: they write
//! against `oodbench-sdk`, which wraps it.
//!
//! # Contract
//!
//! - **Threads.** One detector is used by one thread at a time, in the order `create`, `fit` or a
//!   restored state, `score` any number of times, drop. Services of the [`Host`] may be called
//!   from any thread during such a call (`[any-thread]`), drop included, and not afterwards.
//! - **Memory.** A view ([`TensorView`], `RSlice`) belongs to its caller and is valid until the
//!   call returns (`[host-owned]`); whatever is to be kept is copied. Owned values (`RVec`,
//!   `RString`) belong to whom they are given and free themselves through their own vtable.
//! - **Numbers** are `f32` in host memory, row-major and dense. Images are in `[0, 1]`,
//!   `[n, 3, height, width]`; normalisation belongs to the classifier and happens behind the host.
//! - **Panics** must not cross: abi_stable ends the process when one does. The SDK catches them in
//!   every entry and returns [`ErrorCode::PANICKED`].
//! - **Growth.** Tables never get further methods, because abi_stable then refuses older packs in
//!   a newer host. What comes later is an *extension*: an id with a revision
//!   (`"oodbench.state/1"`) and bytes in both directions. Open sets are integers with named
//!   constants, not enums. Whatever changes a layout bumps the [`EPOCH`].

#![deny(missing_docs)]
#![expect(
    non_local_definitions,
    unused_qualifications,
    reason = "what the macros of abi_stable expand to"
)]

pub mod descriptor;
pub mod detector;
pub mod error;
pub mod example;
pub mod extension;
pub mod host;
pub mod message;
pub mod pack;
pub mod view;

pub use abi_stable;
pub use descriptor::{Descriptor, Needs, Param, ParamKind, VariantFault};
pub use detector::{Detector, Detector_TO, DetectorBox, FitData, ScoreBatch};
pub use error::{ErrorCode, RawError, RawResult};
pub use example::{Example, ExampleHead, ExampleSplit};
pub use host::{ForwardOutputs, Head, Host, Host_TO, HostBox, LogLevel, NamedTensor};
pub use pack::{Pack, PackInfo, PackRef};
pub use view::{SplitId, SplitView, TensorView};

/// The number of this ABI. A pack and a host work together when theirs are equal.
pub const EPOCH: u32 = 1;

/// The symbol, a `u32`, that a pack exports its epoch under; read before anything else.
pub const EPOCH_SYMBOL: &str = "OODBENCH_ABI_EPOCH";

/// The symbol of a function without arguments that returns an `RString`: what the pack's detectors can
/// compute on, for people to read. `[any-thread]` A pack that does not export it computes on the CPU.
pub const BUILT_FOR_SYMBOL: &str = "oodbench_built_for";
