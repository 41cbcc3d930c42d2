//! The reference's own numbers, by the device.

#[path = "../golden/samplers.rs"]
mod samplers;

use candle_core::{Device, Tensor};
use oodbench_diffusion::net::{NetConfig, Pass};
use oodbench_nn::arch::Taps;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_nn::train::architecture::architecture;
use oodbench_tests::goldens::{Goldens, input};
use serde_json::Value;

use super::{F32, Gpu, assert_close};

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

#[test]
fn unets_give_the_noise_of_the_reference() {
    let gpu = Gpu::new();
    let goldens = Goldens::open("diffood");
    let mut seen = 0;
    for case in goldens.cases("networks") {
        let net: NetConfig = read(&case["config"]);
        let vb = formula::var_builder(Default::default()).set_device(gpu.device.clone());
        let model = net.build(vb).expect("a network");
        let t: Vec<f32> = read(&case["t"]);
        let y: Option<Vec<u32>> = read(&case["y"]);
        let t = Tensor::new(t, &gpu.device).expect("steps");
        let y = y.map(|y| Tensor::new(y, &gpu.device).expect("classes"));
        let x = gpu.tensor(&input(&case["x"]));
        let ours = model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass");
        assert_close(&case["name"].to_string(), &ours, &goldens.tensor(&case["out"]), F32);
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no network");
}

#[test]
fn classifiers_give_what_the_reference_gives() {
    let gpu = Gpu::new();
    let goldens = Goldens::open("diffood");
    let mut seen = 0;
    for case in goldens.cases("classifiers") {
        let name = case["arch"].as_str().expect("a name");
        let arch = architecture(name).unwrap_or_else(|error| panic!("{error}"));
        let classes = case["classes"].as_u64().expect("a number") as usize;
        let vb = formula::var_builder(Default::default()).set_device(gpu.device.clone());
        let network = arch.build(classes, vb).unwrap_or_else(|error| panic!("{name}: {error}"));
        let first = case["first"].as_u64().expect("a number") as usize;
        let xs = input(&case["input"]).narrow(0, 0, first).expect("enough images");
        let row = |key: &str| {
            let numbers: Vec<f32> = read(&case[key]);
            Tensor::new(numbers, &Device::Cpu).and_then(|t| t.reshape((1, 3, 1, 1))).expect("a row")
        };
        let xs = xs.broadcast_sub(&row("mean")).and_then(|xs| xs.broadcast_div(&row("std")));
        let xs = gpu.tensor(&xs.expect("images of three channels"));
        let outputs = network.forward(&xs, Mode::Eval, &mut Taps::none()).expect("a forward pass");
        for (key, ours) in [("logits", &outputs.logits), ("features", &outputs.features)] {
            assert_close(&format!("{name} {key}"), ours, &goldens.tensor(&case[key]), F32);
        }
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no classifier");
}

#[test]
fn samplers_go_the_way_of_the_reference() {
    let gpu = Gpu::new();
    samplers::compare(&Goldens::open("diffood"), &gpu.device, |_| F32);
}
