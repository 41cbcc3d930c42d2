//! What a detector fails with.

use oodbench_abi::{ErrorCode, RawError};

/// A failure with its reason: one line, lower case, no full stop, values in backticks. It is shown
/// after "failed to fit: " and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: ErrorCode,
    message: String,
}

/// What fallible functions of a detector return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The detector could not do it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::FAILED, message: message.into() }
    }

    /// A parameter is out of range.
    pub fn parameter(name: &str, expected: &str, got: impl std::fmt::Display) -> Self {
        let message = format!("parameter `{name}` expected {expected}, got `{got}`");
        Self { code: ErrorCode::BAD_PARAMETER, message }
    }

    /// Data has another shape or content than the contract says.
    pub fn input(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::BAD_INPUT, message: message.into() }
    }

    /// The memory of a device does not suffice. The message says for how much it would.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::OUT_OF_MEMORY, message)
    }

    pub(crate) fn with_code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A call that the detector does not offer.
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::UNSUPPORTED, what)
    }

    /// Whether the memory of a device did not suffice, the detector's own or the host's.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == ErrorCode::OUT_OF_MEMORY
    }

    /// Whether the host asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.code == ErrorCode::CANCELLED
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<RawError> for Error {
    fn from(raw: RawError) -> Self {
        Self { code: raw.code, message: raw.message.into() }
    }
}

impl From<Error> for RawError {
    fn from(err: Error) -> Self {
        Self::new(err.code, err.message)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<std::io::Error> for Error {
    fn from(err: std::io::Error) -> Self {
        Self::new(err.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(err: serde_json::Error) -> Self {
        Self::new(err.to_string())
    }
}
