//! Images with noise added and taken away again, as the classifier sees them.
//!
//! For timestep `t` an image in `[-1, 1]` is diffused to step `t` and denoised from `t - 1` to
//! the clean end, `-1`, then mapped back to `[0, 1]` and clamped: the reference's indices, see
//! [`oodbench_diffusion::sampler`]. Timestep 0 is hence the image with the little noise of step
//! 0, which nothing takes away again.

use candle_core::{Device, Tensor};
use oodbench_diffusion::guidance::Guided;
use oodbench_diffusion::net::EpsModel;
use oodbench_diffusion::sampler::{Method, Sampler};
use oodbench_diffusion::schedule::Schedule;
use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::change::Space;
use crate::network::chain;

/// What the classifier gives for images: `[row, n_features]` and `[row, n_classes]`, flattened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    pub features: Vec<f32>,
    pub logits: Vec<f32>,
}

/// Runs the classifier on images in `[0, 1]`.
pub type Classify<'a> = dyn Fn(ImageBatch<'_>) -> Result<Outputs> + 'a;

/// Called before each evaluation of the diffusion network; its error ends the work.
pub type Tick<'a> = dyn FnMut() -> Result<()> + 'a;

/// Images to look at, each `repeats` times.
pub struct Subjects<'a> {
    /// `[image, 3, height, width]` in `[0, 1]`
    pub images: ImageBatch<'a>,
    /// The class of each image; unused by an unconditional network.
    pub classes: &'a [u32],
    /// `[image, repeat, 3, height, width]`, standard normal.
    pub noise: &'a [f32],
    pub repeats: usize,
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
pub struct Denoiser<'a> {
    pub model: &'a dyn EpsModel,
    pub schedule: &'a Schedule,
    pub method: Method,
    /// How many steps the whole schedule would be sampled with.
    pub steps: usize,
    /// The weight of the guidance; unused by an unconditional network.
    pub beta: f64,
    /// Images in one evaluation of the network, both branches of the guidance counted.
    pub batch: usize,
    pub device: &'a Device,
}

