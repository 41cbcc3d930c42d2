//! Images from noise.
//!
//! The noise and the random class of an image follow from the seed and the image's number alone,
//! so neither the size of a batch nor the shard that an image falls into changes it. As in the
//! reference, noise is taken for the state that [`Sampler::noise_state`] says, and its denoising
//! ends at the clean end, `-1`.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use oodbench_nn::device::is_out_of_memory;
use oodbench_nn::formula::Stream;

use crate::batch::Evaluation;
use crate::denoise::error::full;
use crate::guidance::Guided;
use crate::net::EpsModel;
use crate::sampler::Sampler;

/// The error of a caller's function, as it came.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Why images could not be sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    #[error("class expected below {n_classes}, got {got}")]
    Class { n_classes: usize, got: u32 },
    #[error("class expected none for a network without classes, got {got}")]
    NoClasses { got: u32 },
    #[error("image {image} expected finite pixels, got {got}")]
    NotFinite { image: usize, got: f32 },
    #[error("{}", full(*batch, *fits))]
    OutOfMemory {
        /// Images of one evaluation, both branches of the guidance counted.
        batch: usize,
        /// As many would fit, if any do.
        fits: Option<usize>,
    },
    #[error("sample images {} to {}", images.start, images.end)]
    Network {
        images: Range<usize>,
        #[source]
        source: Box<candle_core::Error>,
    },
    /// What the caller's own function said.
    #[error(transparent)]
    Caller(Refusal),
}

/// Which class an image is to show. A network without classes passes over all but
/// [`Self::One`], which it refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classes {
    /// Any, from the seed and the image's number.
    Random,
    /// Image 0 shows class 0, image 1 class 1, and so on, again and again.
    RoundRobin,
    /// All images show this one.
    One(u32),
}

/// What to sample.
pub struct Request<'a> {
    pub model: &'a dyn EpsModel,
    pub sampler: Sampler<'a>,
    /// Numbers of the images. `0..n` is a whole sample; parts of it are shards.
    pub images: Range<usize>,
    pub seed: u64,
    pub classes: Classes,
    /// The weight of the guidance; unused by a network without classes.
    pub beta: f64,
    /// Images in one evaluation of the network, both branches of the guidance counted. An adaptive
    /// method takes one image at a time.
    pub batch: usize,
    pub device: &'a Device,
}

/// Some of the images.
pub struct Samples {
    /// The number of the first one.
    pub first: usize,
    /// `[n, 3, side, side]`, `f32`, in `[0, 1]`, on the device of the request.
    pub images: Tensor,
    /// The class of each; empty for a network without classes.
    pub classes: Vec<u32>,
}

impl Request<'_> {
    /// Images that are sampled at once.
    pub fn rows_at_once(&self) -> usize {
        if self.sampler.method.is_adaptive() {
            return 1;
        }
        (self.batch / self.evaluation().branches()).max(1)
    }

    /// One evaluation of the network.
    pub fn evaluation(&self) -> Evaluation<'_> {
        let side = self.model.image_size();
        Evaluation { model: self.model, beta: self.beta, size: (side, side), device: self.device }
    }

    /// How often the network is evaluated, and `tick` called; a guess for an adaptive method.
    pub fn evaluations(&self) -> usize {
        let of_one = self.sampler.evaluations(self.sampler.noise_state(), -1);
        self.images.len().div_ceil(self.rows_at_once()).saturating_mul(of_one)
    }

    /// The noise that image `number` is made of.
    fn noise(&self, number: usize, len: usize) -> impl Iterator<Item = f32> {
        let mut stream = Stream::new(&format!("sample/{}/{number}/noise", self.seed));
        (0..len).map(move |_| stream.next_normal() as f32)
    }

    /// The class of image `number`, of a network that has classes.
    fn class(&self, number: usize) -> u32 {
        let n_classes = self.model.n_classes();
        match &self.classes {
            Classes::Random => {
                let mut stream = Stream::new(&format!("sample/{}/{number}/class", self.seed));
                (stream.next_f64() * n_classes as f64) as u32
            }
            Classes::RoundRobin => (number % n_classes) as u32,
            Classes::One(class) => *class,
        }
    }

    /// Refuses classes that the network does not have, before the first image is made.
    fn check_classes(&self) -> Result<(), SampleError> {
        let n_classes = self.model.n_classes();
        match self.classes {
            Classes::One(got) if n_classes == 0 => Err(SampleError::NoClasses { got }),
            Classes::One(got) if got as usize >= n_classes => {
                Err(SampleError::Class { n_classes, got })
            }
            _ => Ok(()),
        }
    }
}

