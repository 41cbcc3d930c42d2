//! Training on a device, step by step, against the same steps on the CPU.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use oodbench_diffusion::config::LossType;
use oodbench_diffusion::net::NetConfig;
use oodbench_diffusion::sampler::Method;
use oodbench_diffusion::schedule::ScheduleConfig;
use oodbench_diffusion::train::{DiffusionTraining, Length, Recipe, Share};
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::examples::{Augmentation, Examples, Feed, Range, batch};
use oodbench_nn::optim::Rule;
use oodbench_nn::precision::Precision;
use oodbench_nn::tensor_file::Text;
use oodbench_nn::train::{Alone, ClassifierRecipe, ClassifierTraining, Fall, Rates, TrainError};
use serde_json::json;

use super::Gpu;

const SIDE: usize = 8;

/// Images of smooth stripes, two classes of them.
struct Stripes(Vec<u8>);

impl Stripes {
    fn new() -> Self {
        let pixel = |i: usize| {
            let (image, x, y, channel) =
                (i / (SIDE * SIDE * 3), i / 3 % SIDE, i / 3 / SIDE % SIDE, i % 3);
            let along = if image.is_multiple_of(2) { x } else { y };
            ((along * 29 + image * 17 + channel * 40) % 256) as u8
        };
        Self((0..12 * SIDE * SIDE * 3).map(pixel).collect())
    }
}

impl Examples for Stripes {
    fn len(&self) -> usize {
        12
    }
    fn size(&self) -> (usize, usize) {
        (SIDE, SIDE)
    }
    fn pixels(&self, index: usize) -> &[u8] {
        &self.0[index * SIDE * SIDE * 3..(index + 1) * SIDE * SIDE * 3]
    }
    fn label(&self, index: usize) -> u32 {
        index as u32 % 2
    }
}

fn net() -> NetConfig {
    serde_json::from_value(json!({
        "struc": "DDIM", "image_size": SIDE, "num_classes": 2, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4],
        "dropout": 0.1, "resamp_with_conv": true,
    }))
    .expect("a network")
}

fn recipe() -> Recipe {
    let (beta1, beta2) = (0.9, 0.999);
    Recipe {
        length: Length::Steps(1000),
        batch_size: 4,
        accumulate: 1,
        rates: Rates { base: 2e-3, warmup: 2, fall: Fall::None },
        rule: Rule::AdamW { beta1, beta2, eps: 1e-8, weight_decay: 0.01, amsgrad: false },
        grad_clip: 1.0,
        cond_ratio: 0.9,
        interval: None,
        loss: LossType::Square,
        ema_rate: Some(0.9),
        augmentation: Augmentation { crop_padding: 1, horizontal_flip: true },
        precision: Precision::F32,
        seed: 3,
    }
}

fn training<'a>(examples: &'a Stripes, recipe: &Recipe, device: &Device) -> DiffusionTraining<'a> {
    let schedule = ScheduleConfig::default();
    DiffusionTraining::new(&net(), &schedule, examples, recipe, device).expect("a training")
}

fn losses(training: &mut DiffusionTraining<'_>, steps: usize) -> Vec<f64> {
    (0..steps).map(|_| training.step(&mut Alone).expect("a step").loss).collect()
}

fn flat(weights: &BTreeMap<String, Tensor>) -> Vec<f32> {
    let numbers = |tensor: &Tensor| -> candle_core::Result<Vec<f32>> {
        tensor.flatten_all()?.to_vec1::<f32>()
    };
    weights.values().flat_map(|tensor| numbers(tensor).expect("numbers")).collect()
}

fn weights(training: &DiffusionTraining<'_>) -> (Vec<f32>, Vec<f32>) {
    let average = training.average().expect("averages").expect("an average");
    (flat(&training.weights().expect("weights")), flat(&average))
}

#[track_caller]
fn assert_losses(what: &str, ours: &[f64], expected: &[f64], tolerance: f64) {
    for (step, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let off = (ours / expected - 1.0).abs();
        assert!(off < tolerance, "{what}: loss {step} expected {expected}, got {ours}");
    }
}

