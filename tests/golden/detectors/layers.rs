//! Detectors that read activations inside the network, on the ResNet set: RankFeat and Gram
//! matrices. The reference drew the training images that Gram holds out at random, and recorded which
//! ones.

use oodbench_engine::check::memory::{MemorySplit, MemoryTensor};
use oodbench_posthoc::gram::Ranges;
use oodbench_sdk::{Layer, Matrix};
use serde_json::json;

use super::gradients::{compare, fitted};
use super::{Report, Tolerance, numbers, resnet};

/// The reference's detectors whose variants are compared here.
pub const DETECTORS: [&str; 2] = ["gram", "rankfeat"];

const TOLERANCE: Tolerance =
    Tolerance { std: 1e-4, relative: 5e-6, absolute: 0.0, exceptions: None };

/// A deviation is a part of the end of a range, and signed channels have correlations near 0, where
/// the rounding of a convolution is a great part. The reference run in f64 is off from its own f32
/// scores by up to 2.3e-3 standard deviations and 7.5e-4 of a score, and by 1e-4 of a divisor.
const GRAM_TOLERANCE: Tolerance =
    Tolerance { std: 2e-3, relative: 1e-3, absolute: 0.0, exceptions: None };

#[test]
fn activations_without_a_rank_give_openoods_scores() {
    let mut report = Report::default();
    for (variant, params) in
        [("rankfeat", json!({})), ("rankfeat.accelerate", json!({"accelerate": true}))]
    {
        let mut ours = fitted("rankfeat", &params, &resnet::set().data);
        compare(variant, TOLERANCE, &mut report, |_, split| ours.score(split));
    }
    report.end();
}

/// The maps of images of a split.
fn maps(split: &MemorySplit, images: &[usize]) -> Vec<Layer> {
    let network = &resnet::set().network;
    let names = network.layer_groups().maps;
    let images = split.images.select(images);
    let size = (images.shape[2], images.shape[3]);
    let layers = network.layers(&images.data, size, &names).expect("the maps of the network");
    let layer = |(name, MemoryTensor { data, shape })| Layer { name, data, shape };
    names.into_iter().zip(layers).map(layer).collect()
}

/// The numbers of the training images that the reference held out.
fn held_out() -> Vec<usize> {
    let set = resnet::set();
    let n_classes = set.data.n_classes;
    let chosen = numbers(&set.references, "gram.val_idx_within_class");
    let of_class = chosen.len() / n_classes;
    let image = |(i, nth): (usize, &f64)| {
        let labels = set.data.train.labels.iter().enumerate();
        let mut images = labels.filter(|(_, label)| **label as usize == i / of_class);
        images.nth(*nth as usize).expect("an image of the class").0
    };
    chosen.iter().enumerate().map(image).collect()
}

#[test]
fn correlations_of_channels_give_openoods_scores() {
    let set = resnet::set();
    let classes: Vec<usize> = set.data.train.labels.iter().map(|&label| label as usize).collect();
    let mut report = Report::default();
    for (variant, powers) in
        [("gram.default", vec![1, 2, 3, 4, 5]), ("gram.power1", vec![1]), ("gram.power3", vec![3])]
    {
        let maps_of = |images: &[usize]| Ok(maps(&set.data.train, images));
        let ranges =
            Ranges::learn(&powers, &classes, set.data.n_classes, &held_out(), maps_of, |_| Ok(()))
                .expect("ranges");
        if variant == "gram.default" {
            let expected = numbers(&set.references, "gram.normalize_factors");
            for (ours, expected) in ranges.divisors().iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-3 * expected, "{ours} {expected}");
            }
            assert_eq!(ranges.divisors().len(), expected.len());
        }
        compare(variant, GRAM_TOLERANCE, &mut report, |_, split| {
            let all: Vec<usize> = (0..split.len()).collect();
            let logits = Matrix::new(&split.logits.data, split.len(), set.data.n_classes);
            ranges.scores(&maps(split, &all), logits.expect("a matrix")).expect("scores")
        });
    }
    report.end();
}

#[test]
fn gram_draws_its_own_images_and_tells_sets_apart() {
    let set = resnet::set();
    let mut ours = fitted("gram", &json!({}), &set.data);
    let (id, ood) = (ours.score(&set.test), ours.score(&set.ood));
    let auroc = oodbench_metrics::RankedScores::new(&id, &ood).expect("finite scores").auroc();
    // The reference's is 0.983 with another tenth of 200 images.
    let auroc = auroc.expect("both sets have images");
    assert!((auroc - 0.983).abs() < 0.02, "{auroc}");
}
