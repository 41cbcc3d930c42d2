//! Schedules, networks, samplers and noising against DiffOOD's own numbers
//! (`golden/diffood/manifest.json`).
//!
//! Everything is read from the manifest, so that the same test runs on any other set of cases.
//! Tolerances are the manifest's, relative to the standard deviation of the expected tensor.

use candle_core::{DType, Device, Tensor};
use oodbench_diffusion::checkpoint::{self, Given};
use oodbench_diffusion::guidance::Guided;
use oodbench_diffusion::net::{NetConfig, Pass};
use oodbench_diffusion::sampler::{Method, Sampler};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::arch::{Architecture, Network, Taps};
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_tests::goldens::{Goldens, assert_close, input, strings};
use serde_json::Value;

fn goldens() -> Goldens {
    Goldens::open("diffood")
}

fn tolerance(goldens: &Goldens, kind: &str) -> f64 {
    goldens.manifest["tolerance_relative_to_std"][kind].as_f64().expect("a tolerance")
}

#[test]
fn schedules() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "schedules");
    for case in goldens.cases("schedules") {
        let config = ScheduleConfig {
            kind: serde_json::from_value(case["type"].clone()).expect("a known schedule"),
            beta_start: case["beta_start"].as_f64().expect("a number"),
            beta_end: case["beta_end"].as_f64().expect("a number"),
            diffusion_step: case["steps"].as_u64().expect("a number") as usize,
        };
        let schedule = Schedule::new(&config);
        for (key, ours) in [("betas", schedule.betas()), ("alphas_cump", schedule.alpha_bar())] {
            let expected = goldens.tensor(&case[key]);
            let ours = Tensor::new(ours, &Device::Cpu).expect("a tensor");
            assert_close(&format!("{} {key}", case["type"]), &ours, &expected, tolerance);
        }
    }
}

#[test]
fn networks() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "networks");
    let mut seen = 0;
    for case in goldens.cases("networks") {
        // The other architectures come with the rest of DiffOOD.
        if case["arch"] != "ddim" {
            continue;
        }
        let name = case["name"].as_str().expect("a name");
        let model = network(&case["config"]);
        let x = input(&case["x"]);
        let t: Vec<f32> = serde_json::from_value(case["t"].clone()).expect("steps");
        let y = classes(&case["y"]);
        let t = Tensor::new(t, &Device::Cpu).expect("a tensor");
        let ours = model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass");
        assert_close(name, &ours, &goldens.tensor(&case["out"]), tolerance);
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no network of architecture `ddim`");
}

/// The files of the reference: a plain state dict, and the list that its training saves. They do
/// not describe themselves; only the side of the images is given.
#[test]
fn networks_from_the_files_of_the_reference() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "networks");
    let folder = oodbench_tests::shared().join("golden/diffood");
    let mut seen = 0;
    for case in goldens.cases("networks").filter(|case| case["arch"] == "ddim") {
        let name = case["name"].as_str().expect("a name");
        let x = input(&case["x"]);
        let t: Vec<f32> = serde_json::from_value(case["t"].clone()).expect("steps");
        let t = Tensor::new(t, &Device::Cpu).expect("a tensor");
        let y = classes(&case["y"]);
        for path in [format!("{name}.ckpt"), format!("{name}_train.ckpt")] {
            let path = folder.join(path);
            if !path.exists() {
                continue; // The manifest names more networks than there are files.
            }
            let file = StateDict::open(&path).unwrap_or_else(|err| panic!("{err}"));
            let image_size = Some(x.dim(3).expect("four sizes"));
            let given = Given { image_size, ..Given::default() };
            let loaded = checkpoint::load(&file, &given, &Device::Cpu);
            let model = loaded.unwrap_or_else(|err| panic!("{err}")).model;
            let ours = model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass");
            let expected = goldens.tensor(&case["out"]);
            assert_close(&path.display().to_string(), &ours, &expected, tolerance);
            seen += 1;
        }
    }
    assert!(seen > 0, "`{}` has no file of a network", folder.display());
}

#[test]
fn classifiers() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "classifiers");
    let mut seen = 0;
    for case in goldens.cases("classifiers") {
        if case["arch"] != "resnet18_32x32" {
            continue;
        }
        let classes = case["classes"].as_u64().expect("a number") as usize;
        let network = resnet18(classes);
        let first = case["first"].as_u64().expect("a number") as usize;
        let xs = input(&case["input"]).narrow(0, 0, first).expect("enough images");
        let xs = normalise(&xs, &case["mean"], &case["std"]);
        let outputs = network.forward(&xs, Mode::Eval, &mut Taps::none()).expect("a forward pass");
        let expected = goldens.tensor(&case["logits"]);
        assert_close("resnet18 logits", &outputs.logits, &expected, tolerance);
        let expected = goldens.tensor(&case["features"]);
        assert_close("resnet18 features", &outputs.features, &expected, tolerance);
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no classifier `resnet18_32x32`");
}

