//! The images of a training on a CUDA device.

use candle_core::{Device, Result, Tensor};
use oodbench_cuda::augment::{Pick, pick_images};
use oodbench_cuda::upload::Upload;

use super::{Cut, Examples, Range};

/// Where pixels come from, and the ways to the device.
pub(super) struct Resident {
    /// `[images, height, width, 3]`, where they are few enough.
    pixels: Option<Tensor>,
    bytes: Upload<u8>,
    words: Upload<u32>,
    floats: Upload<f32>,
}

impl Resident {
    /// Keeps up to `limit` bytes of pixels.
    pub(super) fn new(examples: &dyn Examples, device: &Device, limit: usize) -> Result<Self> {
        let (height, width) = examples.size();
        let fits =
            examples.len().checked_mul(height * width * 3).is_some_and(|bytes| bytes <= limit);
        let pixels = if fits {
            let all: Vec<usize> = (0..examples.len()).collect();
            let pixels = gather(examples, &all);
            Some(Tensor::from_vec(pixels, (examples.len(), height, width, 3), device)?)
        } else {
            None
        };
        let (bytes, words, floats) =
            (Upload::new(device)?, Upload::new(device)?, Upload::new(device)?);
        Ok(Self { pixels, bytes, words, floats })
    }

    /// The images of `indices`, `[batch, 3, height, width]`.
    pub(super) fn images(
        &mut self,
        examples: &dyn Examples,
        indices: &[usize],
        cuts: &[Cut],
        padding: usize,
        range: Range,
    ) -> Result<Tensor> {
        let (pixels, is_resident) = match &self.pixels {
            Some(pixels) => (pixels.clone(), true),
            None => {
                let (height, width) = examples.size();
                let shape = (indices.len(), height, width, 3);
                (self.bytes.tensor(&gather(examples, indices), shape)?, false)
            }
        };
        let mut words = Vec::with_capacity(4 * indices.len());
        for (nth, (&index, cut)) in indices.iter().zip(cuts).enumerate() {
            // What nobody looks at on the device is looked at here.
            if index >= examples.len() {
                candle_core::bail!("image expected below {}, got {index}", examples.len());
            }
            let farthest = cut.dy.max(cut.dx);
            if farthest > 2 * padding {
                candle_core::bail!("cut expected at most {}, got {farthest}", 2 * padding);
            }
            let index = if is_resident { index } else { nth };
            let [index, dy, dx] = [index, cut.dy, cut.dx].map(|n| n as u32);
            words.extend(Pick { index, dy, dx, mirrored: cut.mirrored }.words());
        }
        let picks = self.words.tensor(&words, (indices.len(), 4))?;
        let factor_and_shift = match range {
            Range::Unit => (1.0, 0.0),
            Range::Signed => (2.0, -1.0),
        };
        pick_images(&pixels, &picks, padding, factor_and_shift)
    }

    pub(super) fn numbers(&mut self, numbers: &[f32]) -> Result<Tensor> {
        self.floats.tensor(numbers, numbers.len())
    }

    pub(super) fn classes(&mut self, classes: &[u32]) -> Result<Tensor> {
        self.words.tensor(classes, classes.len())
    }
}

/// The pixels of `indices`, one image after the other.
fn gather(examples: &dyn Examples, indices: &[usize]) -> Vec<u8> {
    let (height, width) = examples.size();
    let mut pixels = Vec::with_capacity(indices.len() * height * width * 3);
    for &index in indices {
        pixels.extend_from_slice(examples.pixels(index));
    }
    pixels
}
