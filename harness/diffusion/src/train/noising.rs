//! The loss of a batch: random steps, noise and missing classes, and how far the network is off.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::D;
use candle_core::{Result, Tensor};
#[cfg(feature = "cuda")]
use oodbench_cuda::augment;
use oodbench_nn::examples::{Feed, generator};
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};

use crate::config::LossType;
use crate::net::{EpsModel, Pass};
use crate::schedule::Schedule;

/// How images become a loss.
pub(super) struct Noising<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) loss: LossType,
    pub(super) plan: Plan,
}

/// What the random numbers of a batch follow from, besides its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Images of the batch, and values of an image.
    pub(super) batch: usize,
    pub(super) per_image: usize,
    /// Steps are drawn from 0 to below this.
    pub(super) interval: usize,
    /// The probability that a class is kept; none for a network without classes.
    pub(super) cond_ratio: Option<f64>,
}

/// The random numbers of a batch.
#[derive(Debug, PartialEq)]
pub(super) struct Draws {
    t: Vec<usize>,
    noise: Vec<f32>,
    /// Whether an image keeps its class; none for a network without classes.
    kept: Option<Vec<bool>>,
}

impl Plan {
    /// The random numbers of the batch `number`.
    pub(super) fn draw(&self, number: u64) -> Draws {
        let mut rng = generator(self.seed, "noising", number);
        let t = symmetric_steps(self.batch, self.interval, &mut rng);
        let noise = normals(self.batch * self.per_image, &mut rng);
        let kept = self
            .cond_ratio
            .map(|ratio| (0..self.batch).map(|_| rng.random::<f64>() < ratio).collect());
        Draws { t, noise, kept }
    }
}

/// A loss and the mean step that it is of.
pub(super) struct Noised {
    /// Summed over an image's values, averaged over the share.
    pub(super) loss: Tensor,
    /// Over the whole batch.
    pub(super) mean_step: f64,
}

impl Noising<'_> {
    /// The loss of the places `share` of the batch `number`, whose random numbers are `draws`.
    ///
    /// # Shapes
    /// - `xs`: `[share, 3, height, width]`, in `[-1, 1]`
    /// - `classes`: one for each image
    pub(super) fn loss(
        &self,
        model: &dyn EpsModel,
        feed: &mut Feed<'_>,
        xs: &Tensor,
        classes: &[u32],
        share: Range<usize>,
        draws: Draws,
        number: u64,
    ) -> Result<Noised> {
        let Draws { t, noise, kept } = draws;
        let mean_step = t.iter().sum::<usize>() as f64 / t.len().max(1) as f64;
        let no_class = model.n_classes() as u32;
        let y = kept.map(|kept| {
            let pairs = classes.iter().zip(&kept[share.clone()]);
            pairs.map(|(y, kept)| if *kept { *y } else { no_class }).collect()
        });
        let y = y.map(|y| feed.classes(y)).transpose()?;
        let values = share.start * self.plan.per_image..share.end * self.plan.per_image;
        let (t, noise) = (&t[share.clone()], &noise[values]);
        let mut dropout = generator(self.plan.seed, "dropout", number);
        let pass = Pass::TrainAfter(&mut dropout, share.start);
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            let loss = self.loss_on_cuda(model, feed, xs, y.as_ref(), t, noise, pass)?;
            return Ok(Noised { loss, mean_step });
        }
        let noise = Tensor::from_slice(noise, xs.shape(), xs.device())?;
        let x_t = self.schedule.diffuse(xs, t, &noise)?;
        let t = feed.numbers(t.iter().map(|&t| t as f32).collect())?;
        let eps = model.eps(&x_t, &t, y.as_ref(), pass)?;
        let off = (eps - noise)?;
        let off = match self.loss {
            LossType::Square => off.sqr()?,
            LossType::Linear => off.abs()?,
        };
        Ok(Noised { loss: off.flatten_from(1)?.sum(1)?.mean(0)?, mean_step })
    }

    /// The same with one copy to the device and two kernels around the network.
    #[cfg(feature = "cuda")]
    fn loss_on_cuda(
        &self,
        model: &dyn EpsModel,
        feed: &mut Feed<'_>,
        xs: &Tensor,
        y: Option<&Tensor>,
        t: &[usize],
        noise: &[f32],
        pass: Pass<'_>,
    ) -> Result<Tensor> {
        let batch = t.len();
        let (signal, scale) = self.schedule.factors(t)?;
        let mut numbers = Vec::with_capacity(noise.len() + 3 * batch);
        numbers.extend_from_slice(noise);
        numbers.extend_from_slice(&signal);
        numbers.extend_from_slice(&scale);
        numbers.extend(t.iter().map(|&t| t as f32));
        let numbers = feed.numbers(numbers)?;
        let part = |from: usize, len: usize| numbers.narrow(D::Minus1, from, len);
        let noise = part(0, noise.len())?.reshape(xs.shape())?;
        let factors = part(noise.elem_count(), 2 * batch)?.reshape((2, batch))?;
        let t = part(noise.elem_count() + 2 * batch, batch)?;
        let x_t = augment::diffuse(xs, &noise, &factors)?;
        let eps = model.eps(&x_t, &t, y, pass)?;
        let loss = match self.loss {
            LossType::Square => augment::Loss::Square,
            LossType::Linear => augment::Loss::Absolute,
        };
        augment::noise_loss(&eps, &noise, loss)
    }
}

/// Standard normal noise of the shape of `xs`.
pub(super) fn normal(xs: &Tensor, rng: &mut impl Rng) -> Result<Tensor> {
    Tensor::from_vec(normals(xs.elem_count(), rng), xs.shape(), xs.device())
}

fn normals(n: usize, rng: &mut impl Rng) -> Vec<f32> {
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

/// Half of the steps at random, the other half their mirror images: `t` and `steps - 1 - t`. Of an
/// odd number the middle one has no partner.
fn symmetric_steps(n: usize, steps: usize, rng: &mut impl Rng) -> Vec<usize> {
    let half: Vec<usize> = (0..n.div_ceil(2)).map(|_| rng.random_range(0..steps)).collect();
    half.iter().copied().chain(half.iter().map(|t| steps - 1 - t)).take(n).collect()
}

#[cfg(test)]
mod tests;
