//! Noise-prediction networks, one file each, behind the trait [`EpsModel`].

mod blocks;
mod ddim;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use ddim::{DdimConfig, DdimUNet};

/// Whether a forward pass trains the network or uses it.
pub enum Pass<'a> {
    /// No dropout.
    Sample,
    /// Dropout drawn from this generator.
    Train(&'a mut ChaCha8Rng),
}

/// A network that predicts the noise in an image.
pub trait EpsModel: Send + Sync {
    /// The noise `eps` that `x_t` is made of.
    ///
    /// # Shapes
    /// - `x_t`: `[batch, 3, height, width]`, images in `[-1, 1]` plus noise
    /// - `t`: `[batch]`, `f32`, the step that the noise belongs to; may lie between two steps
    /// - `y`: `[batch]`, `u32`, the class; `n_classes` means "no class". Required by a
    ///   class-conditional network and refused by an unconditional one.
    fn eps(&self, x_t: &Tensor, t: &Tensor, y: Option<&Tensor>, pass: Pass<'_>) -> Result<Tensor>;

    /// Classes of a conditional network, 0 for an unconditional one.
    fn n_classes(&self) -> usize;

    /// Side of the images that it was trained on.
    fn image_size(&self) -> usize;
}

/// Any network of this crate, as it is described in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "struc")]
pub enum NetConfig {
    /// The U-Net of Ho et al. as the DDIM code writes it.
    #[serde(rename = "DDIM")]
    Ddim(DdimConfig),
}

impl NetConfig {
    /// Builds the network on the variables of `vb`.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn EpsModel>> {
        match self {
            Self::Ddim(config) => Ok(Box::new(DdimUNet::new(config, vb)?)),
        }
    }

    pub fn n_classes(&self) -> usize {
        let Self::Ddim(config) = self;
        config.num_classes
    }

    pub fn image_size(&self) -> usize {
        let Self::Ddim(config) = self;
        config.image_size
    }

    /// What the side of an image must be a multiple of, so that every level halves it evenly. The
    /// network is convolutional: it runs on other sizes than it was trained on, if not as well.
    pub fn side_multiple(&self) -> usize {
        let Self::Ddim(config) = self;
        1 << config.ch_mult.len().saturating_sub(1)
    }
}
