//! What denoising fails with.

use thiserror::Error;

/// The error of a caller's function, as it came.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Why images could not be denoised.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DenoiseError {
    #[error("{what} expected {expected} values, got {got}")]
    Length { what: &'static str, expected: usize, got: usize },
    #[error("images of {height}x{width} expected a multiple of {multiple} values, got {got}")]
    Images { height: usize, width: usize, multiple: usize, got: usize },
    #[error("change expected 1 to {last}, the timesteps after the first, got {got}")]
    Change { last: usize, got: usize },
    #[error(
        "image {image} of those denoised at once expected finite pixels after timestep {timestep}, got {got}"
    )]
    NotFinite { image: usize, timestep: usize, got: f32 },
    #[error("{}", full(*batch, *fits))]
    OutOfMemory {
        /// Images of one evaluation, both branches of the guidance counted.
        batch: usize,
        /// As many would fit, if any do.
        fits: Option<usize>,
    },
    #[error("denoise from timestep {timestep}")]
    Network {
        timestep: usize,
        #[source]
        source: Box<candle_core::Error>,
    },
    /// What the caller's own function said: a cancellation, or a classifier's fault.
    #[error(transparent)]
    Caller(Refusal),
}

/// A batch that does not fit, in words.
pub(crate) fn full(batch: usize, fits: Option<usize>) -> String {
    let would = match fits {
        Some(fits) => format!("{fits} would"),
        None => "no smaller one does".to_owned(),
    };
    format!("a batch of {batch} images does not fit into the memory of the device, {would}")
}
