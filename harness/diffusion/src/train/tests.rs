//! Tests of the training as a whole, on images of eight pixels.

use super::*;
use crate::config::LossType;
use crate::sampler::Method;
use oodbench_nn::examples::Augmentation;
use oodbench_nn::optim::Rule;
use oodbench_nn::precision::Precision;
use oodbench_nn::train::{Fall, Gradients, Rates};

fn recipe() -> Recipe {
    Recipe {
        length: Length::Steps(4),
        batch_size: 4,
        accumulate: 1,
        rates: Rates { base: 1e-3, warmup: 2, fall: Fall::None },
        rule: Rule::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            amsgrad: false,
        },
        grad_clip: 1.0,
        cond_ratio: 0.9,
        interval: None,
        loss: LossType::Square,
        ema_rate: Some(0.9),
        augmentation: Augmentation { crop_padding: 0, horizontal_flip: true },
        precision: Precision::F32,
        seed: 3,
    }
}

fn net() -> NetConfig {
    serde_json::from_value(serde_json::json!({
        "struc": "DDIM", "image_size": 8, "num_classes": 2, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
        "dropout": 0.1, "resamp_with_conv": true,
    }))
    .unwrap()
}

struct Checks(Vec<u8>);

impl Checks {
    fn new() -> Self {
        Self((0..8 * 8 * 3 + 10).map(|i| (i * 37 % 256) as u8).collect())
    }
}

impl Examples for Checks {
    fn len(&self) -> usize {
        10
    }
    fn size(&self) -> (usize, usize) {
        (8, 8)
    }
    fn pixels(&self, index: usize) -> &[u8] {
        &self.0[index..index + 8 * 8 * 3]
    }
    fn label(&self, index: usize) -> u32 {
        index as u32 % 2
    }
}

fn flat(weights: &BTreeMap<String, Tensor>) -> Vec<f32> {
    weights.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn training<'a>(examples: &'a Checks, recipe: &Recipe) -> DiffusionTraining<'a> {
    let schedule = ScheduleConfig::default();
    DiffusionTraining::new(&net(), &schedule, examples, recipe, &Device::Cpu).unwrap()
}

fn refusal(net: &NetConfig, recipe: &Recipe) -> String {
    let schedule = ScheduleConfig::default();
    let examples = Checks::new();
    let training = DiffusionTraining::new(net, &schedule, &examples, recipe, &Device::Cpu);
    training.err().unwrap().to_string()
}

#[test]
fn training_that_was_stopped_ends_with_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let configuration = serde_json::json!({"seed": 3});
    let train = |steps, checkpoint: Option<&Path>| {
        let recipe = Recipe { length: Length::Steps(steps), ..recipe() };
        let checkpoint = checkpoint.map(|path| (path, &configuration));
        let (net, schedule, examples) = (net(), ScheduleConfig::default(), Checks::new());
        let device = Device::Cpu;
        let weights =
            train_diffusion(&net, &schedule, &examples, &recipe, checkpoint, &device, |_| ());
        flat(&weights.unwrap())
    };
    let whole = train(4, None);
    train(2, Some(&path));
    let resumed = train(4, Some(&path));
    assert_eq!(whole, resumed);
    assert_ne!(whole, train(2, None));
}