#[test]
fn losses_and_weights_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    // Adam moves a weight by the rate, whatever the size of its gradient, and one that is nothing but
    // rounding may point either way: a bias before a group of one channel has such. With this `eps`
    // it moves nothing.
    let (beta1, beta2) = (0.9, 0.999);
    let rule = Rule::AdamW { beta1, beta2, eps: 1e-4, weight_decay: 0.01, amsgrad: false };
    let adam = Recipe { rule, ..recipe() };
    let loss = LossType::Linear;
    let sums = Recipe { batch_size: 2, accumulate: 2, loss, ..adam.clone() };
    let plain = Recipe {
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        rates: Rates { base: 1e-2, warmup: 1, fall: Fall::None },
        ..recipe()
    };
    for (what, recipe) in [("AdamW", adam), ("micro-batches", sums), ("SGD", plain)] {
        let mut expected = training(&examples, &recipe, &Device::Cpu);
        let mut ours = training(&examples, &recipe, &gpu.device);
        let (of_cpu, of_ours) = (losses(&mut expected, 4), losses(&mut ours, 4));
        assert_losses(what, &of_ours, &of_cpu, 1e-4);
        let ((expected, expected_average), (ours, our_average)) =
            (weights(&expected), weights(&ours));
        for (ours, expected) in [(ours, expected), (our_average, expected_average)] {
            let apart = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            let off = ours.iter().zip(&expected).map(apart).sum::<f64>();
            let length = expected.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
            let off = (off / length).sqrt();
            assert!(off < 1e-4, "{what}: weights are off by {off:.1e} of their length");
        }
    }
}

#[test]
fn training_in_bf16_stays_near_and_learns() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    let bf16 = Recipe { precision: Precision::Bf16, ..recipe() };
    let expected = losses(&mut training(&examples, &recipe(), &Device::Cpu), 3);
    let mut ours = training(&examples, &bf16, &gpu.device);
    let mut of_ours = losses(&mut ours, 3);
    // Eight bits of each activation; a loss is the mean of hundreds of squares of them.
    assert_losses("bf16", &of_ours, &expected, 3e-2);
    of_ours.extend(losses(&mut ours, 17));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&of_ours[..5]), mean(&of_ours[15..]));
    assert!(last < 0.9 * first, "losses {of_ours:?}");
    let ema = weights(&ours).1;
    assert!(ema.iter().all(|value| value.is_finite()));
    // In `f32` underneath: more bits than `bf16` has are in use.
    let fine = ema.iter().filter(|value| value.to_bits() & 0xFFFF != 0).count();
    assert!(fine > ema.len() / 2, "{fine} of {} weights", ema.len());
}

#[test]
fn a_training_that_was_stopped_goes_on_bit_for_bit() {
    let gpu = Gpu::new();
    let (folder, configuration) = (tempfile::tempdir().expect("a folder"), json!({}));
    let examples = Stripes::new();
    let check = |recipe: &Recipe, path: &Path| {
        let mut whole = training(&examples, recipe, &gpu.device);
        losses(&mut whole, 2);
        whole.save(path, &configuration, Text::new()).expect("a checkpoint");
        let mut resumed = training(&examples, recipe, &gpu.device);
        // Moments and averages move to other memory when they are read.
        losses(&mut resumed, 1);
        resumed.load(path, &configuration).expect("the checkpoint");
        assert_eq!(losses(&mut whole, 2), losses(&mut resumed, 2));
        assert!(weights(&whole) == weights(&resumed), "{recipe:?}");
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let recipe = Recipe { precision, ..recipe() };
        check(&recipe, &folder.path().join(precision.name()));
    }
}

#[test]
fn a_step_that_is_not_finite_moves_nothing() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    let wild = Recipe { rates: Rates { base: 1e30, warmup: 0, fall: Fall::None }, ..recipe() };
    let mut training = training(&examples, &wild, &gpu.device);
    training.step(&mut Alone).expect("the first step is too long, but finite");
    let (before, step) = (weights(&training), training.step_count());
    let error = training.step(&mut Alone).expect_err("nothing is finite now");
    assert!(matches!(error, TrainError::NotFinite { step: 1, .. }), "{error}");
    assert_eq!(training.step_count(), step);
    let bits = |(a, b): (Vec<f32>, Vec<f32>)| -> Vec<u32> {
        a.iter().chain(&b).map(|value| value.to_bits()).collect()
    };
    assert!(bits(before) == bits(weights(&training)));
}

#[test]
fn a_validation_is_that_of_the_cpu() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    let look = |device: &Device| {
        let training = training(&examples, &recipe(), device);
        let images = training.validate(Method::Ddim, 3).expect("images");
        images.to_device(&Device::Cpu).expect("a copy")
    };
    super::assert_close("validation", &look(&gpu.device), &look(&Device::Cpu), super::F32);
}

