//! Images with noise added and taken away again, as the classifier sees them.
//!
//! For timestep `t` an image in `[-1, 1]` is diffused to step `t`, denoised from the state that
//! this is to the clean end, `-1`, then mapped back to `[0, 1]` and clamped. By the reference's
//! indices ([`Indexing::Reference`]) the state is `t - 1`, so that timestep 0 is the image with
//! the little noise of step 0, which nothing takes away again.

use candle_core::{Device, Tensor};
use oodbench_nn::device::is_out_of_memory;

use super::change::Space;
use super::error::{DenoiseError, Refusal};
use crate::batch::Evaluation;
use crate::guidance::Guided;
use crate::net::EpsModel;
use crate::sampler::{Indexing, Method, Sampler};
use crate::schedule::Schedule;

/// Images in `[0, 1]`, `[n, 3, height, width]`, flattened.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    values: &'a [f32],
    size: (usize, usize),
}

impl<'a> Images<'a> {
    /// A view of images of a height and a width.
    ///
    /// # Errors
    /// Values that are no whole number of images.
    pub fn new(values: &'a [f32], (height, width): (usize, usize)) -> Result<Self, DenoiseError> {
        let (multiple, got) = (3 * height * width, values.len());
        if multiple == 0 || !got.is_multiple_of(multiple) {
            return Err(DenoiseError::Images { height, width, multiple, got });
        }
        Ok(Self { values, size: (height, width) })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.values.len() / self.image_len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Height and width.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Values of one image.
    pub fn image_len(&self) -> usize {
        3 * self.size.0 * self.size.1
    }

    /// The values, image by image, channel by channel.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The values of one image.
    ///
    /// # Panics
    /// When there is no such image.
    pub fn image(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.image_len()..][..self.image_len()]
    }
}

/// What the classifier gives for images: `[row, n_features]` and `[row, n_classes]`, flattened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    pub features: Vec<f32>,
    pub logits: Vec<f32>,
}

/// Runs the classifier on images in `[0, 1]`.
pub type Classify<'a> = dyn Fn(Images<'_>) -> Result<Outputs, Refusal> + 'a;

/// Called before each evaluation of the diffusion network; its error ends the work.
pub type Tick<'a> = dyn FnMut() -> Result<(), Refusal> + 'a;

/// The first class with the greatest logit, as the process is guided by.
pub fn predicted(logits: &[f32]) -> u32 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == greatest).unwrap_or(0) as u32
}

/// Images to look at, each `repeats` times.
pub struct Subjects<'a> {
    pub images: Images<'a>,
    /// The class of each image; unused by an unconditional network.
    pub classes: &'a [u32],
    /// `[image, repeat, 3, height, width]`, standard normal.
    pub noise: &'a [f32],
    pub repeats: usize,
}

impl Subjects<'_> {
    fn check(&self) -> Result<(), DenoiseError> {
        let n_images = self.images.len();
        let n_noise = n_images * self.repeats * self.images.image_len();
        for (what, expected, got) in [
            ("classes of images", n_images, self.classes.len()),
            ("noise of images", n_noise, self.noise.len()),
        ] {
            if expected != got {
                return Err(DenoiseError::Length { what, expected, got });
            }
        }
        Ok(())
    }
}

/// The denoised images of one timestep, in every space that was asked for. Rows are
/// `[image, repeat]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// `[row, 3, height, width]` in `[0, 1]`
    pub images: Vec<f32>,
    /// Empty where no classifier was given.
    pub outputs: Outputs,
}

impl Sample {
    /// The rows in a space.
    pub fn space(&self, space: Space) -> &[f32] {
        match space {
            Space::Image => &self.images,
            Space::Feature => &self.outputs.features,
            Space::Logit => &self.outputs.logits,
        }
    }
}

/// The denoising process.
#[derive(Clone, Copy)]
pub struct Denoiser<'a> {
    pub model: &'a dyn EpsModel,
    pub schedule: &'a Schedule,
    pub method: Method,
    /// How many steps the whole schedule would be sampled with.
    pub steps: usize,
    /// What states mean to DDIM, PNDM2 and PNDM4.
    pub indexing: Indexing,
    /// The weight of the guidance; unused by an unconditional network.
    pub beta: f64,
    /// Images in one evaluation of the network, both branches of the guidance counted.
    pub batch: usize,
    pub device: &'a Device,
}

