//! What the network makes of noised images, to be looked at while it trains: eight training images
//! are taken almost to the end of the schedule and denoised again.

use candle_core::Tensor;
use oodbench_nn::examples::{Augmentation, batch, epoch_order, generator};
use oodbench_nn::train::TrainError;

use super::DiffusionTraining;
use super::noising::normal;
use crate::guidance::Guided;
use crate::sampler::{Method, Sampler};

/// Images of a validation.
pub const VALIDATION_IMAGES: usize = 8;

/// The weight of the guidance, for a conditional network.
pub const VALIDATION_BETA: f64 = 2.0;

/// Steps before the end of the interval that images are noised to.
const BEFORE_THE_END: usize = 20;

impl DiffusionTraining<'_> {
    /// Eight images, noised to 20 steps before the end of the interval and denoised by the weights
    /// as they are, with guidance for a conditional network: what the reference looks at. Which
    /// images and which noise depends on the step.
    ///
    /// # Shapes
    /// `[8, 3, height, width]`, fewer images where there are fewer; about `[-1, 1]`
    ///
    /// # Errors
    /// What sampler and network say.
    pub fn validate(&self, method: Method, sample_steps: usize) -> Result<Tensor, TrainError> {
        let (seed, step) = (self.recipe.seed, self.learner.step());
        let plain = Augmentation { crop_padding: 0, horizontal_flip: false };
        // Another order than that of training, so that the pictures are no hint at its batches.
        let mut indices = epoch_order(self.feed.examples().len(), seed ^ u64::from(u32::MAX), step);
        indices.truncate(VALIDATION_IMAGES);
        let (xs, ys) = batch(self.feed.examples(), &indices, plain, (seed, step), &self.device)?;
        let xs = xs.affine(2.0, -1.0)?;
        let t = self.interval.saturating_sub(BEFORE_THE_END);
        let noise = normal(&xs, &mut generator(seed, "validation", step))?;
        let x_t = self.schedule.diffuse(&xs, &vec![t; indices.len()], &noise)?;
        let model = self.model.as_ref();
        let guided =
            Guided { model, classes: (model.n_classes() > 0).then_some(ys), beta: VALIDATION_BETA };
        let sampler = Sampler::new(&self.schedule, method, sample_steps);
        let xs =
            sampler.run(&x_t, sampler.state_of(t), -1, |x, t| Ok(guided.eps(x, t)?.detach()))?;
        Ok(xs)
    }
}
