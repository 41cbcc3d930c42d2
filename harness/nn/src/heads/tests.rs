//! State dicts with the keys of OpenOOD's networks, on weights by formula.

mod openood;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Training, Variant, group_log_probabilities};
use crate::arch::{LayerKind, Taps};
use crate::checkpoint::StateDict;
use crate::formula;
use crate::kernels::testing::random;
use crate::layers::Mode;

const N_CLASSES: usize = 5;
const N_FEATURES: usize = 32;

type Shapes = BTreeMap<String, Vec<usize>>;

/// Shapes of a small CIFAR ResNet's tensors without its last layer.
fn backbone(prefix: &str) -> Shapes {
    let mut shapes = Shapes::new();
    let mut block = |name: &str, conv: &str, c_in: usize, c_out: usize| {
        shapes.insert(format!("{prefix}{name}{conv}.weight"), vec![c_out, c_in, 3, 3]);
        let norm = conv.replace("conv", "bn");
        for what in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{prefix}{name}{norm}.{what}"), vec![c_out]);
        }
    };
    block("", "conv1", 3, 8);
    for (stage, (c_in, c_out)) in [(8, 8), (8, 16), (16, N_FEATURES)].into_iter().enumerate() {
        let name = format!("layer{}.0.", stage + 1);
        block(&name, "conv1", c_in, c_out);
        block(&name, "conv2", c_out, c_out);
    }
    shapes
}

/// A backbone under its prefix with further tensors.
fn with(further: &[(&str, &[usize])]) -> Shapes {
    let mut shapes = backbone("backbone.");
    shapes.extend(further.iter().map(|(key, shape)| ((*key).to_owned(), shape.to_vec())));
    shapes
}

/// A layer's weight and bias.
fn linear(shapes: &mut Shapes, key: &str, c_in: usize, c_out: usize) {
    shapes.insert(format!("{key}.weight"), vec![c_out, c_in]);
    shapes.insert(format!("{key}.bias"), vec![c_out]);
}

/// What [`formula`] gives; buffers of one number are 0.5.
fn values(key: &str, shape: &[usize]) -> Vec<f32> {
    if shape.is_empty() { vec![0.5] } else { formula::weight(key, shape) }
}

fn state_dict(shapes: &Shapes) -> StateDict {
    let tensor = |(key, shape): (&String, &Vec<usize>)| {
        let tensor = Tensor::from_vec(values(key, shape), shape.clone(), &Device::Cpu);
        (key.clone(), tensor.unwrap())
    };
    let tensors: Vec<(String, Tensor)> = shapes.iter().map(tensor).collect();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    StateDict::from_bytes(&bytes, Path::new("formula")).unwrap()
}

/// What a network gives for two images.
struct Ran {
    features: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
    layers: BTreeMap<String, Vec<Vec<f32>>>,
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

/// Infers, builds and runs; every tensor must have been used.
fn run(shapes: &Shapes, groups: Option<&[Vec<usize>]>, expected: &Training) -> Ran {
    let variant = Variant::infer(shapes).expect("a known training");
    let variant = groups.map_or(variant.clone(), |groups| variant.grouped(groups).unwrap());
    assert_eq!(variant.training, *expected);
    if let Some(key) = variant.logits_key() {
        assert_eq!(shapes[&key][0], variant.n_logits(N_CLASSES), "{key}");
    }
    let (vb, usage) = state_dict(shapes).builder(&Device::Cpu);
    let network = variant.build(N_CLASSES, vb).unwrap();
    assert_eq!(usage.unused(), Vec::<String>::new());
    assert_eq!(network.head().weight().dims(), [N_CLASSES, N_FEATURES]);
    let heads = network.layers().into_iter().filter(|layer| layer.kind == LayerKind::Head);
    let heads: Vec<String> = heads.map(|layer| layer.name).collect();
    assert_eq!(heads, variant.training.layers());
    let mut taps = Taps::of(&heads);
    let xs = random("xs", &[2, 3, 16, 16]);
    let outputs = network.forward(&xs, Mode::Eval, &mut taps).unwrap();
    let layers = taps.into_taken().iter().map(|(name, xs)| (name.clone(), rows(xs))).collect();
    Ran { features: rows(&outputs.features), logits: rows(&outputs.logits), layers }
}

/// A linear layer of the state dict, by hand.
fn apply(shapes: &Shapes, key: &str, xs: &[f64]) -> Vec<f64> {
    let tensor = |what: &str| {
        let key = format!("{key}.{what}");
        shapes.get(&key).map(|shape| values(&key, shape))
    };
    let weight = tensor("weight").expect("a weight");
    let bias = tensor("bias");
    let row = |(i, row): (usize, &[f32])| -> f64 {
        let dot: f64 = row.iter().zip(xs).map(|(&w, x)| f64::from(w) * x).sum();
        dot + bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]))
    };
    weight.chunks_exact(xs.len()).enumerate().map(row).collect()
}

