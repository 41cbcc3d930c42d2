//! Variants that the reference recorded together with what it drew at random or fitted: masks of
//! dropout, which are streams of a formula, and the parameters of Gaussian mixtures.

use candle_core::Tensor;
use oodbench_posthoc::numeric::linalg::Stored;
use oodbench_posthoc::numeric::mixture::Mixture;
use oodbench_posthoc::numeric::random::Random;
use oodbench_posthoc::{dropout, gmm};
use oodbench_sdk::Matrix;

use super::{
    FeatureSet, MemorySplit, Report, Tensors, Tolerance, auroc_of_theirs, deviation, numbers,
    shared, tensors,
};

/// The variants that are compared here.
pub const VARIANTS: [&str; 2] = ["dropout.fixedmask", "gmm.default3"];

const TOLERANCE: Tolerance =
    Tolerance { std: 1e-4, relative: 5e-6, absolute: 0.0, exceptions: None };

/// Scores every set by `score`, which gets the set's name, and compares.
fn compare(variant: &str, score: impl Fn(&FeatureSet, &Tensors, &str, &MemorySplit) -> Vec<f32>) {
    let folder = shared().join("golden/openood");
    let set = FeatureSet::open(&folder.join("features_dir"));
    let references = tensors(&folder.join("scores_public.safetensors"));
    let mut report = Report::default();
    let id = score(&set, &references, "test", &set.test);
    let mut deviations = vec![deviation(variant, "test", &id, &references, TOLERANCE)];
    for (name, split) in &set.ood {
        let ood = score(&set, &references, name, split);
        deviations.push(deviation(variant, name, &ood, &references, TOLERANCE));
        let expected = auroc_of_theirs(&references, variant, name);
        report.auroc(variant, name, &id, &ood, expected);
    }
    report.scores(variant, &deviations);
    report.end();
}

fn features(split: &MemorySplit) -> Matrix<'_> {
    let n = split.len();
    let columns = split.features.data.len() / n;
    Matrix::new(&split.features.data, n, columns).expect("a matrix")
}

#[test]
fn recorded_masks_give_openoods_dropout_scores() {
    compare(VARIANTS[0], |set, _, name, split| {
        let head = set.data.head.as_ref().expect("a head");
        let (k, d) = (set.data.n_classes, set.data.n_features);
        let weight = Matrix::new(&head.weight, k, d).expect("a matrix");
        let masks: Vec<Vec<bool>> =
            (0..5).map(|t| kept(&format!("dropout/{name}/{t}"), split.len() * d)).collect();
        let score = |(i, h): (usize, &[f32])| {
            let of_image = |pass: usize, feature: usize| masks[pass][i * d + feature];
            let logits = dropout::mean_logits(weight, &head.bias, h, 0.5, 5, of_image);
            dropout::score_of(&logits, false)
        };
        features(split).rows().enumerate().map(score).collect()
    });
}

/// Whether numbers of a stream are at least one half: SplitMix64 from the FNV-1a hash of its name.
fn kept(name: &str, n: usize) -> Vec<bool> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = Random::new(seed);
    (0..n).map(|_| random.unit() >= 0.5).collect()
}

#[test]
fn recorded_mixtures_give_openoods_scores() {
    // Three layers: mean and variance of 4 channels, their mean, and the features as they are.
    const ALPHAS: [f64; 3] = [-0.01, 0.0, 1.0];
    compare(VARIANTS[1], |_, references, _, split| {
        let features = features(split);
        let channels = reduced(features);
        let statistics = Matrix::new(&channels, features.n_rows(), 8).expect("a matrix");
        let means: Vec<f32> = statistics.rows().flat_map(|row| &row[..4]).copied().collect();
        let means = Matrix::new(&means, features.n_rows(), 4).expect("a matrix");
        let layers = [statistics, means, features];
        let mut scores = vec![0.0; features.n_rows()];
        for (nth, (layer, alpha)) in layers.into_iter().zip(ALPHAS).enumerate() {
            let densities =
                mixture(references, nth).log_densities(layer).expect("a density for each image");
            for (score, density) in scores.iter_mut().zip(densities) {
                *score += alpha * gmm::single_precision(density);
            }
        }
        scores.into_iter().map(|score| score as f32).collect()
    });
}

/// Means and unbiased variances of the 16 values of each of 4 channels.
fn reduced(features: Matrix<'_>) -> Vec<f32> {
    let mut out = Vec::new();
    for row in features.rows() {
        let channels = || row.chunks_exact(16);
        let mean = |channel: &[f32]| channel.iter().map(|&x| f64::from(x)).sum::<f64>() / 16.0;
        out.extend(channels().map(|channel| mean(channel) as f32));
        out.extend(channels().map(|channel| {
            let mean = mean(channel);
            let squares = channel.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
            (squares / 15.0) as f32
        }));
    }
    out
}

/// The mixture that the reference fitted to a layer.
fn mixture(references: &Tensors, layer: usize) -> Mixture {
    let key = |what: &str| format!("gmm.default3/fit.layer{layer}.{what}");
    let matrix = |what: &str| {
        let tensor: &Tensor = &references[&key(what)];
        let (rows, columns) = tensor.dims2().expect("a matrix");
        Stored::from_rows(rows, columns, &numbers(references, &key(what))).expect("a matrix")
    };
    let weights = numbers(references, &key("weight"));
    Mixture::new(&matrix("transform"), &matrix("prec"), &matrix("mean"), &weights)
        .expect("finite numbers")
}
