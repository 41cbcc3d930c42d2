//! Schedules, networks, samplers and noising against DiffOOD's own numbers
//! (`golden/diffood/manifest.json`).
//!
//! Everything is read from the manifest, so that the same test runs on any other set of cases.
//! Tolerances are the manifest's, relative to the standard deviation of the expected tensor.

mod samplers;

use candle_core::{Device, Tensor};
use oodbench_diffusion::checkpoint::{self, Given};
use oodbench_diffusion::net::{EpsModel, NetConfig, Pass};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::arch::Taps;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_nn::train::architecture::architecture;
use oodbench_tests::goldens::{Goldens, assert_close, input};
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
        let Network { name, model, x, t, y } = Network::of(case);
        let ours = model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass");
        assert_close(name, &ours, &goldens.tensor(&case["out"]), tolerance);
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no network");
}

/// The files of the reference: a plain state dict, and the list that its training saves. They do
/// not describe themselves, so that the network is read off the tensors; only what leaves no trace
/// there is given: the side of the images and the number of heads.
#[test]
fn networks_from_the_files_of_the_reference() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "networks");
    let folder = oodbench_tests::shared().join("golden/diffood");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "ckpt") {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
        let name = ["_train", "_ema"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(stem);
        let case = goldens.cases("networks").find(|case| case["name"] == name);
        let case = case.unwrap_or_else(|| panic!("`{}` is no network", path.display()));
        let Network { x, t, y, .. } = Network::of(case);
        let file = StateDict::open(&path).unwrap_or_else(|err| panic!("{err}"));
        let num_heads = case["config"]["num_heads"].as_u64().map(|heads| heads as usize);
        let image_size = Some(x.dim(3).expect("four sizes"));
        let read_off = Given { image_size, num_heads, ..Given::default() };
        let configured = Given { net: Some(net_config(&case["config"])), ..Given::default() };
        for given in [read_off, configured] {
            let loaded = checkpoint::load(&file, &given, &Device::Cpu);
            let model = loaded.unwrap_or_else(|err| panic!("{err}")).model;
            let ours = model.eps(&x, &t, y.as_ref(), Pass::Sample).expect("a forward pass");
            let expected = goldens.tensor(&case["out"]);
            assert_close(&path.display().to_string(), &ours, &expected, tolerance);
        }
        seen += 1;
    }
    assert!(seen > 0, "`{}` has no file of a network", folder.display());
}

#[test]
fn classifiers() {
    let goldens = goldens();
    let tolerance = tolerance(&goldens, "classifiers");
    let mut seen = 0;
    for case in goldens.cases("classifiers") {
        let name = case["arch"].as_str().expect("a name");
        let arch = architecture(name).unwrap_or_else(|err| panic!("{err}"));
        let classes = case["classes"].as_u64().expect("a number") as usize;
        let network = arch.build(classes, formula::var_builder(Default::default()));
        let network = network.unwrap_or_else(|err| panic!("{name}: {err}"));
        let first = case["first"].as_u64().expect("a number") as usize;
        let xs = input(&case["input"]).narrow(0, 0, first).expect("enough images");
        let xs = normalise(&xs, &case["mean"], &case["std"]);
        let outputs = network.forward(&xs, Mode::Eval, &mut Taps::none()).expect("a forward pass");
        for (key, ours) in [("logits", &outputs.logits), ("features", &outputs.features)] {
            let expected = goldens.tensor(&case[key]);
            assert_close(&format!("{name} {key}"), ours, &expected, tolerance);
        }
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no classifier");
}

#[test]
fn samplers() {
    let goldens = goldens();
    samplers::compare(&goldens, &Device::Cpu, |kind| tolerance(&goldens, kind));
}

#[test]
fn noising() {
    let goldens = goldens();
    let case = &goldens.manifest["diffuse"];
    let schedule = samplers::named_schedule(&case["schedule"]);
    assert_eq!(case["x_map"], "2u-1");
    let x = ((input(&case["x"]) * 2.0).expect("a tensor") - 1.0).expect("a tensor");
    let t: Vec<usize> = serde_json::from_value(case["t"].clone()).expect("steps");
    let ours = schedule.diffuse(&x, &t, &input(&case["noise"])).expect("a tensor");
    let tolerance = tolerance(&goldens, "samplers");
    assert_close("diffuse", &ours, &goldens.tensor(&case["out"]), tolerance);
}

/// A case of `networks`: the network on formula weights, and what goes into it.
struct Network<'a> {
    name: &'a str,
    model: Box<dyn EpsModel>,
    x: Tensor,
    t: Tensor,
    y: Option<Tensor>,
}

impl<'a> Network<'a> {
    fn of(case: &'a Value) -> Self {
        let config = net_config(&case["config"]);
        let arch = match &config {
            NetConfig::Ddim(_) => "ddim",
            NetConfig::Iddpm(_) => "iddpm",
        };
        let name = case["name"].as_str().expect("a name");
        assert_eq!(case["arch"], arch, "{name}");
        let t: Vec<f32> = serde_json::from_value(case["t"].clone()).expect("steps");
        Self {
            name,
            model: network(&case["config"]),
            x: input(&case["x"]),
            t: Tensor::new(t, &Device::Cpu).expect("a tensor"),
            y: samplers::classes(&case["y"], &Device::Cpu),
        }
    }
}

fn net_config(config: &Value) -> NetConfig {
    serde_json::from_value(config.clone()).unwrap_or_else(|err| panic!("{config}: {err}"))
}

fn network(config: &Value) -> Box<dyn EpsModel> {
    net_config(config).build(formula::var_builder(Default::default())).expect("a network")
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
