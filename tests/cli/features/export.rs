//! A tiny export by formula: three classes, six features, every set of the layout.

use std::path::Path;

use oodbench_nn::formula;
use oodbench_nn::npz::{NpzWriter, Values};
use oodbench_tests::binary::Scene;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) const K: usize = 3;
pub(crate) const D: usize = 6;

/// What a set exports.
#[derive(Clone, Default)]
pub(crate) struct Set {
    pub(crate) features: Option<Vec<f32>>,
    pub(crate) logits: Option<Vec<f32>>,
    pub(crate) labels: Option<Vec<i64>>,
    pub(crate) n: usize,
}

/// The last layer: row `k` looks at two of the features.
fn weight() -> Vec<f32> {
    (0..K * D).map(|i| if (i % D) / 2 == i / D { 1.0 } else { -0.25 }).collect()
}

fn bias() -> Vec<f32> {
    vec![0.1, 0.0, -0.1]
}

fn logits(features: &[f32]) -> Vec<f32> {
    let (weight, bias) = (weight(), bias());
    let row = |h: &[f32]| -> Vec<f32> {
        let dot = |k: usize| (0..D).map(|d| weight[k * D + d] * h[d]).sum::<f32>();
        (0..K).map(|k| dot(k) + bias[k]).collect()
    };
    features.chunks(D).flat_map(row).collect()
}

impl Set {
    /// In-distribution: a class makes its two features large. The numbers follow from the name.
    pub(crate) fn id(name: &str, n: usize) -> Self {
        let noise = formula::normal(&format!("features/{name}"), n * D);
        let labels: Vec<i64> = (0..n as i64).map(|i| i % K as i64).collect();
        let value = |i: usize| {
            let large = (i % D) / 2 == labels[i / D] as usize;
            (noise[i] * 0.4 + if large { 2.0 } else { 0.5 }).max(0.0)
        };
        let features: Vec<f32> = (0..n * D).map(value).collect();
        Self { logits: Some(logits(&features)), features: Some(features), labels: Some(labels), n }
    }

    /// Out-of-distribution: all features are alike.
    pub(crate) fn ood(name: &str, n: usize, size: f32) -> Self {
        let noise = formula::normal(&format!("features/{name}"), n * D);
        let features: Vec<f32> = noise.iter().map(|x| (x * 0.6 + size).max(0.0)).collect();
        Self { logits: Some(logits(&features)), features: Some(features), labels: None, n }
    }
}

/// How files are written.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Format {
    Safetensors,
    Npz,
}

pub(crate) fn write(path: &Path, set: &Set, format: Format) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let matrices = [("features", &set.features, D), ("logits", &set.logits, K)];
    if format == Format::Npz {
        let mut npz = NpzWriter::create(&path.with_extension("npz")).unwrap();
        for (name, values, columns) in matrices {
            if let Some(values) = values {
                npz.array(name, &[set.n, columns], Values::F32(values)).unwrap();
            }
        }
        if let Some(labels) = &set.labels {
            npz.array("labels", &[set.n], Values::I64(labels)).unwrap();
        }
        return npz.finish().unwrap();
    }
    let mut tensors = Vec::new();
    for (name, values, columns) in matrices {
        if let Some(values) = values {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((name, Dtype::F32, vec![set.n, columns], bytes));
        }
    }
    if let Some(labels) = &set.labels {
        let bytes: Vec<u8> = labels.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push(("labels", Dtype::I64, vec![set.n], bytes));
    }
    save(&path.with_extension("safetensors"), &tensors);
}

fn save(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn write_head(scene: &Scene) {
    let bytes = |values: Vec<f32>| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = [
        ("weight", Dtype::F32, vec![K, D], bytes(weight())),
        ("bias", Dtype::F32, vec![K], bytes(bias())),
    ];
    save(&scene.path("dir/head.safetensors"), &tensors);
}

/// Every set with its name.
pub(crate) fn all_sets() -> Vec<(&'static str, Set)> {
    let mut val = Set::id("val", 30);
    // Where nothing is wrong there is no temperature that fits best.
    for label in val.labels.iter_mut().flatten().step_by(7) {
        *label = (*label + 1) % K as i64;
    }
    vec![
        ("train", Set::id("train", 180)),
        ("val", val),
        ("ood_val", Set::ood("ood_val", 30, 0.9)),
        ("test", Set::id("test", 45)),
        ("near/mix", Set::ood("mix", 40, 1.0)),
        ("far/small", Set::ood("small", 35, 0.3)),
    ]
}

/// A scene with everything in `dir`.
pub(crate) fn scene(format: Format) -> Scene {
    let scene = Scene::new();
    for (name, set) in all_sets() {
        write(&scene.path("dir").join(name), &set, format);
    }
    write_head(&scene);
    scene
}
