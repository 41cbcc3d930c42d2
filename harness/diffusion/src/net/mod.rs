//! Noise-prediction networks, one file each, behind the trait [`EpsModel`].

mod blocks;
mod check;
mod ddim;
mod iddpm;
#[cfg(test)]
mod orders;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use oodbench_nn::maps::Form;
use oodbench_nn::precision::Precision;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use ddim::{DdimConfig, DdimUNet};
pub use iddpm::{IddpmConfig, IddpmUNet};

/// Whether a forward pass trains the network or uses it.
pub enum Pass<'a> {
    /// No dropout.
    Sample,
    /// Dropout drawn from this generator.
    Train(&'a mut ChaCha8Rng),
    /// The same for a part of a batch, behind so many images of it: it loses what it loses in the
    /// whole batch.
    TrainAfter(&'a mut ChaCha8Rng, usize),
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

    /// The network in two halves, where it comes apart.
    fn halves(&self) -> Option<&dyn Halves> {
        None
    }
}

/// A network whose first half sees the step and the class, and whose second half sees the image.
/// `eps` is one after the other.
///
/// The first half is small. The second, while it samples on a CUDA device, copies nothing from the
/// host and waits for nothing once it has run for images of the same shape, so that it can be
/// captured as a CUDA graph whose inputs are `x_t` and `condition`.
pub trait Halves: Send + Sync {
    /// What the network makes of steps and classes.
    ///
    /// # Shapes
    /// - `t`, `y`: as those of [`EpsModel::eps`]
    /// - result: `[batch, width]`, `f32`, contiguous
    fn condition(&self, t: &Tensor, y: Option<&Tensor>) -> Result<Tensor>;

    /// The noise in `x_t` under a condition.
    ///
    /// # Shapes
    /// - `x_t`, result: `[batch, 3, height, width]`
    /// - `condition`: a result of [`Halves::condition`] for as many images
    fn eps_under(&self, x_t: &Tensor, condition: &Tensor, pass: Pass<'_>) -> Result<Tensor>;
}

/// Any network of this crate, as it is described in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "struc")]
pub enum NetConfig {
    /// The U-Net of Ho et al. as the DDIM code writes it.
    #[serde(rename = "DDIM")]
    Ddim(DdimConfig),
    /// The U-Net of Nichol and Dhariwal.
    #[serde(rename = "iDDPM")]
    Iddpm(IddpmConfig),
}

/// A configuration that makes no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {message}")]
pub struct NetConfigError {
    /// The key that is wrong.
    pub key: &'static str,
    /// What was expected, and what it says.
    pub message: String,
}

impl NetConfig {
    /// Builds the network on the variables of `vb`, to compute in `f32`.
    ///
    /// # Errors
    /// A configuration that makes no network, or a tensor that is missing or has another shape.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn EpsModel>> {
        self.build_in(vb, Precision::F32)
    }

    /// Builds the network on the variables of `vb`, which are `f32` whatever it computes in.
    ///
    /// # Errors
    /// As [`NetConfig::build`], or a precision that the device of `vb` does not have.
    pub fn build_in(&self, vb: VarBuilder, precision: Precision) -> Result<Box<dyn EpsModel>> {
        precision.check(vb.device()).map_err(candle_core::Error::wrap)?;
        let form = Form::new(vb.device(), precision);
        match self {
            Self::Ddim(config) => Ok(Box::new(DdimUNet::new(config, form, vb)?)),
            Self::Iddpm(config) => Ok(Box::new(IddpmUNet::new(config, form, vb)?)),
        }
    }

    /// Whether the configuration makes a network.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> std::result::Result<(), NetConfigError> {
        match self {
            Self::Ddim(config) => config.check(),
            Self::Iddpm(config) => config.check(),
        }
    }

    /// The key that says another number of channels than the three of an image, and the number.
    /// Everything that reads and writes images has three.
    pub fn not_of_colour(&self) -> Option<(&'static str, usize)> {
        let channels = match self {
            Self::Ddim(config) => [("in_channels", config.in_channels), ("out_ch", config.out_ch)],
            // Of more output channels the noise comes first.
            Self::Iddpm(config) => [("in_channels", config.in_channels); 2],
        };
        channels.into_iter().find(|&(_, channels)| channels != 3)
    }

    /// Classes of a conditional network, 0 for an unconditional one.
    pub fn n_classes(&self) -> usize {
        match self {
            Self::Ddim(config) => config.num_classes,
            Self::Iddpm(config) => config.num_classes,
        }
    }

    /// Side of the images that it is trained on.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Ddim(config) => config.image_size,
            Self::Iddpm(config) => config.image_size,
        }
    }

    /// What the side of an image must be a multiple of, so that every level halves it evenly. The
    /// network is convolutional: it runs on other sizes than it was trained on, if not as well.
    pub fn side_multiple(&self) -> usize {
        let n_levels = match self {
            Self::Ddim(config) => config.ch_mult.len(),
            Self::Iddpm(config) => config.channel_mult.len(),
        };
        1 << n_levels.saturating_sub(1)
    }
}
