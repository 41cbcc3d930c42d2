//! What training methods put beside the classes.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use oodbench_nn::arch::Architecture;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{Classifier, Normalisation};
use oodbench_nn::formula;
use oodbench_tests::network::formula_weights;

use super::{F32, Gpu, assert_close};

const N_CLASSES: usize = 5;
const N_FEATURES: usize = 32;
const BACKBONE: Architecture = Architecture::ResNetCifar { blocks: 1, width: 8, projection: false };

/// Tensors by key, with their shapes.
type Shapes = Vec<(String, Vec<usize>)>;

/// The tensors beside the backbone of each training method: layers as `(key, rows)`, or norms and
/// buffers with their shapes.
fn trainings() -> Vec<(&'static str, Shapes)> {
    let linear = |key: &str, rows: usize, columns: usize| {
        vec![(format!("{key}.weight"), vec![rows, columns]), (format!("{key}.bias"), vec![rows])]
    };
    let norm = |key: &str, len: usize| {
        ["weight", "bias", "running_mean", "running_var"]
            .map(|of| (format!("{key}.{of}"), vec![len]))
    };
    let classes = |key: &str| linear(key, N_CLASSES, N_FEATURES);
    let backbone_fc = || classes("backbone.linear");
    let with = |mut all: Shapes, more: Shapes| {
        all.extend(more);
        all
    };
    vec![
        ("confidence", with(classes("fc"), linear("confidence", 1, N_FEATURES))),
        ("rotation", with(classes("fc"), linear("rot_fc", 4, N_FEATURES))),
        ("two heads", with(classes("fc1"), classes("fc2"))),
        (
            "variance",
            with(
                with(backbone_fc(), linear("logvar_rts.0", 6, N_FEATURES)),
                norm("logvar_rts.1", 6).to_vec(),
            ),
        ),
        ("clusters", with(classes("fc"), linear("fc_aux", 7, N_FEATURES))),
        ("scaled", with(backbone_fc(), vec![("tau".to_owned(), vec![])])),
        ("standardised", with(backbone_fc(), vec![("sigma".to_owned(), vec![])])),
        ("projection", {
            with(linear("head.0", N_FEATURES, N_FEATURES), linear("head.2", 12, N_FEATURES))
        }),
    ]
}

#[test]
fn heads_give_what_they_give_on_the_cpu() {
    let gpu = Gpu::new();
    let backbone = formula_weights(BACKBONE, N_CLASSES);
    for (name, further) in trainings() {
        let mut tensors: BTreeMap<String, Tensor> = backbone
            .iter()
            .filter(|(key, _)| !key.starts_with("linear."))
            .map(|(key, tensor)| (format!("backbone.{key}"), tensor.clone()))
            .collect();
        for (key, shape) in further {
            let numbers = if shape.is_empty() { vec![0.5] } else { formula::weight(&key, &shape) };
            let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).expect("a tensor");
            tensors.insert(key, tensor);
        }
        let bytes = safetensors::serialize(&tensors, None).expect("weights in f32");
        let file = StateDict::from_bytes(&bytes, Path::new("formula")).expect("a state dict");
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        let load = |device: &Device| {
            Classifier::load(&file, None, N_CLASSES, normalisation, device)
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (cpu, ours) = (load(&Device::Cpu), load(&gpu.device));
        let images = formula::uniform("images", 2 * 3 * 256, 0.0, 1.0);
        let size = (16, 16);
        if cpu.arch().training.has_logits() {
            let (a, b) = (ours.forward(&images, size), cpu.forward(&images, size));
            let (a, b) = (a.expect("a forward pass"), b.expect("a forward pass"));
            assert_close(&format!("{name}: logits"), &a.logits, &b.logits, F32);
        }
        let heads: Vec<String> =
            cpu.arch().training.layers().iter().map(|&name| name.to_owned()).collect();
        let (a, b) = (ours.layers(&images, size, &heads), cpu.layers(&images, size, &heads));
        let (a, b) = (a.expect("layers"), b.expect("layers"));
        for head in &heads {
            super::assert_near(&format!("{name}: {head}"), &a[head], &b[head], F32, 1e-2);
        }
    }
}