#[test]
fn it_goes_on_bit_for_bit_with_accumulation_over_the_end_of_a_pass() {
    // Ten images in batches of two are five batches, of which two make a step: the fifth one goes
    // into the third step.
    let recipe = Recipe { batch_size: 2, accumulate: 2, loss: LossType::Linear, ..recipe() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let configuration = serde_json::json!({});
    let examples = Checks::new();
    let mut whole = training(&examples, &recipe);
    let mut images = Vec::new();
    for step in 1..=4 {
        images.push(whole.step(&mut Alone).unwrap().images);
        if step == 2 {
            whole.save(&path, &configuration, Text::new()).unwrap();
        }
    }
    assert_eq!(images, [4, 4, 6, 4]);
    let mut resumed = training(&examples, &recipe);
    resumed.load(&path, &configuration).unwrap();
    for _ in 0..2 {
        resumed.step(&mut Alone).unwrap();
    }
    assert_eq!(flat(&whole.weights().unwrap()), flat(&resumed.weights().unwrap()));
    let average = |training: &DiffusionTraining<'_>| flat(&training.average().unwrap().unwrap());
    assert_eq!(average(&whole), average(&resumed));
}

#[test]
fn the_loss_of_a_batch_is_divided_by_their_number() {
    struct Norms(Vec<f64>);
    impl Reduce for Norms {
        fn reduce(&mut self, gradients: &mut Gradients) -> candle_core::Result<()> {
            self.0.push(gradients.norm()?);
            Ok(())
        }
    }
    let examples = Checks::new();
    let norms = |accumulate| {
        let recipe = Recipe { batch_size: 2, accumulate, ..recipe() };
        let mut norms = Norms(Vec::new());
        training(&examples, &recipe).step(&mut norms).unwrap();
        norms.0
    };
    let (alone, first_of_two) = (norms(1), norms(2));
    assert_eq!((alone.len(), first_of_two.len()), (1, 2));
    assert!((alone[0] / first_of_two[0] - 2.0).abs() < 1e-6, "{alone:?} {first_of_two:?}");
}

#[test]
fn a_step_that_failed_can_be_tried_again() {
    /// Fails at the second backward pass.
    struct Once(usize);
    impl Reduce for Once {
        fn reduce(&mut self, _: &mut Gradients) -> candle_core::Result<()> {
            self.0 += 1;
            if self.0 == 2 { candle_core::bail!("a machine is gone") } else { Ok(()) }
        }
    }
    let recipe = Recipe { batch_size: 2, accumulate: 2, ..recipe() };
    let examples = Checks::new();
    let (mut smooth, mut troubled) = (training(&examples, &recipe), training(&examples, &recipe));
    let mut once = Once(0);
    assert!(troubled.step(&mut once).unwrap_err().to_string().contains("a machine is gone"));
    for training in [&mut smooth, &mut troubled] {
        for _ in 0..2 {
            training.step(&mut Alone).unwrap();
        }
    }
    assert_eq!(flat(&smooth.weights().unwrap()), flat(&troubled.weights().unwrap()));
}

#[test]
fn the_first_step_of_a_warm_up_moves_nothing() {
    let examples = Checks::new();
    let mut training = training(&examples, &recipe());
    let before = flat(&training.weights().unwrap());
    let report = training.step(&mut Alone).unwrap();
    assert_eq!(flat(&training.weights().unwrap()), before);
    assert_eq!((report.step, report.next_rate), (1, 5e-4));
    training.step(&mut Alone).unwrap();
    assert_ne!(flat(&training.weights().unwrap()), before);
}

#[test]
fn the_average_can_be_left_out() {
    let examples = Checks::new();
    let mut training = training(&examples, &Recipe { ema_rate: None, ..recipe() });
    training.step(&mut Alone).unwrap();
    assert!(training.average().unwrap().is_none());
}

#[test]
fn a_validation_depends_on_the_step_and_leaves_the_training_alone() {
    let examples = Checks::new();
    let look = |training: &DiffusionTraining<'_>| {
        let images = training.validate(Method::Ddim, 4).unwrap();
        assert_eq!(images.dims(), [8, 3, 8, 8]);
        images.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (mut looked, mut blind) = (training(&examples, &recipe()), training(&examples, &recipe()));
    for training in [&mut looked, &mut blind] {
        for _ in 0..2 {
            training.step(&mut Alone).unwrap();
        }
    }
    let first = look(&looked);
    assert_eq!(first, look(&looked));
    for training in [&mut looked, &mut blind] {
        training.step(&mut Alone).unwrap();
    }
    assert_ne!(first, look(&looked));
    assert_eq!(flat(&looked.weights().unwrap()), flat(&blind.weights().unwrap()));
}

#[test]
fn a_training_that_diverges_ends_with_the_step() {
    let examples = Checks::new();
    let rates = Rates { base: 1e30, warmup: 0, fall: Fall::None };
    let mut training = training(&examples, &Recipe { rates, ..recipe() });
    let err = (0..4).find_map(|_| training.step(&mut Alone).err()).unwrap();
    assert!(err.to_string().contains("expected a finite number"), "{err}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let err = refusal(&net(), &Recipe { batch_size: 11, ..recipe() });
    assert!(err.contains("batch of 11 images, got 10"), "{err}");
    let err = refusal(&net(), &Recipe { accumulate: 3, ..recipe() });
    assert!(err.contains("batch of 12 images, got 10"), "{err}");
    let err = refusal(&net(), &Recipe { accumulate: u64::MAX, ..recipe() });
    assert!(err.contains("got 10"), "{err}");
    let err = refusal(&net(), &Recipe { interval: Some(1001), ..recipe() });
    assert!(err.contains("`iter_interval` expected from 1 to 1000"), "{err}");
    let mut value = serde_json::to_value(net()).unwrap();
    value["image_size"] = 16.into();
    let err = refusal(&serde_json::from_value(value.clone()).unwrap(), &recipe());
    assert!(
        err.contains("`Model.image_size` expected the size of the images, 8x8, got 16"),
        "{err}"
    );
    value["image_size"] = 8.into();
    value["num_classes"] = 1.into();
    let err = refusal(&serde_json::from_value(value.clone()).unwrap(), &recipe());
    let expected = "`Model.num_classes` expected at least 2, for the label of image 1, got 1";
    assert!(err.contains(expected), "{err}");
    value["num_classes"] = 2.into();
    value["out_ch"] = 1.into();
    let err = refusal(&serde_json::from_value(value).unwrap(), &recipe());
    assert!(err.contains("`Model.out_ch` expected 3, the channels of an image, got 1"), "{err}");
}
