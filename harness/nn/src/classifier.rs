//! A classifier: an architecture, weights and the normalisation that belongs to them.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// Mean and standard deviation of each channel, for images in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Normalisation {
    /// `(xs - mean) / std` per channel.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]`
    pub fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let mean = Tensor::new(&self.mean, xs.device())?.reshape((1, 3, 1, 1))?;
        let std = Tensor::new(&self.std, xs.device())?.reshape((1, 3, 1, 1))?;
        xs.broadcast_sub(&mean)?.broadcast_div(&std)
    }
}
