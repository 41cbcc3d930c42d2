//! The reference's trajectories, by a device: cases of `samplers` in `golden/diffood/manifest.json`.

use candle_core::{DType, Device, Tensor};
use oodbench_diffusion::guidance::Guided;
use oodbench_diffusion::net::{EpsModel, NetConfig};
use oodbench_diffusion::sampler::{Method, Sampler};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::formula;
use oodbench_tests::goldens::{Goldens, assert_close, input};
use serde_json::Value;

/// Compares every case, computed on a device, with the reference's numbers. `tolerance` is that of
/// a kind: `samplers`, or `end_to_end` where a network brings its own rounding into each step.
///
/// # Panics
/// A case is off, or there is none.
pub(crate) fn compare(goldens: &Goldens, device: &Device, tolerance: impl Fn(&str) -> f64) {
    let mut seen = 0;
    for case in goldens.cases("samplers") {
        let name = case["out"].as_str().expect("a name");
        let method = case["method"].as_str().expect("a name").parse::<Method>();
        let method = method.unwrap_or_else(|err| panic!("{name}: {err}"));
        let schedule = named_schedule(&case["schedule"]);
        let steps = case["steps"].as_u64().expect("a number") as usize;
        let sampler = Sampler::new(&schedule, method, steps);
        let mut x = input(&case["x"]).to_device(device).expect("a tensor");
        if let Some(scale) = case.get("x_scale").and_then(Value::as_f64) {
            x = (x * scale).expect("a tensor");
        }
        match case.get("x_map").and_then(Value::as_str) {
            Some("tanh") => x = x.tanh().expect("a tensor"),
            Some(other) => panic!("{name}: unknown map `{other}`"),
            None => {}
        }
        let mut range: [i64; 2] = serde_json::from_value(case["range"].clone()).expect("a range");
        if method.wants_linear_schedule() {
            // The reference counts times from 0 to 1000 there, ours are states from -1 to 999.
            range = range.map(|time| time - 1);
        }
        let y = classes(&case["y"], device);
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
            let model = network(&config["config"], device);
            let guided = Guided { model: model.as_ref(), classes: y, beta };
            sampler.states(&x, range[0], range[1], |x, t| guided.eps(x, t))
        };
        let states = states.unwrap_or_else(|err| panic!("{name}: {err}"));
        let ours = if case["trajectory"] == true {
            Tensor::stack(&states, 0).expect("states of one shape")
        } else {
            states.last().expect("the first state at least").clone()
        };
        let kind = if case["model"] == "analytic" { "samplers" } else { "end_to_end" };
        let ours = ours.to_device(&Device::Cpu).expect("a tensor");
        assert_close(name, &ours, &goldens.tensor(&case["out"]), tolerance(kind));
        seen += 1;
    }
    assert!(seen > 0, "the manifest names no sampler of ours");
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

fn network(config: &Value, device: &Device) -> Box<dyn EpsModel> {
    let config: NetConfig =
        serde_json::from_value(config.clone()).unwrap_or_else(|err| panic!("{config}: {err}"));
    let vb = formula::var_builder(Default::default()).set_device(device.clone());
    config.build(vb).expect("a network")
}

pub(crate) fn named_schedule(kind: &Value) -> Schedule {
    let kind = serde_json::from_value(kind.clone()).expect("a known schedule");
    Schedule::new(&ScheduleConfig { kind, ..Default::default() })
}

pub(crate) fn classes(y: &Value, device: &Device) -> Option<Tensor> {
    let y: Option<Vec<u32>> = serde_json::from_value(y.clone()).expect("classes or null");
    y.map(|y| Tensor::new(y, device).expect("a tensor"))
}
