//! The loss of a batch: random steps, noise and missing classes, and how far the network is off.

use candle_core::{Device, Result, Tensor};
use oodbench_nn::examples::generator;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};

use crate::config::LossType;
use crate::net::{EpsModel, Pass};
use crate::schedule::Schedule;

/// How images become a loss.
pub(super) struct Noising<'a> {
    pub(super) schedule: &'a Schedule,
    /// Steps are drawn from 0 to below this.
    pub(super) interval: usize,
    /// The probability that a class is kept.
    pub(super) cond_ratio: f64,
    pub(super) loss: LossType,
    /// With the number of the batch it decides everything random.
    pub(super) seed: u64,
}

/// A loss and the mean step that it is of.
pub(super) struct Noised {
    /// Summed over an image's values, averaged over the batch.
    pub(super) loss: Tensor,
    pub(super) mean_step: f64,
}

impl Noising<'_> {
    /// The loss of one batch at its own random steps, classes and noise.
    ///
    /// # Shapes
    /// - `xs`: `[batch, 3, height, width]`, in `[-1, 1]`
    /// - `ys`: `[batch]`, `u32`
    pub(super) fn loss(
        &self,
        model: &dyn EpsModel,
        xs: &Tensor,
        ys: &Tensor,
        number: u64,
    ) -> Result<Noised> {
        let mut rng = generator(self.seed, "noising", number);
        let batch = xs.dim(0)?;
        let t = symmetric_steps(batch, self.interval, &mut rng);
        let noise = normal(xs, &mut rng)?;
        let y = if model.n_classes() > 0 {
            let no_class = model.n_classes() as u32;
            let kept = ys
                .to_device(&Device::Cpu)?
                .to_vec1::<u32>()?
                .into_iter()
                .map(|y| if rng.random::<f64>() < self.cond_ratio { y } else { no_class })
                .collect::<Vec<u32>>();
            Some(Tensor::from_vec(kept, batch, xs.device())?)
        } else {
            None
        };
        let x_t = self.schedule.diffuse(xs, &t, &noise)?;
        let mean_step = t.iter().sum::<usize>() as f64 / batch.max(1) as f64;
        let t: Vec<f32> = t.iter().map(|&t| t as f32).collect();
        let t = Tensor::from_vec(t, batch, xs.device())?;
        let mut dropout = generator(self.seed, "dropout", number);
        let eps = model.eps(&x_t, &t, y.as_ref(), Pass::Train(&mut dropout))?;
        let off = (eps - noise)?;
        let off = match self.loss {
            LossType::Square => off.sqr()?,
            LossType::Linear => off.abs()?,
        };
        Ok(Noised { loss: off.flatten_from(1)?.sum(1)?.mean(0)?, mean_step })
    }
}

/// Standard normal noise of the shape of `xs`.
pub(super) fn normal(xs: &Tensor, rng: &mut impl Rng) -> Result<Tensor> {
    let noise: Vec<f32> = (0..xs.elem_count()).map(|_| StandardNormal.sample(rng)).collect();
    Tensor::from_vec(noise, xs.shape(), xs.device())
}

