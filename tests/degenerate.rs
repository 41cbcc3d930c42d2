//! Every detector on data that leaves little to learn from: a score for each image or an error
//! with its reason, never a panic or a score that is not finite.
//!
//! Detectors run with the parameters of their worked examples, which suit few images and features.
//! Those that look at images have their own cases, in `images`.

use std::sync::Arc;

use oodbench_abi::{DetectorBox, ErrorCode, RawError};
use oodbench_engine::check::memory::{
    self, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor,
};
use oodbench_sdk::{Info, Needs};

#[path = "degenerate/companions.rs"]
mod companions;
#[path = "degenerate/images.rs"]
mod images;

/// Sizes of a data set.
#[derive(Clone, Copy)]
struct Sizes {
    n_classes: usize,
    n_features: usize,
    n_train: usize,
    n_val: usize,
}

const USUAL: Sizes = Sizes { n_classes: 3, n_features: 6, n_train: 60, n_val: 30 };

/// Where features and labels of a case come from.
struct Case {
    name: &'static str,
    sizes: Sizes,
    /// Feature `d` of image `i` of split `s`.
    feature: fn(u64, usize, usize) -> f32,
    /// From the image's number and the predicted class.
    label: fn(usize, usize) -> i64,
    weight: f32,
}

impl Case {
    const fn new(name: &'static str) -> Self {
        Self { name, sizes: USUAL, feature: usual, label: mostly_right, weight: 1.0 }
    }
}

/// A number from 0 to below 1 that looks random (SplitMix64).
fn uniform(seed: u64, i: usize, d: usize) -> f32 {
    let mut x = (seed << 40 ^ (i as u64) << 20 ^ d as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) >> 40) as f32 / (1u64 << 24) as f32
}

/// Rectified features with a class in each, as of a network.
fn usual(split: u64, i: usize, d: usize) -> f32 {
    let of_class = if d % USUAL.n_classes == i % USUAL.n_classes { 2.0 } else { 0.0 };
    (of_class + 2.0 * uniform(split, i, d) - 1.0).max(0.0)
}

/// The predicted class, but for one image in ten.
fn mostly_right(i: usize, predicted: usize) -> i64 {
    let off = usize::from(i % 10 == 9);
    ((predicted + off) % USUAL.n_classes) as i64
}

fn cases() -> Vec<Case> {
    vec![
        Case { feature: |_, _, _| 1.0, ..Case::new("constant features") },
        Case { feature: |_, _, _| 0.0, ..Case::new("features of zero") },
        // Labels of every class, without which whatever has a mean for each class ends there.
        Case {
            feature: |_, _, _| 1.0,
            label: |i, _| i as i64 % 3,
            ..Case::new("constant features of every class")
        },
        Case {
            feature: |_, _, _| 0.0,
            label: |i, _| i as i64 % 3,
            ..Case::new("features of zero of every class")
        },
        Case { feature: |_, _, d| d as f32, ..Case::new("all images the same") },
        Case {
            feature: |s, i, d| if d == 1 { 3.0 } else { usual(s, i, d) },
            ..Case::new("one constant feature")
        },
        Case { feature: |s, i, d| -usual(s, i, d), ..Case::new("no feature above zero") },
        Case { feature: |s, i, d| 1e18 * usual(s, i, d), ..Case::new("huge features") },
        Case {
            feature: |s, i, d| if s == 3 { 1e25 } else { 1.0 } * usual(s, i, d),
            ..Case::new("images far away from what was learned")
        },
        Case { feature: |s, i, d| 1e-30 * usual(s, i, d), ..Case::new("tiny features") },
        Case { weight: 0.0, ..Case::new("weights of zero") },
        Case { weight: 1e4, ..Case::new("logits that saturate") },
        Case { sizes: Sizes { n_classes: 1, ..USUAL }, label: |_, _| 0, ..Case::new("one class") },
        Case { sizes: Sizes { n_features: 1, ..USUAL }, ..Case::new("one feature") },
        Case {
            sizes: Sizes { n_features: 40, n_train: 12, n_val: 9, ..USUAL },
            ..Case::new("more features than images")
        },
        Case {
            sizes: Sizes { n_train: 1, n_val: 1, ..USUAL },
            ..Case::new("one image to learn from")
        },
        Case {
            sizes: Sizes { n_train: 0, n_val: 0, ..USUAL },
            ..Case::new("nothing to learn from")
        },
        Case {
            label: |_, predicted| (predicted as i64).min(1),
            ..Case::new("a class without images")
        },
        Case { label: |_, predicted| (predicted as i64 + 1) % 3, ..Case::new("every label wrong") },
        Case { label: |i, _| if i == 0 { 3 } else { 0 }, ..Case::new("a label that is no class") },
        Case { label: |i, _| if i == 0 { -1 } else { 0 }, ..Case::new("a label below zero") },
        Case {
            feature: |s, i, d| if s < 2 && i == 4 { f32::NAN } else { usual(s, i, d) },
            ..Case::new("NaN to learn from")
        },
        Case {
            feature: |s, i, d| if i == 4 && d == 2 { f32::NAN } else { usual(s, i, d) },
            ..Case::new("NaN everywhere")
        },
        Case {
            feature: |s, i, d| if i == 4 && d == 2 { f32::INFINITY } else { usual(s, i, d) },
            ..Case::new("infinity everywhere")
        },
    ]
}

