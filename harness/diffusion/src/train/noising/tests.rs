//! Tests of the loss of a batch, on networks that say something simple.

use super::*;
use crate::schedule::ScheduleConfig;
use candle_core::{DType, Device};
use oodbench_nn::examples::Examples;
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

/// No images; a feed needs some.
struct Nothing;

impl Examples for Nothing {
    fn len(&self) -> usize {
        0
    }
    fn size(&self) -> (usize, usize) {
        (4, 4)
    }
    fn pixels(&self, _index: usize) -> &[u8] {
        &[]
    }
    fn label(&self, _index: usize) -> u32 {
        0
    }
}

fn plan(batch: usize, cond_ratio: Option<f64>) -> Plan {
    Plan { seed: 1, batch, per_image: 48, interval: 1000, cond_ratio }
}

/// The loss of batch 5, every image of which is of class 0.
fn noised(model: &dyn EpsModel, schedule: &Schedule, loss: LossType, xs: &Tensor) -> Noised {
    let batch = xs.dim(0).unwrap();
    let plan = plan(batch, (model.n_classes() > 0).then_some(0.9));
    let noising = Noising { schedule, loss, plan };
    let mut feed = Feed::new(&Nothing, &Device::Cpu).unwrap();
    let (classes, draws) = (vec![0; batch], plan.draw(5));
    noising.loss(model, &mut feed, xs, &classes, 0..batch, draws, 5).unwrap()
}

fn of_silence(loss: LossType) -> (f64, Vec<u32>) {
    let schedule = Schedule::new(&ScheduleConfig::default());
    let xs = Tensor::zeros((2000, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let model = Silent::default();
    let noised = noised(&model, &schedule, loss, &xs);
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
    let xs = Tensor::full(0.5f32, (200, 3, 4, 4), &Device::Cpu).unwrap();
    let noised = noised(&Knowing(&schedule), &schedule, LossType::Square, &xs);
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

#[test]
fn shares_of_a_batch_average_to_its_loss() {
    let schedule = Schedule::new(&ScheduleConfig::default());
    let (model, plan) = (Silent::default(), plan(6, Some(0.9)));
    let noising = Noising { schedule: &schedule, loss: LossType::Square, plan };
    let mut feed = Feed::new(&Nothing, &Device::Cpu).unwrap();
    let mut of = |share: Range<usize>| {
        let xs = Tensor::zeros((share.len(), 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let (classes, draws) = (vec![3; share.len()], plan.draw(5));
        let noised = noising.loss(&model, &mut feed, &xs, &classes, share, draws, 5).unwrap();
        assert_eq!(noised.mean_step, 499.5, "of the whole batch");
        noised.loss.to_scalar::<f32>().unwrap()
    };
    let (whole, first, second) = (of(0..6), of(0..3), of(3..6));
    assert!(((first + second) / 2.0 - whole).abs() < 1e-5 * whole, "{first} {second} {whole}");
    let classes = model.0.lock().unwrap().clone();
    assert_eq!(classes[..6], classes[6..]);
}
