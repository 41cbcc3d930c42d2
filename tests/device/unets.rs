//! The noise-prediction networks, sampling.

use candle_core::{DType, Device, Result, Tensor};
use oodbench_diffusion::net::{EpsModel, NetConfig, Pass};
use oodbench_nn::formula;
use oodbench_nn::precision::Precision;
use oodbench_nn::variables::Variables;
use serde_json::json;

use super::variants::{self, Inputs};
use super::{Gpu, assert_close, tolerance};

fn build(net: &NetConfig, device: &Device, precision: Precision) -> Box<dyn EpsModel> {
    let vb = formula::var_builder(Default::default()).set_device(device.clone());
    net.build_in(vb, precision).expect("a network")
}

fn eps(model: &dyn EpsModel, net: &NetConfig, device: &Device) -> Tensor {
    let Inputs { x, t, y } = Inputs::of(net, device);
    model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass")
}

/// A network in a precision, which is run twice: weights are packed the first time.
fn check(precision: Precision) {
    let gpu = Gpu::new();
    gpu.rounding(precision);
    for (name, net) in variants::every() {
        let cpu = build(&net, &Device::Cpu, Precision::F32);
        let expected = eps(cpu.as_ref(), &net, &Device::Cpu);
        let model = build(&net, &gpu.device, precision);
        for pass in ["first", "second"] {
            let ours = eps(model.as_ref(), &net, &gpu.device);
            assert_eq!(ours.dtype(), DType::F32, "{name}");
            let what = format!("{name} in {precision}, {pass} pass");
            assert_close(&what, &ours, &expected, tolerance(precision));
        }
    }
}

#[test]
fn noise_is_that_of_the_cpu() {
    check(Precision::F32);
}

#[test]
fn noise_in_tf32_is_near_that_of_the_cpu() {
    check(Precision::Tf32);
}

#[test]
fn noise_in_bf16_is_near_that_of_the_cpu() {
    check(Precision::Bf16);
}

/// Variables are packed at every pass, and moved ones count at once.
#[test]
fn noise_of_variables_follows_them() {
    let gpu = Gpu::new();
    let net = variants::iddpm(&json!({}));
    let variables = Variables::new(3, &gpu.device);
    let model = net.build(variables.builder()).expect("a network");
    for factor in [1.0, 0.5] {
        let weight = |name: &str, shape: &[usize]| -> Result<Tensor> {
            let weight = Tensor::from_vec(formula::weight(name, shape), shape, &Device::Cpu)?;
            weight * factor
        };
        let mut constants = std::collections::HashMap::new();
        for (name, var) in variables.all() {
            let weight = weight(&name, var.dims()).expect("a weight");
            var.set(&gpu.tensor(&weight)).expect("a weight of the same shape");
            constants.insert(name, weight);
        }
        let vb = candle_nn::VarBuilder::from_tensors(constants, DType::F32, &Device::Cpu);
        let cpu = net.build(vb).expect("a network");
        let expected = eps(cpu.as_ref(), &net, &Device::Cpu);
        let ours = eps(model.as_ref(), &net, &gpu.device);
        assert_close(&format!("weights times {factor}"), &ours, &expected, super::F32);
    }
}

/// Images of other sizes than the network was made for, and one image alone.
#[test]
fn any_size_and_batch_that_halves_evenly() {
    let gpu = Gpu::new();
    let net = variants::ddim(&json!({}));
    let (cpu, ours) =
        (build(&net, &Device::Cpu, Precision::F32), build(&net, &gpu.device, Precision::F32));
    for (batch, height, width) in [(1, 8, 8), (2, 12, 6), (5, 4, 10)] {
        let len = batch * 3 * height * width;
        let run = |model: &dyn EpsModel, device: &Device| -> Result<Tensor> {
            let x = Tensor::from_vec(formula::normal("x", len), (batch, 3, height, width), device)?;
            let t = Tensor::full(250f32, batch, device)?;
            let y = Tensor::full(4u32, batch, device)?;
            model.eps(&x, &t, Some(&y), Pass::Sample)
        };
        let expected = run(cpu.as_ref(), &Device::Cpu).expect("a forward pass");
        let ours = run(ours.as_ref(), &gpu.device).expect("a forward pass");
        assert_close(&format!("{batch} of {height}x{width}"), &ours, &expected, super::F32);
    }
}

/// Images that are a part of a larger tensor begin somewhere in its memory.
#[test]
fn a_part_of_a_batch_is_taken_as_it_lies() {
    let gpu = Gpu::new();
    let net = variants::ddim(&json!({}));
    let model = build(&net, &gpu.device, Precision::F32);
    let Inputs { x, t, y } = Inputs::of(&net, &gpu.device);
    let y = y.expect("classes");
    let all = model.eps(&x, &t, Some(&y), Pass::Sample).expect("a forward pass");
    let part = |tensor: &Tensor| tensor.narrow(0, 1, 2).expect("two of three");
    let ours = model.eps(&part(&x), &part(&t), Some(&part(&y)), Pass::Sample);
    assert_close("two of three", &ours.expect("a forward pass"), &part(&all), super::F32);
}
