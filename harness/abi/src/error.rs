//! What a call across the boundary fails with.

use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RString};

/// The kind of a failure. An unknown code is treated as [`ErrorCode::FAILED`].
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The detector or the service could not do it; the message says why.
    pub const FAILED: Self = Self(1);
    /// The code behind the call panicked.
    pub const PANICKED: Self = Self(2);
    /// A parameter is unknown, of the wrong type, or out of range.
    pub const BAD_PARAMETER: Self = Self(3);
    /// Data has another shape or content than the contract says.
    pub const BAD_INPUT: Self = Self(4);
    /// The service was not asked for in the descriptor's needs, or is not offered here.
    pub const UNAVAILABLE: Self = Self(5);
    /// The extension is unknown.
    pub const UNSUPPORTED: Self = Self(6);
    /// The host asked to stop.
    pub const CANCELLED: Self = Self(7);
    /// The memory of a device does not suffice; the message says for how much it would.
    pub const OUT_OF_MEMORY: Self = Self(8);
}

/// A failure with its reason.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Eq, Debug)]
pub struct RawError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// One line, lower case, no full stop: it is shown after "failed to …: ".
    pub message: RString,
}

impl RawError {
    /// A failure of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into().into() }
    }
}

/// What every fallible call returns.
pub type RawResult<T> = RResult<T, RawError>;
