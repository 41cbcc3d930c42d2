//! Classifiers of every family: logits, features, activations by name, going on from a stage, and
//! gradients with respect to images.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use oodbench_nn::arch::{Architecture, LayerKind};
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::classifier::{Classifier, Normalisation};
use oodbench_nn::formula;
use oodbench_nn::precision::Precision;
use oodbench_tests::network::formula_weights;

use super::{F32, Gpu, assert_close, assert_near, tolerance};

const N_CLASSES: usize = 5;
const NORMALISATION: Normalisation = Normalisation { mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.3] };

/// One of each, with the side of its images; numbers of channels that are and are not multiples of
/// those that a kernel takes at once.
const FAMILIES: [(Architecture, usize); 9] = [
    (Architecture::ResNet32 { blocks: [1, 1, 1, 1] }, 8),
    (Architecture::ResNet224 { blocks: [1, 1, 1, 1], bottleneck: false }, 37),
    (Architecture::ResNet224 { blocks: [1, 1, 1, 1], bottleneck: true }, 32),
    (Architecture::ResNetCifar { blocks: 1, width: 16, projection: false }, 16),
    (Architecture::ResNetCifar { blocks: 1, width: 6, projection: true }, 16),
    (
        Architecture::DenseNet { layers: 2, growth: 12, stem: 24, bottleneck: true, halving: true },
        16,
    ),
    (
        Architecture::DenseNet {
            layers: 2,
            growth: 5,
            stem: 10,
            bottleneck: false,
            halving: false,
        },
        14,
    ),
    (Architecture::PyramidNet { blocks: [2, 1, 1, 0], alpha: 13, bottleneck: true }, 12),
    (Architecture::Wrn { blocks: 1, widen: 2 }, 16),
];

/// A classifier of these weights on a device.
pub fn load(
    weights: &HashMap<String, Tensor>,
    n_classes: usize,
    normalisation: Normalisation,
    device: &Device,
) -> Classifier {
    let bytes = safetensors::serialize(weights, None).expect("weights in f32");
    let weights = StateDict::from_bytes(&bytes, Path::new("formula")).expect("a state dict");
    Classifier::load(&weights, None, n_classes, normalisation, device).expect("a classifier")
}

/// A network on both, and two images.
struct Pair {
    name: String,
    cpu: Classifier,
    ours: Classifier,
    images: Vec<f32>,
    size: (usize, usize),
}

impl Pair {
    fn of((architecture, side): (Architecture, usize), gpu: &Gpu) -> Self {
        let weights = formula_weights(architecture, N_CLASSES);
        Self {
            name: architecture.to_string(),
            cpu: load(&weights, N_CLASSES, NORMALISATION, &Device::Cpu),
            ours: load(&weights, N_CLASSES, NORMALISATION, &gpu.device),
            images: formula::uniform("images", 2 * 3 * side * side, 0.0, 1.0),
            size: (side, side),
        }
    }

    fn check_outputs(&self, tolerance: f64) {
        let Self { name, images, size, .. } = self;
        let ours = self.ours.forward(images, *size).expect("a forward pass");
        let expected = self.cpu.forward(images, *size).expect("a forward pass");
        assert_close(&format!("{name}: logits"), &ours.logits, &expected.logits, tolerance);
        assert_close(&format!("{name}: features"), &ours.features, &expected.features, tolerance);
    }
}

#[test]
fn outputs_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    for family in FAMILIES {
        Pair::of(family, &gpu).check_outputs(F32);
    }
}

#[test]
fn outputs_in_tf32_are_near_those_of_the_cpu() {
    let gpu = Gpu::new();
    gpu.rounding(Precision::Tf32);
    for family in [FAMILIES[0], FAMILIES[5], FAMILIES[8]] {
        Pair::of(family, &gpu).check_outputs(tolerance(Precision::Tf32));
    }
}

#[test]
fn activations_by_name_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    for family in FAMILIES {
        let Pair { name, cpu, ours, images, size } = Pair::of(family, &gpu);
        let names = cpu.layer_names();
        let expected = cpu.layers(&images, size, &names).expect("layers");
        let ours = ours.layers(&images, size, &names).expect("layers");
        assert_eq!(expected.len(), names.len(), "{name}");
        for layer in &names {
            assert_close(&format!("{name}: {layer}"), &ours[layer], &expected[layer], F32);
        }
    }
}

#[test]
fn a_network_goes_on_from_each_stage_as_on_the_cpu() {
    let gpu = Gpu::new();
    for family in FAMILIES {
        let Pair { name, cpu, ours, images, size } = Pair::of(family, &gpu);
        let stages: Vec<String> = cpu
            .tapped()
            .into_iter()
            .filter(|layer| layer.kind == LayerKind::Stage)
            .map(|layer| layer.name)
            .collect();
        let activations = cpu.layers(&images, size, &stages).expect("layers");
        let expected = cpu.forward(&images, size).expect("a forward pass");
        for stage in &stages {
            let activation = &activations[stage];
            let numbers = activation.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let numbers = numbers.expect("numbers");
            let outputs = ours.forward_from(stage, &numbers, activation.dims());
            let outputs = outputs.expect("a forward pass");
            assert_close(&format!("{name} from {stage}"), &outputs.logits, &expected.logits, F32);
        }
    }
}

/// A gradient jumps where an activation lies at ReLU's kink and falls to its other side by rounding, so
/// that few numbers may be off by more; on these weights none is.
#[test]
fn gradients_of_images_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    for family in FAMILIES {
        let Pair { name, cpu, ours, images, size } = Pair::of(family, &gpu);
        let stages = cpu.tapped().into_iter().filter(|layer| layer.kind == LayerKind::Stage);
        let first = stages.map(|layer| layer.name).nth(1).expect("two stages");
        let of_stage = cpu.layers(&images, size, std::slice::from_ref(&first)).expect("a layer");
        let lens = [
            ("logits", 2 * N_CLASSES),
            ("features", 2 * cpu.n_features()),
            (first.as_str(), of_stage[&first].elem_count()),
        ];
        for (at, len) in lens {
            let cotangent = formula::uniform(at, len, -1.0, 1.0);
            let tensor = |numbers: Vec<f32>| {
                Tensor::from_vec(numbers, images.len(), &Device::Cpu).expect("a tensor")
            };
            let expected = tensor(cpu.vjp(&images, size, at, &cotangent).expect("a gradient"));
            let ours = tensor(ours.vjp(&images, size, at, &cotangent).expect("a gradient"));
            assert_near(&format!("{name}: vjp at {at}"), &ours, &expected, 5.0 * F32, 0.0);
        }
    }
}
