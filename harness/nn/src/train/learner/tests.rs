//! Tests of the gradient step and of checkpoints, on four numbers.

use super::*;
use crate::train::gradients::Alone;
use candle_core::Device;
use candle_nn::Init;

const RULE: Rule =
    Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, amsgrad: false };

/// A learner of one variable, and the variable.
fn learner() -> (Learner, Tensor) {
    let variables = Variables::new(3, &Device::Cpu);
    let hint = Init::Randn { mean: 0.0, stdev: 1.0 };
    let x = variables.builder().get_with_hints(4, "x", hint).unwrap();
    (Learner::new(variables, RULE, Some(0.9)).unwrap(), x)
}

fn loss(x: &Tensor, target: f64) -> Tensor {
    (x - target).unwrap().sqr().unwrap().sum_all().unwrap()
}

fn step(learner: &mut Learner, x: &Tensor) {
    let target = learner.step() as f64;
    learner.backward(&loss(x, target), 1, Some(1.0), &mut Alone).unwrap();
    learner.update(0.1).unwrap();
}

fn weights(learner: &Learner) -> [Vec<f32>; 2] {
    let average = learner.average().unwrap().unwrap();
    [&learner.weights().unwrap()["x"], &average["x"]].map(|t| t.to_vec1().unwrap())
}

#[test]
fn a_training_that_was_stopped_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let configuration = serde_json::json!({"optim": {"lr": 0.1}});
    let (mut whole, x) = learner();
    (0..2).for_each(|_| step(&mut whole, &x));
    let more = Text::from([("best".to_owned(), "7".to_owned())]);
    whole.save(&path, &configuration, more.clone()).unwrap();
    let (mut resumed, y) = learner();
    assert_eq!(resumed.load(&path, &configuration).unwrap(), more);
    assert_eq!(resumed.step(), 2);
    for (learner, x) in [(&mut whole, &x), (&mut resumed, &y)] {
        (0..2).for_each(|_| step(learner, x));
    }
    assert_eq!(weights(&whole), weights(&resumed));
}

#[test]
fn another_configuration_is_refused_by_its_first_difference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let (learned, _) = learner();
    let saved = serde_json::json!({"optim": {"lr": 0.1}, "seed": 1});
    learned.save(&path, &saved, Text::new()).unwrap();
    let other = serde_json::json!({"optim": {"lr": 0.2}, "seed": 1});
    let err = learner().0.load(&path, &other).unwrap_err();
    assert!(err.to_string().contains("`optim.lr` expected 0.1"), "{err}");
    assert!(err.hint().is_some());
    let with = |precision: &str| serde_json::json!({"optim": {"lr": 0.1}, "seed": 1, "precision": precision});
    learner().0.load(&path, &with("f32")).unwrap();
    let err = learner().0.load(&path, &with("bf16")).unwrap_err().to_string();
    assert!(err.contains("`precision` expected f32 as in the checkpoint, got bf16"), "{err}");
    tensor_file::write(&path, &Text::new(), Vec::new()).unwrap();
    let err = learner().0.load(&path, &saved).unwrap_err().to_string();
    assert!(err.contains("expected a checkpoint"), "{err}");
}

#[test]
fn micro_batches_make_the_step_of_one_batch() {
    let (mut one, x) = learner();
    one.backward(&loss(&x, 1.0), 1, None, &mut Alone).unwrap();
    let last = one.update(0.1).unwrap();
    let (mut many, y) = learner();
    for _ in 0..4 {
        many.backward(&loss(&y, 1.0), 4, None, &mut Alone).unwrap();
    }
    assert_eq!(many.update(0.1).unwrap(), last, "of a whole micro-batch");
    assert_eq!(weights(&one), weights(&many));
}

#[test]
fn the_sum_is_clipped_after_every_micro_batch() {
    let variables = Variables::new(3, &Device::Cpu);
    let x = variables.builder().get_with_hints(2, "x", Init::Const(0.0)).unwrap();
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let mut learner = Learner::new(variables, rule, None).unwrap();
    for gradient in [[3f32, 4.0], [0.0, 4.0]] {
        let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
        let loss = (&x * gradient).unwrap().sum_all().unwrap();
        learner.backward(&loss, 1, Some(1.0), &mut Alone).unwrap();
    }
    learner.update(1.0).unwrap();
    // PyTorch: `clip_grad_norm_` after each of two backward passes. (3, 4) becomes (0.6, 0.8); with
    // (0, 4) that is (0.6, 4.8), of length 4.8374. Clipped once, it would be (0.3511, 0.9363).
    let got: Vec<f32> = x.to_vec1().unwrap();
    assert!((got[0] + 0.124_035).abs() < 1e-5 && (got[1] + 0.992_278).abs() < 1e-5, "{got:?}");
}

#[test]
fn the_gradients_of_every_backward_pass_can_be_reduced() {
    struct Twice(Vec<String>);
    impl Reduce for Twice {
        fn reduce(&mut self, gradients: &mut Gradients) -> candle_core::Result<()> {
            for (name, gradient) in gradients.iter_mut() {
                self.0.push(name.to_owned());
                *gradient = (&*gradient * 2.0)?;
            }
            Ok(())
        }
    }
    let (mut learner, x) = learner();
    let mut twice = Twice(Vec::new());
    learner.backward(&loss(&x, 1.0), 1, None, &mut twice).unwrap();
    let (sum, _) = learner.sum.as_ref().unwrap();
    let got = sum.iter().next().unwrap().1.to_vec1::<f32>().unwrap();
    let expected: Vec<f32> = x.to_vec1::<f32>().unwrap().iter().map(|x| 4.0 * (x - 1.0)).collect();
    assert_eq!(got, expected);
    assert_eq!(twice.0, ["x"]);
}

#[test]
fn a_loss_or_a_gradient_that_is_not_finite_ends_the_training() {
    let (mut learner, x) = learner();
    let check = |learner: &mut Learner, loss: Tensor, expected: &str| {
        let err = learner.backward(&loss, 1, Some(1.0), &mut Alone).unwrap_err();
        assert!(matches!(err, TrainError::NotFinite { step: 0, what, .. } if what == expected));
    };
    check(&mut learner, (loss(&x, 1.0) * f64::INFINITY).unwrap(), "loss");
    // The root of nothing is nothing, and infinitely steep.
    let root = (&x - x.detach()).unwrap().sqrt().unwrap().sum_all().unwrap();
    check(&mut learner, root, "norm of the gradient");
}
