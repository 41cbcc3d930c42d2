//! Fitted states as bytes.

use oodbench_sdk::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes of a fitted state.
///
/// # Errors
/// A detector that is not fitted.
pub fn save(state: Option<&impl Serialize>) -> Result<Option<Vec<u8>>> {
    let state = fitted(state)?;
    let bytes = postcard::to_allocvec(state).map_err(|err| Error::new(err.to_string()))?;
    Ok(Some(bytes))
}

/// The state of these bytes.
///
/// # Errors
/// Bytes that are no such state.
pub fn load<S: DeserializeOwned>(bytes: &[u8]) -> Result<Option<S>> {
    postcard::from_bytes(bytes)
        .map(Some)
        .map_err(|err| Error::input(format!("the saved state cannot be read: {err}")))
}

/// The fitted state.
///
/// # Errors
/// A detector that is not fitted.
pub fn fitted<S>(state: Option<&S>) -> Result<&S> {
    state.ok_or_else(|| Error::new("`score` was called before `fit`"))
}