impl Denoiser<'_> {
    /// Rows that go through the network at once.
    pub fn rows_at_once(&self) -> usize {
        let branches = if self.model.n_classes() > 0 && self.beta != 0.0 { 2 } else { 1 };
        (self.batch / branches).max(1)
    }

    /// How often the network is evaluated, and `tick` called, for so many rows.
    pub fn evaluations(&self, n_rows: usize, timestep: usize) -> usize {
        let of_one = self.sampler().evaluations(timestep as i64 - 1, -1);
        n_rows.div_ceil(self.rows_at_once()) * of_one
    }

    fn sampler(&self) -> Sampler<'_> {
        Sampler { schedule: self.schedule, method: self.method, sample_steps: self.steps }
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
    ) -> Result<Sample> {
        let [n_images, channels, height, width] = subjects.images.shape();
        let (image_len, n_rows) = (channels * height * width, n_images * subjects.repeats);
        if subjects.classes.len() != n_images || subjects.noise.len() != n_rows * image_len {
            return Err(Error::input(format!(
                "{n_images} images, {} times each, got {} classes and {} values of noise",
                subjects.repeats,
                subjects.classes.len(),
                subjects.noise.len()
            )));
        }
        let mut sample = Sample::default();
        let rows: Vec<usize> = (0..n_rows).collect();
        for rows in rows.chunks(self.rows_at_once()) {
            let mut pixels = Vec::with_capacity(rows.len() * image_len);
            let mut classes = Vec::with_capacity(rows.len());
            for row in rows {
                let image = row / subjects.repeats;
                let values = &subjects.images.values()[image * image_len..][..image_len];
                pixels.extend(values.iter().map(|x| 2.0 * x - 1.0));
                classes.push(subjects.classes[image]);
            }
            let noise = &subjects.noise[rows[0] * image_len..][..pixels.len()];
            let shape = [rows.len(), channels, height, width];
            let mut denoised = self.denoise(pixels, noise, classes, shape, timestep, tick)?;
            for (i, x) in denoised.iter_mut().enumerate() {
                if !x.is_finite() {
                    let image = rows[i / image_len] / subjects.repeats;
                    return Err(Error::new(format!(
                        "image {image} of those denoised at once expected finite pixels after timestep {timestep}, got {x}"
                    )));
                }
                *x = (*x * 0.5 + 0.5).clamp(0.0, 1.0);
            }
            if let Some(classify) = classify {
                let outputs = classify(ImageBatch::new(&denoised, height, width)?)?;
                sample.outputs.features.extend(outputs.features);
                sample.outputs.logits.extend(outputs.logits);
            }
            sample.images.extend(denoised);
        }
        Ok(sample)
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
    ) -> Result<Vec<f32>> {
        let mut refusal = None;
        let denoised = (|| {
            let xs = Tensor::from_vec(pixels, &shape, self.device)?;
            let noise = Tensor::from_slice(noise, &shape, self.device)?;
            let x_t = self.schedule.diffuse(&xs, &vec![timestep; shape[0]], &noise)?;
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
            let x = self.sampler().run(&x_t, timestep as i64 - 1, -1, eps)?;
            x.flatten_all()?.to_vec1::<f32>()
        })();
        // A caller's own error, a cancellation for instance, goes back as it came.
        match (denoised, refusal) {
            (Ok(denoised), _) => Ok(denoised),
            (Err(_), Some(refusal)) => Err(refusal),
            (Err(err), None) => Err(chain(err)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::untrained;
    use crate::noise::noise;
    use oodbench_diffusion::checkpoint::LoadedModel;
    use oodbench_nn::formula;

    const LEN: usize = 3 * 4 * 4;

    fn denoiser<'a>(loaded: &'a LoadedModel, batch: usize) -> Denoiser<'a> {
        Denoiser {
            model: loaded.model.as_ref(),
            schedule: &loaded.schedule,
            method: Method::Pndm2,
            steps: 10,
            beta: 2.0,
            batch,
            device: &Device::Cpu,
        }
    }

    fn sample(batch: usize, n_classes: usize, tick: &mut Tick<'_>) -> Result<Sample> {
        let loaded = untrained(4, n_classes, &Device::Cpu).unwrap();
        let images = formula::uniform("images", 3 * LEN, 0.0, 1.0);
        let noise: Vec<f32> = (0..6).flat_map(|row| noise(0, row / 2, row as usize, LEN)).collect();
        let subjects = Subjects {
            images: ImageBatch::new(&images, 4, 4).unwrap(),
            classes: &[0, 1, 1],
            noise: &noise,
            repeats: 2,
        };
        denoiser(&loaded, batch).sample(&subjects, 200, None, tick)
    }

    #[test]
    fn the_number_of_rows_at_once_changes_nothing() {
        for n_classes in [0, 2] {
            let whole = sample(12, n_classes, &mut || Ok(())).unwrap().images;
            for batch in [1, 5, 8] {
                let parts = sample(batch, n_classes, &mut || Ok(())).unwrap().images;
                let worst =
                    whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{batch} at once: off by {worst}");
            }
        }
    }

    #[test]
    fn evaluations_are_announced() {
        let loaded = untrained(4, 2, &Device::Cpu).unwrap();
        for batch in [1, 8, 100] {
            let mut ticks = 0;
            sample(batch, 2, &mut || {
                ticks += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(denoiser(&loaded, batch).evaluations(6, 200), ticks);
        }
    }

    #[test]
    fn the_error_of_the_caller_comes_back_as_it_was() {
        let stop = Error::parameter("x", "y", "z");
        let err = sample(4, 2, &mut || Err(stop.clone())).unwrap_err();
        assert_eq!(err, stop);
    }

    #[test]
    fn pixels_that_are_not_finite_are_an_error() {
        let loaded = untrained(4, 0, &Device::Cpu).unwrap();
        let mut images = vec![0.5; 2 * LEN];
        images[LEN] = f32::NAN;
        let noise = vec![0.0; 2 * LEN];
        let images = ImageBatch::new(&images, 4, 4).unwrap();
        let subjects = Subjects { images, classes: &[0, 0], noise: &noise, repeats: 1 };
        let err = denoiser(&loaded, 8).sample(&subjects, 0, None, &mut || Ok(())).unwrap_err();
        let expected =
            "image 1 of those denoised at once expected finite pixels after timestep 0, got NaN";
        assert_eq!(err.to_string(), expected);
    }
}