#[test]
fn samplers() {
    let goldens = goldens();
    let mut seen = 0;
    for case in goldens.cases("samplers") {
        let name = case["out"].as_str().expect("a name");
        let Ok(method) = case["method"].as_str().expect("a name").parse::<Method>() else {
            continue; // NDM and PF come with the rest of DiffOOD.
        };
        let schedule = named_schedule(&case["schedule"]);
        let steps = case["steps"].as_u64().expect("a number") as usize;
        let sampler = Sampler { schedule: &schedule, method, sample_steps: steps };
        let mut x = input(&case["x"]);
        if let Some(scale) = case.get("x_scale").and_then(Value::as_f64) {
            x = (x * scale).expect("a tensor");
        }
        match case.get("x_map").and_then(Value::as_str) {
            Some("tanh") => x = x.tanh().expect("a tensor"),
            Some(other) => panic!("{name}: unknown map `{other}`"),
            None => {}
        }
        let range: [i64; 2] = serde_json::from_value(case["range"].clone()).expect("a range");
        let y = classes(&case["y"]);
        let beta = case.get("beta").and_then(Value::as_f64).unwrap_or(0.0);
        let states = if case["model"] == "analytic" {
            let n_classes = case.get("classes").and_then(Value::as_f64);
            let y = y.map(|y| y.to_dtype(DType::F32).expect("a tensor"));
            sampler.states(&x, range[0], range[1], |x, t| {
                let clean = analytic(x, t, y.as_ref())?;
                match (&y, n_classes) {
                    (Some(y), Some(none)) => {
                        let none = (y.zeros_like()? + none)?;
                        let free = (analytic(x, t, Some(&none))? * beta)?;
                        (clean * (1.0 + beta))? - free
                    }
                    _ => Ok(clean),
                }
            })
        } else {
            let config = goldens
                .cases("networks")
                .find(|net| net["name"] == case["model"])
                .unwrap_or_else(|| panic!("{name}: no network {}", case["model"]));
            let model = network(&config["config"]);
            let guided = Guided { model: model.as_ref(), classes: y, beta };
            sampler.states(&x, range[0], range[1], |x, t| guided.eps(x, t))
        };
        let states = states.unwrap_or_else(|err| panic!("{name}: {err}"));
        let ours = if case["trajectory"] == true {
            Tensor::stack(&states, 0).expect("states of one shape")
        } else {
            states.last().expect("the first state at least").clone()
        };
        // Networks bring their own rounding into each step.
        let kind = if case["model"] == "analytic" { "samplers" } else { "end_to_end" };
        assert_close(name, &ours, &goldens.tensor(&case["out"]), tolerance(&goldens, kind));
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no sampler of ours");
}

#[test]
fn noising() {
    let goldens = goldens();
    let case = &goldens.manifest["diffuse"];
    let schedule = named_schedule(&case["schedule"]);
    assert_eq!(case["x_map"], "2u-1");
    let x = ((input(&case["x"]) * 2.0).expect("a tensor") - 1.0).expect("a tensor");
    let t: Vec<usize> = serde_json::from_value(case["t"].clone()).expect("steps");
    let ours = schedule.diffuse(&x, &t, &input(&case["noise"])).expect("a tensor");
    let tolerance = tolerance(&goldens, "samplers");
    assert_close("diffuse", &ours, &goldens.tensor(&case["out"]), tolerance);
}

/// The stand-in for a network: `0.6 tanh(x) + 0.3 sin(t / 100) + 0.05 y`.
fn analytic(x: &Tensor, t: f64, y: Option<&Tensor>) -> candle_core::Result<Tensor> {
    // The reference evaluates the sine in f32.
    let shift = f64::from(0.3f32 * ((t / 100.0) as f32).sin());
    let eps = ((x.tanh()? * 0.6)? + shift)?;
    match y {
        Some(y) => eps.broadcast_add(&(y * 0.05)?.reshape(((), 1, 1, 1))?),
        None => Ok(eps),
    }
}

fn network(config: &Value) -> Box<dyn oodbench_diffusion::net::EpsModel> {
    let config: NetConfig = serde_json::from_value(config.clone()).expect("a configuration");
    config.build(formula::var_builder(Default::default())).expect("a network")
}

fn resnet18(classes: usize) -> Box<dyn Network> {
    let arch = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
    arch.build(classes, formula::var_builder(Default::default())).expect("a network")
}

fn normalise(xs: &Tensor, mean: &Value, std: &Value) -> Tensor {
    let channel = |value: &Value| {
        let values: Vec<f32> = serde_json::from_value(value.clone()).expect("three numbers");
        Tensor::new(values, &Device::Cpu).and_then(|t| t.reshape((1, 3, 1, 1))).expect("a tensor")
    };
    xs.broadcast_sub(&channel(mean))
        .and_then(|xs| xs.broadcast_div(&channel(std)))
        .expect("images of three channels")
}

fn named_schedule(kind: &Value) -> Schedule {
    let kind = serde_json::from_value(kind.clone()).expect("a known schedule");
    Schedule::new(&ScheduleConfig { kind, ..Default::default() })
}

fn classes(y: &Value) -> Option<Tensor> {
    let y: Option<Vec<u32>> = serde_json::from_value(y.clone()).expect("classes or null");
    y.map(|y| Tensor::new(y, &Device::Cpu).expect("a tensor"))
}

#[test]
fn every_case_of_the_manifest_is_of_a_known_kind() {
    let goldens = goldens();
    let known = ["DDIM", "PNDM2", "PNDM4", "NDM1", "NDM4", "PF"];
    for method in strings(goldens.cases("samplers"), "method") {
        assert!(known.contains(&method.as_str()), "unknown sampler `{method}`");
    }
    for arch in strings(goldens.cases("networks"), "arch") {
        assert!(["ddim", "iddpm"].contains(&arch.as_str()), "unknown network `{arch}`");
    }
}