/// Batch normalisation of the state dict, by hand.
fn norm(shapes: &Shapes, key: &str, xs: &[f64]) -> Vec<f64> {
    let tensor = |what: &str| {
        let key = format!("{key}.{what}");
        values(&key, &shapes[&key])
    };
    let [weight, bias, mean, variance] =
        ["weight", "bias", "running_mean", "running_var"].map(tensor);
    let one = |(i, x): (usize, &f64)| {
        let deviation = (f64::from(variance[i]) + 1e-5).sqrt();
        (x - f64::from(mean[i])) / deviation * f64::from(weight[i]) + f64::from(bias[i])
    };
    xs.iter().enumerate().map(one).collect()
}

fn length(xs: &[f64]) -> f64 {
    xs.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn scaled(xs: &[f64], by: f64) -> Vec<f64> {
    xs.iter().map(|x| x * by).collect()
}

/// Compares rows with what `expected` makes of each image's features.
fn check(
    what: &str,
    features: &[Vec<f32>],
    got: &[Vec<f32>],
    expected: impl Fn(&[f64]) -> Vec<f64>,
) {
    for (h, got) in features.iter().zip(got) {
        let h: Vec<f64> = h.iter().map(|&x| f64::from(x)).collect();
        let expected = expected(&h);
        assert_eq!(got.len(), expected.len(), "{what}: columns");
        let size = expected.iter().fold(1e-3f64, |max, x| max.max(x.abs()));
        for (&got, expected) in got.iter().zip(&expected) {
            assert!((f64::from(got) - expected).abs() < 2e-5 * size, "{what}: {got} {expected}");
        }
    }
}

#[test]
fn a_linear_head_stands_beside_the_classes() {
    let cases = [
        (Training::LearningConfidence, "fc", "confidence", 1),
        (Training::RotPred, "fc", "rot_fc", 4),
        (Training::Mcd, "fc1", "fc2", N_CLASSES),
        (Training::Udg { clusters: 7 }, "fc", "fc_aux", 7),
    ];
    for (training, classes, head, columns) in cases {
        let mut shapes = with(&[]);
        linear(&mut shapes, classes, N_FEATURES, N_CLASSES);
        linear(&mut shapes, head, N_FEATURES, columns);
        let ran = run(&shapes, None, &training);
        check(classes, &ran.features, &ran.logits, |h| apply(&shapes, classes, h));
        let layer = &ran.layers[training.layers()[0]];
        check(head, &ran.features, layer, |h| apply(&shapes, head, h));
    }
}

#[test]
fn a_last_layer_that_was_replaced_may_still_be_there() {
    let mut shapes = with(&[]);
    linear(&mut shapes, "fc1", N_FEATURES, N_CLASSES);
    linear(&mut shapes, "fc2", N_FEATURES, N_CLASSES);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    let ran = run(&shapes, None, &Training::Mcd);
    check("fc1", &ran.features, &ran.logits, |h| apply(&shapes, "fc1", h));
}

#[test]
fn variances_are_exponentials() {
    let mut shapes = with(&[
        ("logvar_rts.1.weight", &[6]),
        ("logvar_rts.1.bias", &[6]),
        ("logvar_rts.1.running_mean", &[6]),
        ("logvar_rts.1.running_var", &[6]),
    ]);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    linear(&mut shapes, "logvar_rts.0", N_FEATURES, 6);
    let ran = run(&shapes, None, &Training::Rts { degrees: 6 });
    check("logits", &ran.features, &ran.logits, |h| apply(&shapes, "backbone.linear", h));
    check("variance", &ran.features, &ran.layers["variance"], |h| {
        let logarithms = norm(&shapes, "logvar_rts.1", &apply(&shapes, "logvar_rts.0", h));
        logarithms.into_iter().map(f64::exp).collect()
    });
}

#[test]
fn features_are_scaled_before_the_last_layer() {
    let mut shapes = with(&[("tau", &[])]);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    let ran = run(&shapes, None, &Training::T2fNorm);
    check("T2FNorm", &ran.features, &ran.logits, |h| {
        apply(&shapes, "backbone.linear", &scaled(h, 1.0 / length(h) / 0.5))
    });
    let mut shapes = with(&[("sigma", &[])]);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    let ran = run(&shapes, None, &Training::Ascood);
    check("ASCOOD", &ran.features, &ran.logits, |h| {
        let mean = h.iter().sum::<f64>() / h.len() as f64;
        let centred: Vec<f64> = h.iter().map(|x| x - mean).collect();
        let deviation = length(&centred) / ((h.len() - 1) as f64).sqrt();
        apply(&shapes, "backbone.linear", &scaled(&centred, 0.5 / (deviation + 1e-6)))
    });
}

#[test]
fn a_quotient_of_two_heads_makes_the_logits() {
    for inner in [false, true] {
        let mut shapes = with(&[
            ("h.h.weight", &[N_CLASSES, N_FEATURES]),
            ("g.1.weight", &[1]),
            ("g.1.bias", &[1]),
            ("g.1.running_mean", &[1]),
            ("g.1.running_var", &[1]),
        ]);
        linear(&mut shapes, "g.0", N_FEATURES, 1);
        if inner {
            shapes.insert("h.h.bias".to_owned(), vec![N_CLASSES]);
        }
        let ran = run(&shapes, None, &Training::GOdin { inner });
        let numerators = |h: &[f64]| {
            if inner {
                return apply(&shapes, "h.h", h);
            }
            let products = apply(&shapes, "h.h", &scaled(h, 1.0 / (length(h) + 1e-4)));
            let weight = values("h.h.weight", &[N_CLASSES, N_FEATURES]);
            let lengths = weight
                .chunks_exact(N_FEATURES)
                .map(|row| length(&row.iter().map(|&w| f64::from(w)).collect::<Vec<_>>()) + 1e-4);
            products.iter().zip(lengths).map(|(product, length)| product / length).collect()
        };
        let denominator = |h: &[f64]| {
            let x = norm(&shapes, "g.1", &apply(&shapes, "g.0", h))[0];
            1.0 / (1.0 + (-x).exp())
        };
        check("h", &ran.features, &ran.layers["numerators"], numerators);
        check("g", &ran.features, &ran.layers["denominator"], |h| vec![denominator(h)]);
        check("h/g", &ran.features, &ran.logits, |h| scaled(&numerators(h), 1.0 / denominator(h)));
    }
}

#[test]
fn a_contrastive_training_leaves_no_logits() {
    let mut shapes = with(&[]);
    linear(&mut shapes, "head", N_FEATURES, 12);
    let training = Training::Contrastive { hidden: None, out: 12, prototypes: false };
    let ran = run(&shapes, None, &training);
    assert!(!training.has_logits() && !training.has_head());
    assert!(ran.logits.iter().flatten().all(|logit| *logit == 0.0));
    check("linear", &ran.features, &ran.layers["projection"], |h| {
        let xs = apply(&shapes, "head", h);
        scaled(&xs, 1.0 / length(&xs))
    });

    let mut shapes = with(&[("prototypes", &[N_CLASSES, 12])]);
    linear(&mut shapes, "head.0", N_FEATURES, 20);
    linear(&mut shapes, "head.2", 20, 12);
    linear(&mut shapes, "mlp.0", N_FEATURES, 12);
    linear(&mut shapes, "mlp.2", 12, 1);
    let training = Training::Contrastive { hidden: Some(20), out: 12, prototypes: true };
    let ran = run(&shapes, None, &training);
    check("two layers", &ran.features, &ran.layers["projection"], |h| {
        let hidden: Vec<f64> =
            apply(&shapes, "head.0", h).into_iter().map(|x| x.max(0.0)).collect();
        let xs = apply(&shapes, "head.2", &hidden);
        scaled(&xs, 1.0 / length(&xs))
    });
}

#[test]
fn grouped_logits_become_classes_in_their_order() {
    let mut shapes = backbone("");
    linear(&mut shapes, "linear", N_FEATURES, N_CLASSES + 2);
    let groups = [vec![3, 0], vec![1, 2, 4]];
    let ran = run(&shapes, Some(&groups), &Training::Mos { groups: groups.to_vec() });
    let log_p = |h: &[f64]| {
        let logits = apply(&shapes, "linear", h);
        let of_group = |group: &[f64]| {
            let sum: f64 = group.iter().map(|x| x.exp()).sum();
            group.iter().map(|x| x - sum.ln()).collect::<Vec<_>>()
        };
        [of_group(&logits[..3]), of_group(&logits[3..])]
    };
    check("others", &ran.features, &ran.layers["others"], |h| log_p(h).map(|g| g[0]).to_vec());
    check("classes", &ran.features, &ran.logits, |h| {
        let [a, b] = log_p(h);
        vec![a[2], b[1], b[2], a[1], b[3]]
    });
    let too_few = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(group_log_probabilities(&too_few, &[2, 3]).is_err());
    assert!(group_log_probabilities(&too_few, &[2]).is_err());
}

#[test]
fn an_ordinary_network_may_have_the_prefix() {
    let mut shapes = with(&[]);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    let ran = run(&shapes, None, &Training::Ordinary { prefixed: true });
    check("logits", &ran.features, &ran.logits, |h| apply(&shapes, "backbone.linear", h));
    let variant = Variant::infer(&shapes).unwrap();
    assert!(variant.grouped(&[vec![0], vec![1]]).is_none());
    assert_eq!(variant.to_string(), "resnet8_width8");
    // A backbone without anything that tells classes is no classifier.
    assert!(Variant::infer(&with(&[])).is_none());
    assert!(Variant::infer(&Shapes::new()).is_none());
}

#[test]
fn a_scale_that_is_not_positive_is_refused() {
    let mut shapes = with(&[("tau", &[])]);
    linear(&mut shapes, "backbone.linear", N_FEATURES, N_CLASSES);
    let zero = Tensor::new(0f32, &Device::Cpu).unwrap();
    let vb = formula::var_builder([("tau".to_owned(), zero)].into());
    let err = Variant::infer(&shapes).unwrap().build(N_CLASSES, vb).err().unwrap();
    assert!(err.to_string().contains("`tau` expected a positive number, got 0"), "{err}");
}

#[test]
fn every_family_of_backbones_can_stand_under_the_prefix() {
    let openood: [(&str, [usize; 4], bool, usize); 3] = [
        ("resnet18_32x32", [2, 2, 2, 2], false, 512),
        ("resnet18_224x224", [2, 2, 2, 2], false, 512),
        ("resnet50", [3, 4, 6, 3], true, 2048),
    ];
    for (name, blocks, bottleneck, n_features) in openood {
        let mut shapes = Shapes::new();
        let kernel = if name.ends_with("32x32") { 3 } else { 7 };
        shapes.insert("backbone.conv1.weight".to_owned(), vec![64, 3, kernel, kernel]);
        for (stage, n_blocks) in blocks.into_iter().enumerate() {
            for i in 0..n_blocks {
                for conv in 1..=if bottleneck { 3 } else { 2 } {
                    let key = format!("backbone.layer{}.{i}.conv{conv}.weight", stage + 1);
                    shapes.insert(key, Vec::new());
                }
            }
        }
        shapes.insert("fc.weight".to_owned(), vec![N_CLASSES, n_features]);
        shapes.insert("confidence.weight".to_owned(), vec![1, n_features]);
        let variant = Variant::infer(&shapes).unwrap();
        assert_eq!(variant.to_string(), format!("{name} of Learning Confidence"));
        let network = variant.build(N_CLASSES, formula::var_builder(Default::default())).unwrap();
        let xs = random("xs", &[1, 3, 32, 32]);
        let mut taps = Taps::of(&["confidence".to_owned()]);
        let outputs = network.forward(&xs, Mode::Eval, &mut taps).unwrap();
        assert_eq!(outputs.features.dims(), [1, n_features]);
        assert_eq!(taps.into_taken()["confidence"].dims(), [1, 1], "{name}");
    }
}