impl Denoiser<'_> {
    /// Rows that go through the network at once. An adaptive method chooses its steps for all of
    /// them together, so it gets one: a result must not depend on its company.
    pub fn rows_at_once(&self) -> usize {
        if self.method.is_adaptive() {
            return 1;
        }
        (self.batch / self.evaluation((0, 0)).branches()).max(1)
    }

    /// One evaluation of the network, for images of a size.
    pub fn evaluation(&self, size: (usize, usize)) -> Evaluation<'_> {
        Evaluation { model: self.model, beta: self.beta, size, device: self.device }
    }

    /// How often the network is evaluated, and `tick` called, for so many rows; of an adaptive
    /// method a guess.
    pub fn evaluations(&self, n_rows: usize, timestep: usize) -> usize {
        let sampler = self.sampler();
        let of_one = sampler.evaluations(sampler.state_of(timestep), -1);
        n_rows.div_ceil(self.rows_at_once()) * of_one
    }

    fn sampler(&self) -> Sampler<'_> {
        let sampler = Sampler::new(self.schedule, self.method, self.steps);
        Sampler { indexing: self.indexing, ..sampler }
    }

    /// Diffuses the images to a timestep, denoises them and asks the classifier about them.
    ///
    /// # Errors
    /// Sizes that do not agree, a result that is not finite, and what `classify` and `tick` say.
    pub fn sample(
        &self,
        subjects: &Subjects<'_>,
        timestep: usize,
        classify: Option<&Classify<'_>>,
        tick: &mut Tick<'_>,
    ) -> Result<Sample, DenoiseError> {
        subjects.check()?;
        let (images, repeats) = (subjects.images, subjects.repeats);
        let (image_len, n_rows) = (images.image_len(), images.len() * repeats);
        let mut sample = Sample::default();
        let rows: Vec<usize> = (0..n_rows).collect();
        for rows in rows.chunks(self.rows_at_once()) {
            let mut pixels = Vec::with_capacity(rows.len() * image_len);
            let mut classes = Vec::with_capacity(rows.len());
            for row in rows {
                let image = row / repeats;
                pixels.extend(images.image(image).iter().map(|x| 2.0 * x - 1.0));
                classes.push(subjects.classes[image]);
            }
            let noise = &subjects.noise[rows[0] * image_len..][..pixels.len()];
            let shape = [rows.len(), 3, images.size().0, images.size().1];
            let mut denoised = self.denoise(pixels, noise, classes, shape, timestep, tick)?;
            for (i, x) in denoised.iter_mut().enumerate() {
                if !x.is_finite() {
                    let image = rows[i / image_len] / repeats;
                    return Err(DenoiseError::NotFinite { image, timestep, got: *x });
                }
                *x = (*x * 0.5 + 0.5).clamp(0.0, 1.0);
            }
            if let Some(classify) = classify {
                let denoised = Images::new(&denoised, images.size())?;
                let outputs = classify(denoised).map_err(DenoiseError::Caller)?;
                sample.outputs.features.extend(outputs.features);
                sample.outputs.logits.extend(outputs.logits);
            }
            sample.images.extend(denoised);
        }
        Ok(sample)
    }

    /// The images in `[0, 1]` with the noise of a timestep, clamped: what denoising starts from.
    ///
    /// # Errors
    /// Sizes that do not agree, or a step outside of the schedule.
    pub fn noised(
        &self,
        subjects: &Subjects<'_>,
        timestep: usize,
    ) -> Result<Vec<f32>, DenoiseError> {
        subjects.check()?;
        let images = subjects.images;
        let repeated = (0..images.len()).flat_map(|i| (0..subjects.repeats).map(move |_| i));
        let pixels: Vec<f32> =
            repeated.flat_map(|i| images.image(i).iter().map(|x| 2.0 * x - 1.0)).collect();
        let n_rows = images.len() * subjects.repeats;
        let shape = [n_rows, 3, images.size().0, images.size().1];
        let diffused = || -> candle_core::Result<Vec<f32>> {
            let x_t = self.diffuse(pixels, subjects.noise, shape, timestep)?;
            x_t.flatten_all()?.to_vec1::<f32>()
        };
        let diffused = diffused()
            .map_err(|source| DenoiseError::Network { timestep, source: source.into() })?;
        Ok(diffused.into_iter().map(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0)).collect())
    }

    fn diffuse(
        &self,
        pixels: Vec<f32>,
        noise: &[f32],
        shape: [usize; 4],
        timestep: usize,
    ) -> candle_core::Result<Tensor> {
        let xs = Tensor::from_vec(pixels, &shape, self.device)?;
        let noise = Tensor::from_slice(noise, &shape, self.device)?;
        self.schedule.diffuse(&xs, &vec![timestep; shape[0]], &noise)
    }

    /// Images in `[-1, 1]` after noise was added and taken away.
    fn denoise(
        &self,
        pixels: Vec<f32>,
        noise: &[f32],
        classes: Vec<u32>,
        shape: [usize; 4],
        timestep: usize,
        tick: &mut Tick<'_>,
    ) -> Result<Vec<f32>, DenoiseError> {
        let mut refusal = None;
        let denoised = (|| {
            let x_t = self.diffuse(pixels, noise, shape, timestep)?;
            let classes = match self.model.n_classes() {
                0 => None,
                _ => Some(Tensor::from_vec(classes, shape[0], self.device)?),
            };
            let guided = Guided { model: self.model, classes, beta: self.beta };
            let eps = |x: &Tensor, t| match tick() {
                Ok(()) => guided.eps(x, t),
                Err(err) => {
                    refusal = Some(err);
                    candle_core::bail!("stopped by the caller")
                }
            };
            let sampler = self.sampler();
            let x = sampler.run(&x_t, sampler.state_of(timestep), -1, eps)?;
            x.flatten_all()?.to_vec1::<f32>()
        })();
        // A caller's own error, a cancellation for instance, goes back as it came.
        match (denoised, refusal) {
            (Ok(denoised), _) => Ok(denoised),
            (Err(_), Some(refusal)) => Err(DenoiseError::Caller(refusal)),
            (Err(source), None) if is_out_of_memory(&source) => {
                let evaluation = self.evaluation((shape[2], shape[3]));
                let batch = shape[0] * evaluation.branches();
                Err(DenoiseError::OutOfMemory { batch, fits: evaluation.fits_below(batch) })
            }
            (Err(source), None) => {
                Err(DenoiseError::Network { timestep, source: Box::new(source) })
            }
        }
    }
}

#[cfg(test)]
mod tests;
