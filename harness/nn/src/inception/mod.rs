//! Inception-v3 in the variant that the Fréchet inception distance is defined by.
//!
//! Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, as the graph
//! `inception-2015-12-05` of TensorFlow has it and as pytorch-fid ported it. It differs from
//! torchvision's `inception_v3`: average pooling does not count the border, the last block pools
//! by the maximum, there are 1008 classes, and the weights are others. Features are what global
//! pooling leaves, 2048 numbers an image. Inference only: batch normalisation is folded into the
//! convolutions when the weights are read.
//!
//! Sums and covariances of features, and the distance, are `oodbench-diffusion`'s.

mod blocks;
mod pool;
mod resize;

use std::path::PathBuf;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use crate::checkpoint::StateDict;
use crate::layers::global_average_pool;
use blocks::{Block, Conv, Padding};

/// How many features an image has.
pub const N_FEATURES: usize = 2048;

/// The file of weights as it is published.
pub const FILE_NAME: &str = "pt_inception-2015-12-05-6726825d.pth";

/// Where [`FILE_NAME`] is published.
pub const FILE_HINT: &str = "the weights are `pt_inception-2015-12-05-6726825d.pth`, among the \
                             releases of github.com/mseitzer/pytorch-fid; whoever has run \
                             pytorch-fid has it in `~/.cache/torch/hub/checkpoints`";

/// Side of the images that the network sees.
const SIDE: usize = 299;

/// Blocks that work on large maps: 12 MB an image between them.
const STEM: usize = 7;

/// Images that go through the stem at a time on the CPU. Batches of 50 spend a sixth of their time
/// on pages that the system has to hand out anew.
const IMAGES_IN_STEM: usize = 8;

/// Classes of the published network. The last layer is not needed, but tells it from torchvision's.
const N_CLASSES: usize = 1008;

/// What making the network of a file fails with.
#[derive(Debug, thiserror::Error)]
pub enum InceptionError {
    #[error("load Inception `{}`", path.display())]
    Network {
        path: PathBuf,
        #[source]
        source: candle_core::Error,
    },
    #[error(
        "load Inception `{}`: `fc.weight` expected {N_CLASSES} classes, got {got}{}",
        path.display(),
        if *got == 1000 { ": these are torchvision's weights, which give another distance" } else { "" }
    )]
    OtherVariant { path: PathBuf, got: usize },
    #[error("load Inception `{}`: `{key}` and {more} more tensors belong to no layer", path.display())]
    Unused { path: PathBuf, key: String, more: usize },
}

/// The network.
#[derive(Debug)]
pub struct Inception {
    blocks: Vec<Block>,
    device: Device,
}

impl Inception {
    /// Makes the network of the published file, or of the same tensors in another format.
    ///
    /// The classifier (`fc`) and the auxiliary one (`AuxLogits`) are not needed and may be absent;
    /// any other tensor that no layer asks for is an error.
    ///
    /// # Errors
    /// See [`InceptionError`].
    pub fn load(file: &StateDict, device: &Device) -> std::result::Result<Self, InceptionError> {
        let path = || file.path().to_owned();
        if let Some(got) = file.shapes().get("fc.weight").and_then(|shape| shape.first().copied())
            && got != N_CLASSES
        {
            return Err(InceptionError::OtherVariant { path: path(), got });
        }
        let (vb, usage) = file.builder(device);
        let network =
            Self::new(vb).map_err(|source| InceptionError::Network { path: path(), source })?;
        let is_classifier = |key: &String| key.starts_with("fc.") || key.starts_with("AuxLogits.");
        let unused: Vec<String> =
            usage.unused().into_iter().filter(|key| !is_classifier(key)).collect();
        if let Some(key) = unused.first().cloned() {
            return Err(InceptionError::Unused { path: path(), key, more: unused.len() - 1 });
        }
        Ok(network)
    }

