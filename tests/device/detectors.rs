//! Detectors that run the classifier themselves: scores where it lies on the device.

use std::sync::Arc;

use candle_core::Device;
use oodbench_engine::check::memory::{
    self, ImageNetwork, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::formula;
use oodbench_sdk::Needs;
use oodbench_tests::network::formula_weights;

use super::Gpu;
use super::classifiers::load;

const ARCHITECTURE: Architecture = Architecture::ResNet32 { blocks: [1, 1, 1, 1] };
const N_CLASSES: usize = 4;
const SIDE: usize = 16;
const N_TEST: usize = 24;

/// A detector, and how far its scores may be off.
struct Case {
    detector: &'static str,
    params: &'static str,
    /// In standard deviations of the scores.
    tolerance: f64,
    /// How many of the test images may be off by up to [`EXCEPTIONAL`].
    exceptions: usize,
}

/// A step by the sign of a gradient jumps where a pixel's is near 0, or where a ReLU is at its kink.
const EXCEPTIONAL: f64 = 0.2;

const CASES: [Case; 6] = [
    // Deviations are divided by the ends of ranges, which are next to 0 for channels that hardly
    // ever respond together: what rounding is there is no longer small.
    Case { detector: "gram", params: "{}", tolerance: 5e-2, exceptions: 0 },
    Case { detector: "rankfeat", params: "{}", tolerance: 1e-4, exceptions: 0 },
    Case {
        detector: "mds_ensemble",
        params: r#"{"layers": ["stem", "layer1"], "alpha": [1.0, 0.5], "noise": 0.0}"#,
        tolerance: 1e-4,
        exceptions: 0,
    },
    Case {
        detector: "odin",
        params: r#"{"temperature": 10.0, "noise": 0.0014}"#,
        tolerance: 1e-3,
        exceptions: 4,
    },
    Case {
        detector: "iodin",
        params: r#"{"temperature": 10.0, "noise": 0.0014}"#,
        tolerance: 1e-3,
        exceptions: 4,
    },
    Case { detector: "adascale", params: "{}", tolerance: 1e-4, exceptions: 2 },
];

/// Scores of one detector on test images, fitted on a classifier's own outputs.
fn scores(
    network: &Arc<dyn ImageNetwork>,
    head: &MemoryHead,
    detector: &str,
    params: &str,
) -> Vec<f32> {
    let split = |name: &str, n: usize| {
        let images = formula::uniform(name, n * 3 * SIDE * SIDE, 0.0, 1.0);
        let outputs = network.forward(&images, (SIDE, SIDE)).expect("a forward pass");
        let rows = |values: &[f32]| MemoryTensor::new(values.to_vec(), &[n, values.len() / n]);
        MemorySplit {
            labels: (0..n).map(|i| (i % N_CLASSES) as i64).collect(),
            logits: rows(&outputs.logits),
            features: rows(&outputs.features),
            images: MemoryTensor::new(images, &[n, 3, SIDE, SIDE]),
        }
    };
    let train = split("train", 160);
    let data = Arc::new(MemoryData {
        n_classes: N_CLASSES,
        n_features: train.features.row_len(),
        image_size: Some((SIDE, SIDE)),
        head: Some(head.clone()),
        train,
        val: split("val", 16),
        val_ood: Some(split("val ood", 16)),
    });
    let infos = oodbench_posthoc::infos();
    let info = infos.iter().find(|info| info.id == detector);
    let needs = info.unwrap_or_else(|| panic!("there is no `{detector}`")).needs;
    assert!(
        [Needs::LAYERS, Needs::GRADIENT, Needs::FORWARD].iter().any(|&need| needs.contains(need)),
        "{detector} does not run the classifier"
    );
    let host = MemoryHost::new(needs, Arc::clone(&data)).network(Arc::clone(network));
    let mut made = oodbench_posthoc::create(detector, params, host.boxed())
        .unwrap_or_else(|error| panic!("{detector}: {error}"));
    memory::fit(&mut made, needs, &data)
        .unwrap_or_else(|error| panic!("{detector}: {}", error.message));
    let keys: Vec<u64> = (0..N_TEST as u64).collect();
    memory::score(&mut made, needs, &split("test", N_TEST), &keys)
        .unwrap_or_else(|error| panic!("{detector}: {}", error.message))
}

#[test]
fn scores_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    let weights = formula_weights(ARCHITECTURE, N_CLASSES);
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
    let on = |device: &Device| {
        let classifier = load(&weights, N_CLASSES, normalisation, device);
        let (weight, bias) = classifier.head().expect("a head");
        let network: Arc<dyn ImageNetwork> = Arc::new(classifier);
        (network, MemoryHead { weight, bias })
    };
    let ((cpu, head), (ours, our_head)) = (on(&Device::Cpu), on(&gpu.device));
    let mut failures = Vec::new();
    for Case { detector, params, tolerance, exceptions } in CASES {
        let expected = scores(&cpu, &head, detector, params);
        let ours = scores(&ours, &our_head, detector, params);
        let n = expected.len() as f64;
        let mean = expected.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = expected.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let mut off: Vec<f64> = ours
            .iter()
            .zip(&expected)
            .map(|(a, b)| f64::from((a - b).abs()) / variance.sqrt())
            .collect();
        off.sort_by(f64::total_cmp);
        let (worst, most) = (off[N_TEST - 1], off[N_TEST - 1 - exceptions]);
        println!("{detector}: off by {most:.1e} standard deviations, {worst:.1e} at worst");
        if most > tolerance || worst > EXCEPTIONAL.max(tolerance) {
            failures.push(detector);
        }
    }
    assert!(failures.is_empty(), "off by too much: {}", failures.join(", "));
}