/// Half of the steps at random, the other half their mirror images: `t` and `steps - 1 - t`. Of an
/// odd number the middle one has no partner.
fn symmetric_steps(n: usize, steps: usize, rng: &mut impl Rng) -> Vec<usize> {
    let half: Vec<usize> = (0..n.div_ceil(2)).map(|_| rng.random_range(0..steps)).collect();
    half.iter().copied().chain(half.iter().map(|t| steps - 1 - t)).take(n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;
    use candle_core::DType;
    use std::sync::Mutex;

    #[test]
    fn steps_come_in_mirrored_pairs() {
        let t = symmetric_steps(5, 1000, &mut generator(0, "test", 0));
        assert_eq!(t.len(), 5);
        assert_eq!((t[0] + t[3], t[1] + t[4]), (999, 999));
        assert!(symmetric_steps(64, 10, &mut generator(0, "test", 1)).iter().all(|&t| t < 10));
    }

    /// Predicts no noise at all, and remembers the classes that it was told.
    #[derive(Default)]
    struct Silent(Mutex<Vec<u32>>);

    impl EpsModel for Silent {
        fn eps(
            &self,
            x_t: &Tensor,
            _t: &Tensor,
            y: Option<&Tensor>,
            _pass: Pass<'_>,
        ) -> Result<Tensor> {
            self.0.lock().unwrap().extend(y.unwrap().to_vec1::<u32>()?);
            x_t.zeros_like()
        }
        fn n_classes(&self) -> usize {
            10
        }
        fn image_size(&self) -> usize {
            4
        }
    }

    fn of_silence(loss: LossType) -> (f64, Vec<u32>) {
        let schedule = Schedule::new(&ScheduleConfig::default());
        let noising =
            Noising { schedule: &schedule, interval: 1000, cond_ratio: 0.9, loss, seed: 1 };
        let xs = Tensor::zeros((2000, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let ys = Tensor::zeros(2000, DType::U32, &Device::Cpu).unwrap();
        let model = Silent::default();
        let noised = noising.loss(&model, &xs, &ys, 5).unwrap();
        assert_eq!(noised.mean_step, 499.5);
        let classes = model.0.lock().unwrap().clone();
        (f64::from(noised.loss.to_scalar::<f32>().unwrap()), classes)
    }

    /// Knows that every image is grey, and so the noise, if it is told the right step.
    struct Knowing<'a>(&'a Schedule);

    impl EpsModel for Knowing<'_> {
        fn eps(
            &self,
            x_t: &Tensor,
            t: &Tensor,
            _y: Option<&Tensor>,
            _pass: Pass<'_>,
        ) -> Result<Tensor> {
            let steps = t.to_vec1::<f32>()?.into_iter();
            let of_step = |t: f32| self.0.alpha_bar()[t as usize];
            let signal: Vec<f32> = steps.map(of_step).collect();
            let signal = Tensor::from_vec(signal, (t.dim(0)?, 1, 1, 1), x_t.device())?;
            let noise = x_t.broadcast_sub(&(signal.sqrt()? * 0.5)?)?;
            noise.broadcast_div(&(1.0 - signal)?.sqrt()?)
        }
        fn n_classes(&self) -> usize {
            0
        }
        fn image_size(&self) -> usize {
            4
        }
    }

    #[test]
    fn the_network_is_told_the_step_that_the_image_was_diffused_to() {
        let schedule = Schedule::new(&ScheduleConfig::default());
        let loss = LossType::Square;
        let noising =
            Noising { schedule: &schedule, interval: 1000, cond_ratio: 0.9, loss, seed: 1 };
        let xs = Tensor::full(0.5f32, (200, 3, 4, 4), &Device::Cpu).unwrap();
        let ys = Tensor::zeros(200, DType::U32, &Device::Cpu).unwrap();
        let noised = noising.loss(&Knowing(&schedule), &xs, &ys, 5).unwrap();
        // Told the step beside it, the loss is 0.02.
        let loss = noised.loss.to_scalar::<f32>().unwrap();
        assert!(loss < 1e-6, "{loss}");
    }

    #[test]
    fn the_loss_is_summed_over_an_image_and_averaged_over_the_batch() {
        // 48 values of mean square 1 and of mean absolute value sqrt(2 / pi).
        let (square, _) = of_silence(LossType::Square);
        assert!((square / 48.0 - 1.0).abs() < 0.02, "{square}");
        let (linear, _) = of_silence(LossType::Linear);
        assert!((linear / 48.0 - 0.79788).abs() < 0.01, "{linear}");
    }

    #[test]
    fn a_tenth_of_the_classes_is_dropped() {
        let (_, classes) = of_silence(LossType::Square);
        let dropped = classes.iter().filter(|y| **y == 10).count();
        assert!((150..250).contains(&dropped), "{dropped}");
        assert!(classes.iter().all(|y| [0, 10].contains(y)));
    }
}
