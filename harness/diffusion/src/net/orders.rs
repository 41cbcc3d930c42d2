//! Both networks in channels-last order against themselves in channels-first order.

use candle_core::{Device, Tensor};
use oodbench_nn::formula;
use oodbench_nn::maps::Form;
use oodbench_nn::precision::Precision;
use oodbench_nn::variables::Variables;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;

fn ddim(changes: &Value) -> NetConfig {
    net(
        json!({
            "struc": "DDIM", "image_size": 8, "num_classes": 10, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4],
            "dropout": 0.2, "resamp_with_conv": true,
        }),
        changes,
    )
}

fn iddpm(changes: &Value) -> NetConfig {
    net(
        json!({
            "struc": "iDDPM", "image_size": 8, "num_classes": 10, "in_channels": 3,
            "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
            "attention_resolutions": [2], "dropout": 0.2, "channel_mult": [1, 2],
            "use_scale_shift_norm": true, "num_heads": 4, "num_heads_upsample": 2,
        }),
        changes,
    )
}

fn net(mut config: Value, changes: &Value) -> NetConfig {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

fn build(net: &NetConfig, form: Form, vb: VarBuilder) -> Box<dyn EpsModel> {
    match net {
        NetConfig::Ddim(config) => Box::new(DdimUNet::new(config, form, vb).unwrap()),
        NetConfig::Iddpm(config) => Box::new(IddpmUNet::new(config, form, vb).unwrap()),
    }
}

fn eps(model: &dyn EpsModel, pass: Pass<'_>) -> Tensor {
    let x = Tensor::from_vec(formula::normal("xs", 2 * 192), (2, 3, 8, 8), &Device::Cpu).unwrap();
    let t = Tensor::new(&[3f32, 999.0], &Device::Cpu).unwrap();
    let y = Tensor::new(&[1u32, 10], &Device::Cpu).unwrap();
    model.eps(&x, &t, (model.n_classes() > 0).then_some(&y), pass).unwrap()
}

/// Every number within `tolerance` of the largest one, or of a tenth: a bias before a group of
/// one channel has a gradient of zero, of which rounding leaves something.
#[track_caller]
fn assert_near(got: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let tolerance = tolerance * largest.max(1e-1);
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() <= tolerance, "{what}: {got} {expected}");
    }
}

#[track_caller]
fn check(net: &NetConfig) {
    // Constants, which are packed once, at each of two passes.
    let vb = || formula::var_builder(Default::default());
    let first = eps(build(net, Form::FIRST, vb()).as_ref(), Pass::Sample);
    let last = build(net, Form::LAST, vb());
    for _ in 0..2 {
        assert_near(&eps(last.as_ref(), Pass::Sample), &first, 1e-4, "noise");
    }

    // Variables, in training.
    let variables = Variables::new(3, &Device::Cpu);
    let models = [Form::FIRST, Form::LAST].map(|form| build(net, form, variables.builder()));
    for (name, var) in variables.all() {
        let weight = formula::weight(&name, var.dims());
        var.set(&Tensor::from_vec(weight, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let [first, last] = models.map(|model| {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let eps = eps(model.as_ref(), Pass::Train(&mut rng));
        let grads = eps.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        (eps, grads)
    });
    assert_near(&last.0, &first.0, 1e-4, "noise in training");
    for (name, var) in variables.all() {
        let (last, first) = (last.1.get(&var).unwrap(), first.1.get(&var).unwrap());
        assert_near(last, first, 2e-4, &name);
    }
}

#[test]
fn the_ddim_network_is_the_same_in_both_orders() {
    check(&ddim(&json!({})));
    check(&ddim(&json!({"resamp_with_conv": false, "num_classes": 0, "attn_resolutions": [8]})));
    check(&ddim(&json!({"ch_mult": [2, 1], "num_res_blocks": 2, "attn_resolutions": []})));
}

#[test]
fn the_iddpm_network_is_the_same_in_both_orders() {
    check(&iddpm(&json!({})));
    check(&iddpm(&json!({"use_scale_shift_norm": false, "conv_resample": false})));
    check(&iddpm(&json!({"num_classes": 0, "attention_resolutions": [1, 2], "out_channels": 3})));
}

#[test]
fn half_of_the_bits_stay_near() {
    for net in [ddim(&json!({})), iddpm(&json!({}))] {
        let run = |form| {
            let vb = formula::var_builder(Default::default());
            eps(build(&net, form, vb).as_ref(), Pass::Sample)
        };
        let form = Form { dtype: Precision::Bf16.dtype(), ..Form::LAST };
        assert_near(&run(form), &run(Form::FIRST), 3e-2, "noise");
    }
}

#[test]
fn the_halves_are_the_whole() {
    let net = ddim(&json!({}));
    let model = build(&net, Form::FIRST, formula::var_builder(Default::default()));
    let x = Tensor::from_vec(formula::normal("xs", 192), (1, 3, 8, 8), &Device::Cpu).unwrap();
    let t = Tensor::new(&[70f32], &Device::Cpu).unwrap();
    let y = Tensor::new(&[4u32], &Device::Cpu).unwrap();
    let halves = model.halves().unwrap();
    let condition = halves.condition(&t, Some(&y)).unwrap();
    let values = |eps: Tensor| eps.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let got = values(halves.eps_under(&x, &condition, Pass::Sample).unwrap());
    assert_eq!(got, values(model.eps(&x, &t, Some(&y), Pass::Sample).unwrap()));
}

#[test]
fn the_cpu_computes_in_f32_alone() {
    let build =
        |precision| ddim(&json!({})).build_in(formula::var_builder(Default::default()), precision);
    assert!(build(Precision::F32).is_ok());
    let error = build(Precision::Bf16).err().unwrap().to_string();
    assert!(error.contains("precision on the CPU expected `f32`, got `bf16`"), "{error}");
}
