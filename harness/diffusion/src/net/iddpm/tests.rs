//! The network against numbers of the reference, its gradients, and what makes no network.

use candle_core::{Device, Tensor};
use oodbench_nn::formula;
use oodbench_nn::variables::Variables;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;

/// A small network with some keys exchanged.
fn config(changes: &Value) -> IddpmConfig {
    let mut config = json!({
        "image_size": 16, "num_classes": 10, "in_channels": 3, "model_channels": 32,
        "out_channels": 6, "num_res_blocks": 1, "attention_resolutions": [2], "dropout": 0.3,
        "channel_mult": [1, 2], "use_scale_shift_norm": true, "num_heads": 4,
        "num_heads_upsample": 4,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

fn eps(model: &IddpmUNet, pass: Pass<'_>) -> Tensor {
    let x = Tensor::from_vec(formula::normal("xs", 2 * 768), (2, 3, 16, 16), &Device::Cpu).unwrap();
    let t = Tensor::new(&[3f32, 999.0], &Device::Cpu).unwrap();
    let y = Tensor::new(&[1u32, 10], &Device::Cpu).unwrap();
    model.eps(&x, &t, (model.n_classes() > 0).then_some(&y), pass).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Eight values, evenly spaced over the output, from DiffOOD's `UNetModel` (commit 1c87ba0) on the
/// same weights, PyTorch on the CPU. Its averaging, which cannot be built, was mended.
fn check(changes: Value, expected: [f32; 8]) {
    let vb = formula::var_builder(Default::default());
    let model = IddpmUNet::new(&config(&changes), Form::FIRST, vb);
    let ours = values(&eps(&model.unwrap(), Pass::Sample));
    assert_eq!(ours.len(), 2 * 768);
    for (i, expected) in expected.iter().enumerate() {
        let ours = ours[i * (ours.len() - 1) / 7];
        assert!((ours - expected).abs() < 2e-5, "{changes}: {ours} {expected}");
    }
}

#[test]
fn noise_is_that_of_the_reference() {
    check(
        json!({"use_scale_shift_norm": false}),
        [0.540135, 0.565337, -0.942128, -0.173367, 0.273452, 0.217227, 0.192542, -0.261328],
    );
    check(
        json!({"conv_resample": false}),
        [0.226166, 0.204965, -1.630473, -0.049467, -0.533443, 1.069856, 0.241278, -0.230983],
    );
    check(
        json!({"num_heads": 2, "num_heads_upsample": 8, "attention_resolutions": [1, 2]}),
        [0.570683, 0.398591, -0.962778, -0.313528, 0.106832, 0.263134, 0.322365, -0.341318],
    );
    check(
        json!({"channel_mult": [1, 2, 3], "attention_resolutions": [4, 1], "num_res_blocks": 2,
               "num_heads": 1, "num_heads_upsample": -1}),
        [-0.174156, 0.090569, -0.158519, -0.466201, 0.726284, 0.074671, -0.305617, -0.064747],
    );
    check(
        json!({"num_classes": 0, "attention_resolutions": []}),
        [0.308361, 1.207263, -0.859638, 0.127182, -1.027853, -0.386509, -0.013384, -0.347256],
    );
    check(
        json!({"channel_mult": [1], "attention_resolutions": [], "model_channels": 64,
               "num_heads": 8, "num_heads_upsample": 2}),
        [-0.186633, 0.046766, 0.322413, -0.85702, 0.065453, -1.429455, -0.57108, 0.356088],
    );
}

#[test]
fn a_fresh_network_predicts_nothing_and_learns() {
    let variables = Variables::new(3, &Device::Cpu);
    let config = config(&json!({"dropout": 0.0}));
    let model = IddpmUNet::new(&config, Form::FIRST, variables.builder()).unwrap();
    let out = eps(&model, Pass::Sample);
    // The last convolution starts as zero.
    assert!(values(&out).iter().all(|&value| value == 0.0));
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let loss = (eps(&model, Pass::Train(&mut rng)) - 1.0).unwrap().sqr().unwrap().sum_all();
    let grads = loss.unwrap().backward().unwrap();
    let bias = variables.all().into_iter().find(|(name, _)| name == "out.2.bias").unwrap().1;
    let grad = values(grads.get(&bias).unwrap());
    // The learned variance has no part in the loss.
    assert!(grad[..3].iter().all(|&g| g < 0.0) && grad[3..] == [0.0; 3], "{grad:?}");
}

#[test]
fn every_weight_has_a_gradient_that_differences_confirm() {
    let variables = Variables::new(3, &Device::Cpu);
    let config = config(&json!({"dropout": 0.0, "attention_resolutions": [1, 2]}));
    let model = IddpmUNet::new(&config, Form::FIRST, variables.builder()).unwrap();
    // Weights by formula, because half of a fresh network is zero.
    for (name, var) in variables.all() {
        let weight = formula::weight(&name, var.dims());
        var.set(&Tensor::from_vec(weight, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let loss = || {
        let eps = eps(&model, Pass::Sample).to_dtype(candle_core::DType::F64).unwrap();
        eps.sqr().unwrap().sum_all().unwrap()
    };
    let grads = loss().backward().unwrap();
    for (name, var) in variables.all() {
        let grad = grads.get(&var).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        if !["out_layers.0.weight", "emb_layers.1.bias", "qkv.weight"].iter().any(|end| {
            name.ends_with(end) && (name.starts_with("middle_block") || name.contains("s.1."))
        }) {
            continue;
        }
        // Along the gradient the loss rises by its squared norm.
        let step = 1e-3 / grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let start = var.as_detached_tensor().copy().unwrap();
        let at = |sign: f64| {
            let moved = (&start + (grad * (sign * f64::from(step))).unwrap()).unwrap();
            var.set(&moved).unwrap();
            loss().to_scalar::<f64>().unwrap()
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(step));
        var.set(&start).unwrap();
        let expected =
            f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((slope / expected - 1.0).abs() < 0.02, "{name}: {slope} {expected}");
    }
}

#[test]
fn dropout_is_drawn_in_training_alone() {
    let vb = formula::var_builder(Default::default());
    let model = IddpmUNet::new(&config(&json!({})), Form::FIRST, vb).unwrap();
    let train = |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        values(&eps(&model, Pass::Train(&mut rng)))
    };
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    assert_ne!(train(1), values(&eps(&model, Pass::Sample)));
}

#[test]
fn a_configuration_that_makes_no_network_names_its_key() {
    let check = |changes: Value, expected: &str| {
        assert_eq!(config(&changes).check().unwrap_err().to_string(), expected);
    };
    check(json!({"num_heads": 5}), "`num_heads` expected to divide 64, got 5");
    check(json!({"num_heads_upsample": 3}), "`num_heads_upsample` expected to divide 64, got 3");
    check(json!({"image_size": 15}), "`image_size` expected to be halved 1 times, got 15");
    check(json!({"image_size": 0}), "`image_size` expected 1 to 65536, got 0");
    check(json!({"model_channels": 48}), "`model_channels` expected a multiple of 32, got 48");
    check(json!({"num_heads": 0}), "`num_heads` expected 1 to 65536, got 0");
    check(json!({"channel_mult": [2]}), "`channel_mult` expected 1 and more multiples, got [2]");
    check(json!({"out_channels": 7}), "`out_channels` expected 3 to 6, got 7");
    check(json!({"dims": 1}), "`dims` expected 2, got 1");
}
