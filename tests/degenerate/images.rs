//! Detectors that look at images, or have the classifier run on them, on images that leave little to
//! learn from. The network is a small CIFAR ResNet whose weights follow from formulas.

use std::sync::Arc;

use oodbench_abi::{DetectorBox, ErrorCode, RawError};
use oodbench_engine::check::memory::{
    self, ImageNetwork, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_sdk::{Info, Needs};
use oodbench_tests::network::{classifier, formula_weights};
use serde_json::Value;

use super::uniform;

const SIDE: usize = 8;
const PER_IMAGE: usize = 3 * SIDE * SIDE;
const ARCHITECTURE: Architecture =
    Architecture::ResNetCifar { blocks: 1, width: 4, projection: false };
const NORMALISATION: Normalisation = Normalisation { mean: [0.5, 0.4, 0.6], std: [0.2, 0.25, 0.3] };

/// Where images and labels of a case come from.
struct Case {
    name: &'static str,
    n_classes: usize,
    n_train: usize,
    n_val: usize,
    has_val_ood: bool,
    /// Value `d` of image `i` of split `s`.
    value: fn(u64, usize, usize) -> f32,
    /// From the image's number and the number of classes.
    label: fn(usize, usize) -> i64,
}

impl Case {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            n_classes: 3,
            n_train: 40,
            n_val: 15,
            has_val_ood: true,
            value: usual,
            label: |i, n_classes| (i % n_classes) as i64,
        }
    }
}

/// A colour with noise; out-of-distribution images are darker.
fn usual(split: u64, i: usize, d: usize) -> f32 {
    let colour = uniform(split + 10, i, d / (SIDE * SIDE));
    let value = 0.7 * colour + 0.3 * uniform(split, i, d);
    if split == 2 { value * value } else { value }
}

fn cases() -> Vec<Case> {
    vec![
        Case { value: |_, _, _| 0.5, ..Case::new("the same grey everywhere") },
        Case { value: |_, _, _| 0.0, ..Case::new("black images") },
        Case { value: |_, _, _| 1.0, ..Case::new("white images") },
        Case { value: |_, _, d| uniform(0, 0, d), ..Case::new("all images the same") },
        Case {
            value: |s, i, d| uniform(s, i, d / (SIDE * SIDE)),
            ..Case::new("images of one colour each")
        },
        Case { n_classes: 1, ..Case::new("one class") },
        Case { label: |i, _| (i % 2) as i64, ..Case::new("a class without images") },
        Case { label: |i, _| if i == 0 { 3 } else { 0 }, ..Case::new("a label that is no class") },
        Case { n_train: 1, n_val: 1, ..Case::new("one image to learn from") },
        Case { n_train: 0, n_val: 0, ..Case::new("nothing to learn from") },
        Case { has_val_ood: false, ..Case::new("no OOD validation images") },
        Case {
            value: |s, i, d| if s < 2 && i == 4 { f32::NAN } else { usual(s, i, d) },
            ..Case::new("NaN to learn from")
        },
        Case {
            value: |s, i, d| if i == 4 && d == 2 { f32::NAN } else { usual(s, i, d) },
            ..Case::new("NaN everywhere")
        },
        Case {
            value: |s, i, d| if i == 4 && d == 2 { f32::INFINITY } else { usual(s, i, d) },
            ..Case::new("infinity everywhere")
        },
    ]
}

/// What is fitted on, what is scored, and the network.
struct Built {
    data: Arc<MemoryData>,
    test: MemorySplit,
    network: Arc<dyn ImageNetwork>,
}

impl Case {
    fn build(&self) -> Built {
        let n_classes = self.n_classes;
        let weights = formula_weights(ARCHITECTURE, n_classes);
        let classifier = classifier(&weights, n_classes, NORMALISATION);
        let (weight, bias) = classifier.head().expect("a head");
        let n_features = classifier.n_features();
        let network: Arc<dyn ImageNetwork> = Arc::new(classifier);
        let split = |seed: u64, n: usize| {
            let images: Vec<f32> = (0..n * PER_IMAGE)
                .map(|i| (self.value)(seed, i / PER_IMAGE, i % PER_IMAGE))
                .collect();
            let (logits, features) = match n {
                0 => (Vec::new(), Vec::new()),
                _ => {
                    let outputs = network.forward(&images, (SIDE, SIDE)).expect("a forward pass");
                    (outputs.logits.to_vec(), outputs.features.to_vec())
                }
            };
            MemorySplit {
                labels: (0..n).map(|i| (self.label)(i, n_classes)).collect(),
                logits: MemoryTensor::new(logits, &[n, n_classes]),
                features: MemoryTensor::new(features, &[n, n_features]),
                images: MemoryTensor::new(images, &[n, 3, SIDE, SIDE]),
            }
        };
        let data = MemoryData {
            n_classes,
            n_features,
            image_size: Some((SIDE, SIDE)),
            head: Some(MemoryHead { weight, bias }),
            train: split(0, self.n_train),
            val: split(1, self.n_val),
            val_ood: self.has_val_ood.then(|| split(2, self.n_val)),
        };
        let test = split(3, 10);
        Built { data: Arc::new(data), test, network }
    }
}

