//! Reading reference numbers: a manifest of cases, and the tensors that they name.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use oodbench_nn::formula;
use serde_json::Value;

use crate::shared;

/// A folder of `$OODBENCH_SHARED/golden` with its `manifest.json`.
pub struct Goldens {
    pub manifest: Value,
    tensors: HashMap<String, Tensor>,
}

impl Goldens {
    /// Opens `golden/NAME`: its `manifest.json` and the tensor file that the manifest names.
    pub fn open(name: &str) -> Self {
        let folder = shared().join("golden").join(name);
        let path = folder.join("manifest.json");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
        let manifest: Value = serde_json::from_str(&text)
            .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
        let tensors = manifest["tensors"].as_str().map(|file| folder.join(file));
        let tensors = tensors.map_or_else(HashMap::new, |path| {
            candle_core::safetensors::load(&path, &Device::Cpu)
                .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
        });
        Self { manifest, tensors }
    }

    /// The cases under a key of the manifest.
    pub fn cases(&self, key: &str) -> impl Iterator<Item = &Value> {
        let cases = self.manifest[key].as_array();
        cases.unwrap_or_else(|| panic!("the manifest has no list `{key}`")).iter()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &Value) -> Tensor {
        let name = name.as_str().expect("the name of a tensor");
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor `{name}`")).clone()
    }
}

/// The values that the cases have under a key.
pub fn strings<'a>(cases: impl Iterator<Item = &'a Value>, key: &str) -> Vec<String> {
    cases.map(|case| case[key].as_str().expect("a string").to_owned()).collect()
}

/// An input by formula: `{"normal": name, "shape": …}` or `{"uniform": name, "shape": …}`.
pub fn input(spec: &Value) -> Tensor {
    let shape: Vec<usize> = serde_json::from_value(spec["shape"].clone()).expect("a shape");
    let len = shape.iter().product();
    let values = match (spec["normal"].as_str(), spec["uniform"].as_str()) {
        (Some(name), None) => formula::normal(name, len),
        (None, Some(name)) => formula::uniform(name, len, 0.0, 1.0),
        _ => panic!("an input is `normal` or `uniform`, got {spec}"),
    };
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

/// Equal up to `tolerance` times the standard deviation of the expected values.
#[track_caller]
pub fn assert_close(what: &str, ours: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(ours.dims(), expected.dims(), "{what}: shape");
    let ours = values(ours);
    let expected = values(expected);
    let mean = expected.iter().sum::<f64>() / expected.len() as f64;
    let variance = expected.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    let std = (variance / expected.len() as f64).sqrt();
    let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(ours.iter().all(|v| v.is_finite()), "{what}: a value is not finite");
    assert!(
        worst <= tolerance * std,
        "{what}: off by {:.2e} standard deviations, at most {tolerance:.0e} allowed",
        worst / std
    );
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
}