/// Samples images and hands them over batch by batch, in the order of their numbers.
///
/// `tick` is called before each evaluation of the network; its error, or that of `on_batch`, ends
/// the work and comes back as [`SampleError::Caller`].
///
/// # Errors
/// A class that the network does not have, settings that the sampler refuses, pixels that are not
/// finite, and what the callbacks say.
pub fn sample(
    request: &Request<'_>,
    tick: &mut dyn FnMut() -> Result<(), Refusal>,
    on_batch: &mut dyn FnMut(Samples) -> Result<(), Refusal>,
) -> Result<(), SampleError> {
    request.check_classes()?;
    let mut first = request.images.start;
    while first < request.images.end {
        let end = first.saturating_add(request.rows_at_once());
        let numbers = first..request.images.end.min(end);
        let classes = match request.model.n_classes() {
            0 => Vec::new(),
            _ => numbers.clone().map(|number| request.class(number)).collect::<Vec<u32>>(),
        };
        let mut refusal = None;
        let mut tick = || {
            tick().map_err(|err| {
                refusal = Some(err);
                candle_core::Error::msg("stopped by the caller")
            })
        };
        let images = match denoised(request, numbers.clone(), &classes, &mut tick) {
            Ok(images) => images,
            Err(source) => {
                return Err(match refusal {
                    Some(refusal) => SampleError::Caller(refusal),
                    None if is_out_of_memory(&source) => {
                        let evaluation = request.evaluation();
                        let batch = numbers.len() * evaluation.branches();
                        SampleError::OutOfMemory { batch, fits: evaluation.fits_below(batch) }
                    }
                    None => SampleError::Network { images: numbers, source: Box::new(source) },
                });
            }
        };
        let images = in_unit_range(images, first)?;
        on_batch(Samples { first, images, classes }).map_err(SampleError::Caller)?;
        first = numbers.end;
    }
    Ok(())
}

/// `[n, 3, side, side]`, in `[-1, 1]` or thereabouts.
fn denoised(
    request: &Request<'_>,
    numbers: Range<usize>,
    classes: &[u32],
    tick: &mut dyn FnMut() -> candle_core::Result<()>,
) -> candle_core::Result<Tensor> {
    let side = request.model.image_size();
    let n = numbers.len();
    let noise: Vec<f32> =
        numbers.flat_map(|number| request.noise(number, 3 * side * side)).collect();
    let x = Tensor::from_vec(noise, (n, 3, side, side), request.device)?;
    let classes = match classes {
        [] => None,
        classes => Some(Tensor::new(classes, request.device)?),
    };
    let guided = Guided { model: request.model, classes, beta: request.beta };
    request.sampler.run(&x, request.sampler.noise_state(), -1, |x, t| {
        tick()?;
        guided.eps(x, t)
    })
}

/// Maps `[-1, 1]` to `[0, 1]` and clamps.
fn in_unit_range(images: Tensor, first: usize) -> Result<Tensor, SampleError> {
    let numbers = first..first + images.dims()[0];
    let mapped = (|| {
        // What is not finite makes its image's sum so.
        let sums = images.flatten_from(1)?.sum(1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let images = images.affine(0.5, 0.5)?.clamp(0.0, 1.0)?;
        Ok((sums, images))
    })();
    let (sums, images): (Vec<f32>, Tensor) = mapped
        .map_err(|source| SampleError::Network { images: numbers, source: Box::new(source) })?;
    match sums.iter().position(|sum| !sum.is_finite()) {
        Some(i) => Err(SampleError::NotFinite { image: first + i, got: sums[i] }),
        None => Ok(images),
    }
}

#[cfg(test)]
mod tests;
