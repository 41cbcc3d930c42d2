//! Labelled 8-bit images for training, and the batches made of them.

mod feed;
#[cfg(feature = "cuda")]
mod resident;

use candle_core::{Device, Result, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use feed::{Feed, Range};

/// Labelled images of one size, readable in any order from several threads.
pub trait Examples: Sync {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height and width.
    fn size(&self) -> (usize, usize);

    /// The pixels of one image, row-major RGB.
    fn pixels(&self, index: usize) -> &[u8];

    /// The class.
    fn label(&self, index: usize) -> u32;
}

/// Random changes of a training image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Cut at random out of the image with a black border this wide.
    pub crop_padding: usize,
    /// Mirror every second image.
    pub horizontal_flip: bool,
}

/// A generator that belongs to a seed, a purpose and a number, and to nothing else; training
/// that is restarted draws the same numbers again.
pub fn generator(seed: u64, purpose: &str, number: u64) -> ChaCha8Rng {
    let mut stream = crate::formula::Stream::new(&format!("{purpose}/{seed}/{number}"));
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&stream.next_u64().to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

/// The order of an epoch: every index once, shuffled.
pub fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut generator(seed, "order", epoch));
    order
}

/// Images as `f32` in `[0, 1]`, `[batch, 3, height, width]`, and labels as `u32`, `[batch]`.
///
/// `number` names the batch: the same number gives the same random changes.
pub fn batch(
    examples: &dyn Examples,
    indices: &[usize],
    augmentation: Augmentation,
    (seed, number): (u64, u64),
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let cuts = cuts(indices.len(), augmentation, (seed, number));
    let values = cut_out(examples, indices, &cuts, augmentation.crop_padding);
    let (height, width) = examples.size();
    let labels: Vec<u32> = indices.iter().map(|&index| examples.label(index)).collect();
    Ok((
        Tensor::from_vec(values, (indices.len(), 3, height, width), device)?,
        Tensor::from_vec(labels, indices.len(), device)?,
    ))
}

/// What becomes of an image of a batch: where the cut begins in the image with its border, and
/// whether it is mirrored.
#[derive(Clone, Copy)]
struct Cut {
    dy: usize,
    dx: usize,
    mirrored: bool,
}

/// The cuts of a batch.
fn cuts(n: usize, augmentation: Augmentation, (seed, number): (u64, u64)) -> Vec<Cut> {
    let Augmentation { crop_padding, horizontal_flip } = augmentation;
    let mut rng = generator(seed, "augmentation", number);
    let mut draw = || {
        let (dy, dx) =
            (rng.random_range(0..=2 * crop_padding), rng.random_range(0..=2 * crop_padding));
        Cut { dy, dx, mirrored: rng.random::<bool>() && horizontal_flip }
    };
    (0..n).map(|_| draw()).collect()
}

/// The images of `indices`, `[batch, 3, height, width]` in `[0, 1]`.
fn cut_out(
    examples: &dyn Examples,
    indices: &[usize],
    cuts: &[Cut],
    crop_padding: usize,
) -> Vec<f32> {
    let (height, width) = examples.size();
    let plane = height * width;
    let mut values = vec![0f32; indices.len() * 3 * plane];
    values.par_chunks_mut((3 * plane).max(1)).zip(indices).zip(cuts).for_each(
        |((image, &index), &Cut { dy, dx, mirrored })| {
            let pixels = examples.pixels(index);
            for y in 0..height {
                let Some(from_y) = (y + dy).checked_sub(crop_padding).filter(|y| *y < height)
                else {
                    continue;
                };
                for x in 0..width {
                    let column = if mirrored { width - 1 - x } else { x };
                    let Some(from_x) =
                        (column + dx).checked_sub(crop_padding).filter(|x| *x < width)
                    else {
                        continue;
                    };
                    for channel in 0..3 {
                        image[channel * plane + y * width + x] =
                            f32::from(pixels[(from_y * width + from_x) * 3 + channel]) / 255.0;
                    }
                }
            }
        },
    );
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ramp;

    impl Examples for Ramp {
        fn len(&self) -> usize {
            4
        }
        fn size(&self) -> (usize, usize) {
            (2, 2)
        }
        fn pixels(&self, _index: usize) -> &[u8] {
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        }
        fn label(&self, index: usize) -> u32 {
            index as u32
        }
    }

    #[test]
    fn a_plain_batch_is_the_images_channel_by_channel() {
        let none = Augmentation { crop_padding: 0, horizontal_flip: false };
        let (xs, ys) = batch(&Ramp, &[2, 0], none, (0, 0), &Device::Cpu).unwrap();
        let xs = (xs * 255.0).unwrap().get(0).unwrap().flatten_all().unwrap();
        let xs: Vec<f32> = xs.to_vec1::<f32>().unwrap().iter().map(|v| v.round()).collect();
        assert_eq!(xs, [0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.]);
        assert_eq!(ys.to_vec1::<u32>().unwrap(), [2, 0]);
    }

    #[test]
    fn the_same_number_gives_the_same_batch() {
        let some = Augmentation { crop_padding: 1, horizontal_flip: true };
        let draw = |number| {
            let (xs, _) = batch(&Ramp, &[0, 1, 2, 3], some, (7, number), &Device::Cpu).unwrap();
            xs.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn an_epoch_sees_every_image_once() {
        let mut order = epoch_order(100, 1, 2);
        assert_ne!(order, epoch_order(100, 1, 3));
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
