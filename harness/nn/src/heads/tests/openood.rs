//! OpenOOD's networks on weights and images by formula: `fixtures/openood_networks.py` made the
//! numbers with PyTorch, and says how.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::{Shapes, rows, values};
use crate::arch::Taps;
use crate::checkpoint::StateDict;
use crate::formula;
use crate::heads::{Training, Variant};
use crate::layers::Mode;

/// Of the greatest number of an output. Both sides sum in single precision, in another order.
const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Fixture {
    backbones: BTreeMap<String, Shapes>,
    networks: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    backbone: String,
    prefix: String,
    /// Shapes of what is not the backbone's.
    further: Shapes,
    /// The first twelve numbers of each row.
    outputs: BTreeMap<String, Vec<Vec<f32>>>,
}

/// The training that a case is of.
fn training(name: &str) -> Training {
    match name.split('_').next().unwrap_or(name) {
        "conf" => Training::LearningConfidence,
        "rotpred" => Training::RotPred,
        "mcd" => Training::Mcd,
        "rts" => Training::Rts { degrees: 32 },
        "udg" => Training::Udg { clusters: 7 },
        "t2fnorm" => Training::T2fNorm,
        "ascood" => Training::Ascood,
        "godin" => Training::GOdin { inner: name == "godin_inner" },
        "cider" if name == "cider_linear" => {
            Training::Contrastive { hidden: None, out: 64, prototypes: false }
        }
        "cider" | "palm" => {
            Training::Contrastive { hidden: Some(512), out: 128, prototypes: false }
        }
        "npos" => Training::Contrastive { hidden: Some(512), out: 128, prototypes: true },
        "mos" => Training::Mos { groups: vec![vec![0, 1, 8, 9], vec![2, 3, 4, 5, 6, 7]] },
        _ => panic!("`{name}` is compared with nothing"),
    }
}

#[test]
fn outputs_are_those_of_openoods_networks() {
    let fixture: Fixture =
        serde_json::from_str(include_str!("../fixtures/openood_networks.json")).unwrap();
    assert_eq!(fixture.networks.len(), 16);
    for (name, Case { backbone, prefix, further, outputs }) in &fixture.networks {
        let of_backbone = &fixture.backbones[backbone];
        let mut shapes: Shapes = of_backbone
            .iter()
            .map(|(key, shape)| (format!("{prefix}{key}"), shape.clone()))
            .collect();
        shapes.extend(further.clone());
        let tensor = |(key, shape): (&String, &Vec<usize>)| {
            let values = match key.as_str() {
                "tau" => vec![0.1],
                "sigma" => vec![0.7],
                _ => values(key, shape),
            };
            (key.clone(), Tensor::from_vec(values, shape.clone(), &Device::Cpu).unwrap())
        };
        let tensors: Vec<(String, Tensor)> = shapes.iter().map(tensor).collect();
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let weights = StateDict::from_bytes(&bytes, Path::new(name)).unwrap();

        let mut variant = Variant::infer(&weights.shapes()).expect("a known training");
        assert_eq!(variant.backbone.to_string(), *backbone, "{name}");
        let expected = training(name);
        if let Training::Mos { groups } = &expected {
            variant = variant.grouped(groups).unwrap();
        }
        assert_eq!(variant.training, expected, "{name}");
        let (vb, usage) = weights.builder(&Device::Cpu);
        let network = variant.build(10, vb).unwrap();
        assert_eq!(usage.unused(), Vec::<String>::new(), "{name}");

        let side = if backbone == "resnet18_32x32" { 32 } else { 64 };
        let xs = formula::uniform("xs", 2 * 3 * side * side, -2.0, 2.0);
        let xs = Tensor::from_vec(xs, (2, 3, side, side), &Device::Cpu).unwrap();
        let layers = variant.training.layers().iter().map(|&layer| layer.to_owned());
        let mut taps = Taps::of(&layers.collect::<Vec<_>>());
        let outputs_here = network.forward(&xs, Mode::Eval, &mut taps).unwrap();
        let mut ours = taps.into_taken();
        ours.insert("features".to_owned(), outputs_here.features);
        if variant.training.has_logits() {
            ours.insert("logits".to_owned(), outputs_here.logits);
        }
        assert!(ours.keys().eq(outputs.keys()), "{name}: {:?}", ours.keys());
        for (what, expected) in outputs {
            let ours = rows(&ours[what]);
            let size = expected.iter().flatten().fold(0f32, |max, x| max.max(x.abs()));
            let mut worst = 0f32;
            for (ours, expected) in ours.iter().zip(expected) {
                assert_eq!(ours.len().min(12), expected.len(), "{name}: columns of {what}");
                let off = ours.iter().zip(expected).map(|(a, b)| (a - b).abs() / size);
                worst = worst.max(off.fold(0.0, f32::max));
            }
            println!("{name}: {what} off by {worst:.1e}");
            assert!(worst < TOLERANCE, "{name}: {what} off by {worst:.1e} of the greatest");
        }
    }
}