impl Case {
    fn data(&self) -> (MemoryData, MemorySplit) {
        let Sizes { n_classes, n_features, n_train, n_val } = self.sizes;
        let at = |class: usize, d: usize| if d % n_classes == class { 1.0 } else { -0.1 };
        let weight: Vec<f32> = (0..n_classes * n_features)
            .map(|i| self.weight * at(i / n_features, i % n_features))
            .collect();
        let bias: Vec<f32> = (0..n_classes).map(|class| 0.01 * class as f32).collect();
        let split = |seed: u64, n: usize| {
            let features: Vec<f32> = (0..n * n_features)
                .map(|i| (self.feature)(seed, i / n_features, i % n_features))
                .collect();
            let mut logits = Vec::new();
            let mut labels = Vec::new();
            for (i, row) in features.chunks_exact(n_features).enumerate() {
                let row: Vec<f32> = (0..n_classes)
                    .map(|class| {
                        let weight = &weight[class * n_features..][..n_features];
                        bias[class] + weight.iter().zip(row).map(|(w, h)| w * h).sum::<f32>()
                    })
                    .collect();
                let predicted = (0..n_classes)
                    .fold(0, |best, class| if row[class] > row[best] { class } else { best });
                labels.push((self.label)(i, predicted));
                logits.extend(row);
            }
            MemorySplit {
                labels,
                logits: MemoryTensor::new(logits, &[n, n_classes]),
                features: MemoryTensor::new(features, &[n, n_features]),
                images: MemoryTensor::default(),
            }
        };
        let data = MemoryData {
            n_classes,
            n_features,
            image_size: None,
            head: Some(MemoryHead { weight: weight.clone(), bias: bias.clone() }),
            train: split(0, n_train),
            val: split(1, n_val),
            val_ood: Some(split(2, n_val)),
        };
        (data, split(3, 20))
    }
}

/// A detector with its example's parameters after `fit`.
fn fitted(info: &Info, data: &Arc<MemoryData>) -> Result<DetectorBox, RawError> {
    let params = serde_json::Value::Object(info.example.0.params.clone()).to_string();
    let host = MemoryHost::new(info.needs, Arc::clone(data));
    let mut detector = oodbench_posthoc::create(info.id, &params, host.boxed())
        .unwrap_or_else(|err| panic!("create `{}` with {params}: {err}", info.id));
    memory::fit(&mut detector, info.needs, data)?;
    Ok(detector)
}

/// Scores, or where it ended and with which error.
fn scores(info: &Info, data: &Arc<MemoryData>, test: &MemorySplit) -> Result<Vec<f32>, RawError> {
    let mut detector = fitted(info, data)?;
    let keys: Vec<u64> = (0..test.len() as u64).collect();
    memory::score(&mut detector, info.needs, test, &keys)
}

/// Detectors that read outputs alone.
fn of_outputs() -> Vec<Info> {
    let mut infos = oodbench_posthoc::infos();
    infos.retain(|info| !info.needs.contains(Needs::IMAGES));
    infos
}

#[test]
fn usual_data_is_scored_by_every_detector() {
    let (data, test) = Case::new("usual").data();
    let data = Arc::new(data);
    for info in of_outputs() {
        let scores = scores(&info, &data, &test)
            .unwrap_or_else(|err| panic!("`{}`: {}", info.id, err.message));
        assert!(scores.iter().all(|score| score.is_finite()), "`{}`: {scores:?}", info.id);
        assert!(scores.iter().any(|score| *score != scores[0]), "`{}` tells nothing", info.id);
    }
}

#[test]
fn degenerate_data_ends_in_scores_or_a_reason() {
    let mut bad = Vec::new();
    for case in cases() {
        let (data, test) = case.data();
        let data = Arc::new(data);
        for info in of_outputs() {
            let mut wrong =
                |what: String| bad.push(format!("{} on {}: {what}", info.id, case.name));
            match scores(&info, &data, &test) {
                Err(err) if err.code == ErrorCode::PANICKED => wrong(err.message.to_string()),
                Err(err) if err.message.is_empty() => wrong("an error without a reason".to_owned()),
                Err(err) => println!("{} on {}: {}", info.id, case.name, err.message),
                Ok(scores) => {
                    let n = test.features.row_len();
                    for (i, score) in scores.iter().enumerate() {
                        // What is not finite itself may have such a score, which the host refuses.
                        let row = &test.features.data[i * n..(i + 1) * n];
                        if !score.is_finite() && row.iter().all(|x| x.is_finite()) {
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
    let sizes = Sizes { n_features: 70, n_train: 300, n_val: 150, ..USUAL };
    let (data, test) = Case { sizes, ..Case::new("many features") }.data();
    let data = Arc::new(data);
    for info in of_outputs() {
        let mut detector =
            fitted(&info, &data).unwrap_or_else(|err| panic!("fit `{}`: {}", info.id, err.message));
        let mut score = |images: &[usize]| {
            let keys: Vec<u64> = images.iter().map(|&i| i as u64).collect();
            memory::score(&mut detector, info.needs, &test.select(images), &keys)
                .unwrap_or_else(|err| panic!("score `{}`: {}", info.id, err.message))
        };
        let all: Vec<usize> = (0..test.len()).collect();
        let at_once = score(&all);
        for images in [&all[..1], &all[3..4], &all[5..], &[]] {
            let expected: Vec<f32> = images.iter().map(|&i| at_once[i]).collect();
            assert_eq!(score(images), expected, "`{}` on {images:?}", info.id);
        }
    }
}