/// Post-hoc detectors that look at images and do not need a file.
fn of_images() -> Vec<Info> {
    let mut infos = oodbench_posthoc::infos();
    infos.retain(|info| {
        info.needs.contains(Needs::IMAGES)
            && !info.needs.contains(Needs::ASSETS)
            && info.companion_of.is_empty()
    });
    infos
}

/// The parameters of a worked example, for another network than the example's: its only layer,
/// `input`, becomes the first of the network's.
fn params(info: &Info, network: &dyn ImageNetwork) -> String {
    fn renamed(value: &Value, layer: &str) -> Value {
        match value {
            Value::String(name) if name == "input" => Value::from(layer),
            Value::Array(values) => values.iter().map(|value| renamed(value, layer)).collect(),
            other => other.clone(),
        }
    }
    let groups = network.layer_groups();
    let layer = groups.stages.first().map_or("input", String::as_str);
    let params = info.example.0.params.iter();
    Value::Object(params.map(|(name, value)| (name.clone(), renamed(value, layer))).collect())
        .to_string()
}

fn fitted(info: &Info, built: &Built) -> Result<DetectorBox, RawError> {
    let params = params(info, &*built.network);
    let host = MemoryHost::new(info.needs, Arc::clone(&built.data));
    let host = host.network(Arc::clone(&built.network)).boxed();
    let mut detector = oodbench_posthoc::create(info.id, &params, host)
        .unwrap_or_else(|err| panic!("create `{}` with {params}: {err}", info.id));
    memory::fit(&mut detector, info.needs, &built.data)?;
    Ok(detector)
}

fn scores(info: &Info, built: &Built) -> Result<Vec<f32>, RawError> {
    let mut detector = fitted(info, built)?;
    let keys: Vec<u64> = (0..built.test.len() as u64).collect();
    memory::score(&mut detector, info.needs, &built.test, &keys)
}

#[test]
fn usual_images_are_scored_by_every_detector() {
    let built = Case::new("usual").build();
    assert!(of_images().len() >= 4, "detectors of images have gone");
    for info in of_images() {
        let scores =
            scores(&info, &built).unwrap_or_else(|err| panic!("`{}`: {}", info.id, err.message));
        assert!(scores.iter().all(|score| score.is_finite()), "`{}`: {scores:?}", info.id);
        assert!(scores.iter().any(|score| *score != scores[0]), "`{}` tells nothing", info.id);
    }
}

#[test]
fn degenerate_images_end_in_scores_or_a_reason() {
    let mut bad = Vec::new();
    for case in cases() {
        let built = case.build();
        for info in of_images() {
            let mut wrong =
                |what: String| bad.push(format!("{} on {}: {what}", info.id, case.name));
            match scores(&info, &built) {
                Err(err) if err.code == ErrorCode::PANICKED => wrong(err.message.to_string()),
                Err(err) if err.message.is_empty() => wrong("an error without a reason".to_owned()),
                Err(err) => println!("{} on {}: {}", info.id, case.name, err.message),
                Ok(scores) => {
                    for (i, score) in scores.iter().enumerate() {
                        // What is not finite itself may have such a score, which the host refuses.
                        let image = &built.test.images.data[i * PER_IMAGE..(i + 1) * PER_IMAGE];
                        if !score.is_finite() && image.iter().all(|x| x.is_finite()) {
                            wrong(format!("score of image {i} is {score}"));
                            break;
                        }
                    }
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn a_score_does_not_depend_on_the_other_images() {
    let built = Case::new("usual").build();
    for info in of_images() {
        let mut detector = fitted(&info, &built)
            .unwrap_or_else(|err| panic!("fit `{}`: {}", info.id, err.message));
        let mut score = |images: &[usize]| {
            let keys: Vec<u64> = images.iter().map(|&i| i as u64).collect();
            memory::score(&mut detector, info.needs, &built.test.select(images), &keys)
                .unwrap_or_else(|err| panic!("score `{}`: {}", info.id, err.message))
        };
        let all: Vec<usize> = (0..built.test.len()).collect();
        let at_once = score(&all);
        for images in [&all[..1], &all[3..4], &all[5..], &[]] {
            let expected: Vec<f32> = images.iter().map(|&i| at_once[i]).collect();
            assert_eq!(score(images), expected, "`{}` on {images:?}", info.id);
        }
    }
}
