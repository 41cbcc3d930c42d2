//! The way of batches to the device that trains.
//!
//! On the CPU a batch is made where it is used. On a CUDA device the 8-bit pixels of all images lie on
//! the device, if they are few enough, and a kernel cuts batches out of them: a batch costs 16 bytes an
//! image. Of more images the pixels of each batch are copied. Either way the host waits for nothing,
//! and the images are those of the CPU bit for bit, since it draws the same cuts.

use std::ops;

use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
use super::resident::Resident;
use super::{Augmentation, Examples, cut_out, cuts};

/// What the values of an image lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `[0, 1]`
    Unit,
    /// `[-1, 1]`
    Signed,
}

/// Batches of a set of images, and whatever else a step needs, for one device.
pub struct Feed<'a> {
    examples: &'a dyn Examples,
    device: Device,
    #[cfg(feature = "cuda")]
    resident: Option<Resident>,
}

impl<'a> Feed<'a> {
    /// Keeps up to 2 GiB of pixels on the device: CIFAR's are 0.15 GiB, ImageNet's at 32x32 3.7 GiB.
    ///
    /// # Errors
    /// A device without memory for the images.
    pub fn new(examples: &'a dyn Examples, device: &Device) -> Result<Self> {
        Self::with_limit(examples, device, 2 << 30)
    }

    /// Keeps up to `limit` bytes of pixels on the device.
    ///
    /// # Errors
    /// A device without memory for the images.
    pub fn with_limit(examples: &'a dyn Examples, device: &Device, limit: usize) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = limit;
        Ok(Self {
            examples,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            resident: device
                .is_cuda()
                .then(|| Resident::new(examples, device, limit))
                .transpose()?,
        })
    }

    /// The images that it is about.
    pub fn examples(&self) -> &'a dyn Examples {
        self.examples
    }

    /// The images of the places `share` of a batch. `seed` and `number` name the whole batch: they
    /// decide its random changes, of which each image keeps its own, whatever the share.
    ///
    /// # Shapes
    /// `[share, 3, height, width]`, `f32`
    ///
    /// # Errors
    /// What candle says.
    pub fn images(
        &mut self,
        batch: &[usize],
        share: ops::Range<usize>,
        augmentation: Augmentation,
        (seed, number): (u64, u64),
        range: Range,
    ) -> Result<Tensor> {
        let cuts = cuts(batch.len(), augmentation, (seed, number));
        let (Some(indices), Some(cuts)) = (batch.get(share.clone()), cuts.get(share.clone()))
        else {
            candle_core::bail!("share expected places below {}, got {share:?}", batch.len());
        };
        let padding = augmentation.crop_padding;
        #[cfg(feature = "cuda")]
        if let Some(resident) = &mut self.resident {
            return resident.images(self.examples, indices, cuts, padding, range);
        }
        let (height, width) = self.examples.size();
        let values = cut_out(self.examples, indices, cuts, padding);
        let xs = Tensor::from_vec(values, (indices.len(), 3, height, width), &self.device)?;
        match range {
            Range::Unit => Ok(xs),
            Range::Signed => xs.affine(2.0, -1.0),
        }
    }

    /// Numbers on the device.
    ///
    /// # Shapes
    /// `[numbers]`, `f32`
    ///
    /// # Errors
    /// What candle says.
    pub fn numbers(&mut self, numbers: Vec<f32>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &mut self.resident {
            return resident.numbers(&numbers);
        }
        let n = numbers.len();
        Tensor::from_vec(numbers, n, &self.device)
    }

    /// Classes on the device.
    ///
    /// # Shapes
    /// `[classes]`, `u32`
    ///
    /// # Errors
    /// What candle says.
    pub fn classes(&mut self, classes: Vec<u32>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &mut self.resident {
            return resident.classes(&classes);
        }
        let n = classes.len();
        Tensor::from_vec(classes, n, &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::batch;

    struct Noisy(Vec<u8>);

    impl Examples for Noisy {
        fn len(&self) -> usize {
            9
        }
        fn size(&self) -> (usize, usize) {
            (5, 4)
        }
        fn pixels(&self, index: usize) -> &[u8] {
            &self.0[60 * index..60 * (index + 1)]
        }
        fn label(&self, index: usize) -> u32 {
            index as u32
        }
    }

    #[test]
    fn a_share_is_cut_out_of_the_whole_batch() {
        let examples = Noisy((0..540).map(|i| (i * 97 % 256) as u8).collect());
        let some = Augmentation { crop_padding: 2, horizontal_flip: true };
        let order = [3, 8, 0, 5, 7, 1];
        let (whole, _) = batch(&examples, &order, some, (1, 2), &Device::Cpu).unwrap();
        let whole = whole.affine(2.0, -1.0).unwrap().flatten_all().unwrap();
        let whole = whole.to_vec1::<f32>().unwrap();
        let mut feed = Feed::new(&examples, &Device::Cpu).unwrap();
        let mut shares = Vec::new();
        for share in [0..2, 2..5, 5..6] {
            let xs = feed.images(&order, share, some, (1, 2), Range::Signed).unwrap();
            shares.extend(xs.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        assert_eq!(shares, whole);
        assert!(feed.images(&order, 5..7, some, (1, 2), Range::Unit).is_err());
    }
}