#[test]
fn batches_are_those_of_the_cpu_bit_for_bit_wherever_the_pixels_lie() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    let some = Augmentation { crop_padding: 2, horizontal_flip: true };
    let order = [5, 0, 11, 3, 8, 8, 2];
    let flat = |xs: Tensor| xs.flatten_all().and_then(|xs| xs.to_vec1::<f32>()).expect("numbers");
    for limit in [usize::MAX, 0] {
        let mut feed = Feed::with_limit(&examples, &gpu.device, limit).expect("a feed");
        for (range, number) in [(Range::Unit, 1), (Range::Signed, 2)] {
            let (xs, _) =
                batch(&examples, &order, some, (9, number), &Device::Cpu).expect("images");
            let xs =
                if range == Range::Signed { xs.affine(2.0, -1.0).expect("images") } else { xs };
            for share in [0..7, 2..5] {
                let expected = xs.narrow(0, share.start, share.len()).expect("a share");
                let ours = feed.images(&order, share, some, (9, number), range).expect("images");
                assert!(flat(ours) == flat(expected), "limit {limit}, {range:?}");
            }
        }
    }
}

/// What one process computes of the whole batch, two compute of its halves.
#[test]
fn gradients_of_shares_average_to_those_of_the_batch() {
    use candle_core::Result;
    use oodbench_nn::train::{Gradients, Reduce};

    /// Keeps what it is given, and ends the step.
    #[derive(Default)]
    struct Seen(Vec<Vec<f32>>, f32);
    impl Reduce for Seen {
        fn reduce(&mut self, gradients: &mut Gradients) -> Result<()> {
            let flat = |(_, g): (&str, &Tensor)| g.flatten_all()?.to_vec1::<f32>();
            self.0 = gradients.iter().map(flat).collect::<Result<_>>()?;
            Ok(())
        }
        fn mean(&mut self, loss: Tensor) -> Result<Tensor> {
            self.1 = loss.to_scalar()?;
            Ok(loss)
        }
    }

    let gpu = Gpu::new();
    let examples = Stripes::new();
    let of = |share: Share| {
        let mut training = training(&examples, &recipe(), &gpu.device);
        training.take_share(share).expect("an even share");
        let mut seen = Seen::default();
        training.step(&mut seen).expect("a step");
        seen
    };
    let whole = of(Share::WHOLE);
    let halves = [0, 1].map(|rank| of(Share { rank, world: 2 }));
    let loss = (halves[0].1 + halves[1].1) / 2.0;
    assert!((loss / whole.1 - 1.0).abs() < 1e-5, "expected {}, got {loss}", whole.1);
    let greatest = whole.0.iter().flatten().fold(0f32, |most, g| most.max(g.abs()));
    for (nth, expected) in whole.0.iter().enumerate() {
        for (i, expected) in expected.iter().enumerate() {
            let mean = (halves[0].0[nth][i] + halves[1].0[nth][i]) / 2.0;
            let off = (mean - expected).abs();
            assert!(off < 1e-4 * greatest, "gradient {nth}: expected {expected}, got {mean}");
        }
    }
    let mut odd = training(&examples, &recipe(), &gpu.device);
    let error = odd.take_share(Share { rank: 0, world: 3 }).expect_err("four in three");
    assert!(error.to_string().contains("a multiple of 3"), "{error}");
}

#[test]
fn a_classifier_learns_as_on_the_cpu() {
    let gpu = Gpu::new();
    let examples = Stripes::new();
    let recipe = ClassifierRecipe {
        epochs: 2,
        batch_size: 5,
        learning_rate: 0.05,
        last_learning_rate: 0.0,
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 },
        augmentation: Augmentation { crop_padding: 1, horizontal_flip: true },
        seed: 4,
    };
    let normalisation = Normalisation { mean: [0.4, 0.5, 0.6], std: [0.2, 0.25, 0.3] };
    let arch = Architecture::ResNetCifar { blocks: 1, width: 16, projection: true };
    let run = |device: &Device| {
        let training = ClassifierTraining::new(arch, 2, normalisation, &examples, &recipe, device);
        let mut training = training.expect("a training");
        let losses: Vec<f64> =
            (0..4).map(|_| training.step(&mut Alone).expect("a step").loss).collect();
        let accuracy = training.accuracy(&examples).expect("an accuracy");
        (losses, accuracy)
    };
    let (expected, ours) = (run(&Device::Cpu), run(&gpu.device));
    // Batch statistics of five images and ReLU's kinks make more of rounding than a U-Net does.
    assert_losses("classifier", &ours.0, &expected.0, 1e-3);
    assert!((ours.1 - expected.1).abs() < 0.1, "accuracy expected {}, got {}", expected.1, ours.1);
}