    /// Makes the network of the tensors of `vb`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(vb: VarBuilder<'_>) -> Result<Self> {
        let conv = |name: &str, c_in, c_out, kernel, stride, padding| {
            Conv::new(vb.pp(name), c_in, c_out, (kernel, kernel), stride, padding).map(Block::Conv)
        };
        let none = Padding::NONE;
        let blocks = vec![
            // The network was trained on values from -1 to 1.
            Block::Conv(
                Conv::new(vb.pp("Conv2d_1a_3x3"), 3, 32, (3, 3), 2, none)?.taking(2.0, -1.0)?,
            ),
            conv("Conv2d_2a_3x3", 32, 32, 3, 1, none)?,
            conv("Conv2d_2b_3x3", 32, 64, 3, 1, Padding::SAME_3)?,
            Block::MaxPool,
            conv("Conv2d_3b_1x1", 64, 80, 1, 1, none)?,
            conv("Conv2d_4a_3x3", 80, 192, 3, 1, none)?,
            Block::MaxPool,
            Block::a(vb.pp("Mixed_5b"), 192, 32)?,
            Block::a(vb.pp("Mixed_5c"), 256, 64)?,
            Block::a(vb.pp("Mixed_5d"), 288, 64)?,
            Block::b(vb.pp("Mixed_6a"), 288)?,
            Block::c(vb.pp("Mixed_6b"), 768, 128)?,
            Block::c(vb.pp("Mixed_6c"), 768, 160)?,
            Block::c(vb.pp("Mixed_6d"), 768, 160)?,
            Block::c(vb.pp("Mixed_6e"), 768, 192)?,
            Block::d(vb.pp("Mixed_7a"), 768)?,
            Block::e_average(vb.pp("Mixed_7b"), 1280)?,
            Block::e_max(vb.pp("Mixed_7c"), 2048)?,
        ];
        Ok(Self { blocks, device: vb.device().clone() })
    }

    /// Where the network lies; images have to lie there as well.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The features of images of any size.
    ///
    /// # Shapes
    /// `images`: `[batch, 3, height, width]`, `f32`, values from 0 to 1; to `[batch, 2048]`
    ///
    /// # Errors
    /// Another shape, dtype or device.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.features_of_resized(&self.resized(images)?)
    }

    /// The features of decoded images, which may differ in size.
    ///
    /// # Shapes
    /// to `[images, 2048]`
    ///
    /// # Errors
    /// No image at all, or one whose pixels do not fill its size.
    pub fn features_of(&self, images: &[Pixels<'_>]) -> Result<Tensor> {
        let same_size = |a: &Pixels, b: &Pixels| (a.height, a.width) == (b.height, b.width);
        let resized: Vec<Tensor> = images
            .chunk_by(same_size)
            .map(|run| self.resized(&Pixels::tensor(run, &self.device)?))
            .collect::<Result<_>>()?;
        match resized.as_slice() {
            [] => candle_core::bail!("Inception expected images, got none"),
            several => self.features_of_resized(&Tensor::cat(several, 0)?),
        }
    }

    /// Resizes to 299 x 299 as PyTorch's `interpolate` does it: bilinear, without smoothing when
    /// an image is made smaller.
    fn resized(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        if channels != 3 || height == 0 || width == 0 {
            candle_core::bail!("Inception expected [batch, 3, height, width], got {images:?}");
        }
        resize::bilinear(images, SIDE)
    }

    fn features_of_resized(&self, xs: &Tensor) -> Result<Tensor> {
        let (stem, rest) = self.blocks.split_at(STEM);
        let through = |blocks: &[Block], xs: Tensor| {
            blocks.iter().try_fold(xs, |xs, block| block.forward(&xs))
        };
        let n = xs.dim(0)?;
        let at_a_time = if self.device.is_cpu() { IMAGES_IN_STEM } else { n.max(1) };
        let parts: Vec<Tensor> = (0..n)
            .step_by(at_a_time)
            .map(|first| through(stem, xs.narrow(0, first, at_a_time.min(n - first))?))
            .collect::<Result<_>>()?;
        if parts.is_empty() {
            candle_core::bail!("Inception expected images, got none");
        }
        global_average_pool(&through(rest, Tensor::cat(&parts, 0)?)?) // [B, 2048]
    }
}

/// A decoded image: 8-bit RGB, row by row from the top, `height * width * 3` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    pub width: usize,
    pub height: usize,
    pub rgb: &'a [u8],
}

impl Pixels<'_> {
    /// Images of the same size as `[images, 3, height, width]`, values from 0 to 1.
    fn tensor(images: &[Self], device: &Device) -> Result<Tensor> {
        let Some(&Self { width, height, .. }) = images.first() else {
            candle_core::bail!("Inception expected images, got none");
        };
        let area = width * height;
        if let Some(odd) = images.iter().find(|image| image.rgb.len() != 3 * area) {
            candle_core::bail!(
                "an image of {width} x {height} expected {} bytes, got {}",
                3 * area,
                odd.rgb.len()
            );
        }
        let mut values = vec![0.0f32; images.len() * 3 * area];
        values.par_chunks_mut((3 * area).max(1)).zip(images).for_each(|(planes, image)| {
            for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
                for (value, pixel) in plane.iter_mut().zip(image.rgb.chunks_exact(3)) {
                    *value = f32::from(pixel[channel]) / 255.0;
                }
            }
        });
        Tensor::from_vec(values, (images.len(), 3, height, width), device)
    }
}

#[cfg(test)]
mod tests;
