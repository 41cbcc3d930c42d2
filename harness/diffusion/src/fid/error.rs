//! What measuring a Fréchet inception distance fails with.

use std::path::PathBuf;

use oodbench_nn::npz::NpzError;

/// A failure of anything in this folder.
#[derive(Debug, thiserror::Error)]
pub enum FidError {
    #[error(transparent)]
    File(#[from] NpzError),
    #[error("read statistics `{}`", path.display())]
    Statistics {
        path: PathBuf,
        #[source]
        source: StatisticsError,
    },
    #[error(transparent)]
    Values(#[from] StatisticsError),
    #[error("statistics expected at least 2 images, got {got}")]
    TooFewImages { got: u64 },
    #[error("features expected {expected} numbers an image, got {got} in all")]
    Ragged { expected: usize, got: usize },
    #[error("features expected finite values, got `{value}` in feature {feature} of image {image}")]
    NotFinite { image: u64, feature: usize, value: f32 },
    #[error("distance expected statistics of as many features, got {first} and {second}")]
    Sizes { first: usize, second: usize },
    #[error("the {decomposition} of a {size} x {size} matrix do not converge")]
    NoConvergence { decomposition: &'static str, size: usize },
}

/// Numbers that are no mean and covariance.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StatisticsError {
    #[error(
        "`mu` expected [features] and `sigma` [features, features], got {mean:?} and {covariance:?}"
    )]
    Shape { mean: Vec<usize>, covariance: Vec<usize> },
    #[error("`{array}` expected finite values, got `{value}` at {index}")]
    NotFinite { array: &'static str, index: usize, value: f64 },
    #[error(
        "`sigma` expected a symmetric matrix, got `{value}` at [{row}, {column}] and `{mirrored}` \
         at [{column}, {row}]"
    )]
    NotSymmetric { row: usize, column: usize, value: f64, mirrored: f64 },
    #[error(
        "`sigma` expected a covariance, got the eigenvalue `{value:e}` beside the greatest, \
         `{greatest:e}`"
    )]
    Negative { value: f64, greatest: f64 },
}
