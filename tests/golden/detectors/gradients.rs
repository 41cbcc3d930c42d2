//! Detectors that take gradients, on the ResNet set: ODIN's kind, Mahalanobis distances at layers,
//! AdaSCALE, and GROOD, whose gradient is in closed form.

use std::sync::Arc;

use oodbench_engine::bench::{Grid, first_greatest};
use oodbench_engine::check::memory::{MemoryData, MemoryHost, MemorySplit};
use oodbench_posthoc::grood::Prototypes;
use oodbench_posthoc::numeric::neighbours::Bank;
use oodbench_posthoc::numeric::reduce::argmax;
use oodbench_sdk::Matrix;
use serde_json::{Map, Value, json};

use super::{
    AUROC_TOLERANCE, Exceptions, Report, Scorer, Tensors, Tolerance, auroc_of_theirs, by_our_names,
    deviation, needs, numbers, resnet,
};

/// The reference's detectors whose variants are compared here.
pub const DETECTORS: [&str; 6] =
    ["odin", "iodin", "mds_ensemble", "adascale_a", "adascale_l", "grood"];

/// A step takes the sign of a gradient, which jumps where a pixel's is near 0 or a ReLU is at its
/// kink, and convolutions that sum in another order fall to either side: on four of 32 images. Run
/// in f64 the network sides with ours on some such images, with theirs on others, and with neither
/// on the rest.
const JUMPS: Exceptions = Exceptions { at_most: 0.125, relative: 1e-4 };

/// An image whose gradient passes a ReLU at its kink has other values among the least, and its
/// shift is off by half a per cent: one of 32, on which the network in f64 sides with ours. That
/// shift lies next to a validation image's, and one more or less of 24 below it is a step of 1/24 of
/// the range of percentiles.
const STEPS: Exceptions = Exceptions { at_most: 1.0 / 32.0, relative: 0.25 };

fn tolerance(detector: &str) -> Tolerance {
    // At T = 1000 the scores of a set span 1e-4, a few units in the last place of f32.
    let usual = Tolerance { std: 1e-4, relative: 1e-6, absolute: 5e-8, exceptions: Some(JUMPS) };
    match detector {
        // The reference rounds its inverse covariance to f32.
        "mds_ensemble" => Tolerance { std: 2e-3, ..usual },
        "adascale_a" | "adascale_l" => Tolerance { exceptions: Some(STEPS), ..usual },
        _ => usual,
    }
}

/// Parameters from the name of a variant: `T1000.eps0.0014`, `p75_85`, `3layers`.
///
/// # Panics
///
/// A name that is not understood, because its variant would go untested.
fn params(detector: &str, settings: &str, result: &Value) -> Value {
    let number = |text: &str| text.parse::<f64>().ok();
    let pair = |prefix: &str, between: &str| {
        let (a, b) = settings.strip_prefix(prefix)?.split_once(between)?;
        Some((number(a)?, number(b)?))
    };
    let three = json!(["stem", "layer1", "layer2"]);
    let found = match (detector, settings) {
        ("odin" | "iodin", _) => pair("T", ".eps")
            .map(|(temperature, noise)| json!({"temperature": temperature, "noise": noise})),
        ("adascale_a" | "adascale_l", _) => {
            pair("p", "_").map(|(lo, hi)| json!({"percentile": [lo, hi]}))
        }
        ("mds_ensemble", "default") => Some(json!({})),
        ("mds_ensemble", "noise0") => Some(json!({"noise": 0.0})),
        ("mds_ensemble", "3layers") => Some(json!({"layers": three, "alpha": [1.0, 0.5, -0.2]})),
        ("mds_ensemble", "3layers_fitted_alpha") => {
            Some(json!({"layers": three, "alpha": result["fit"]["alpha"]}))
        }
        ("mds_ensemble", "stat") => Some(json!({
            "layers": ["stem", "layer1"],
            "types": ["stat"],
            "alpha": [1.0, 0.5],
            "reduce": ["pca_10", "none"],
        })),
        _ => None,
    };
    found.unwrap_or_else(|| panic!("{detector}.{settings}: this test cannot tell its parameters"))
}

/// One of our detectors, fitted.
pub fn fitted(key: &str, params: &Value, data: &Arc<MemoryData>) -> Scorer {
    let (detector, params) = by_our_names(key, params);
    let needs = needs(detector).unwrap_or_else(|| panic!("there is no `{detector}`"));
    let host = MemoryHost::new(needs, Arc::clone(data)).network(Arc::clone(&resnet::set().network));
    let mut ours = Scorer::new(detector, &params.to_string(), needs, host);
    ours.fit(data);
    ours
}

/// Compares scores of both sets.
pub fn compare(
    variant: &str,
    tolerance: Tolerance,
    report: &mut Report,
    mut score: impl FnMut(&str, &MemorySplit) -> Vec<f32>,
) {
    let references = &resnet::set().references;
    let (id, ood) = (score("test", &resnet::set().test), score("ood", &resnet::set().ood));
    let deviations = [
        deviation(variant, "test", &id, references, tolerance),
        deviation(variant, "ood", &ood, references, tolerance),
    ];
    report.scores(variant, &deviations);
    // An image whose score takes a step may pass all of the other set.
    let may_pass = tolerance.exceptions.is_some_and(|exceptions| exceptions.relative > 1e-2);
    let passing = deviations.iter().filter(|_| may_pass).map(|deviation| deviation.n_exceptions);
    let allowed = AUROC_TOLERANCE + passing.sum::<usize>() as f64 / id.len() as f64;
    let expected = auroc_of_theirs(references, variant, "ood");
    report.auroc_within(allowed, variant, "ood", &id, &ood, expected);
}

#[test]
fn gradients_give_openoods_scores() {
    let mut report = Report::default();
    for (variant, result) in
        resnet::set().results["scores"].as_object().expect("a table of variants")
    {
        let (key, settings) = variant.split_once('.').unwrap_or((variant, ""));
        // Compared in `grood_is_in_closed_form`, but for `grood.ivf`, whose index is approximate.
        if !DETECTORS.contains(&key) || key == "grood" {
            continue;
        }
        let mut ours = fitted(key, &params(key, settings, result), &resnet::set().data);
        compare(variant, tolerance(key), &mut report, |_, split| ours.score(split));
    }
    report.end();
}

#[test]
fn a_search_on_images_chooses_what_openood_chooses() {
    let mut report = Report::default();
    for (key, golden) in resnet::set().results["aps"].as_object().expect("a table of searches") {
        let names: &[&str] = match key.as_str() {
            "odin" | "iodin" => &["temperature", "noise"],
            "adascale_a" | "adascale_l" => &["percentile", "k1", "k2", "lambda", "o"],
            other => panic!("aps.{other}: this test cannot tell its parameters"),
        };
        let combinations = golden["combinations"].as_array().expect("a list of combinations");
        let values = |nth: usize| {
            let mut values: Vec<Value> = Vec::new();
            for combination in combinations.iter().map(|combination| &combination[nth]) {
                if !values.contains(combination) {
                    values.push(combination.clone());
                }
            }
            values
        };
        let sweeps: Vec<(String, Vec<Value>)> =
            names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), values(i))).collect();
        let grid = Grid::over(&Map::new(), &sweeps);
        let in_order = |params: &Map<String, Value>| -> Value {
            grid.parameters.iter().map(|name| params[name].clone()).collect()
        };
        let ours: Vec<Value> = grid.combinations.iter().map(in_order).collect();
        assert_eq!(&ours, combinations, "{key}: order");
        let mut scorers = Vec::new();
        let mut aurocs = Vec::new();
        for (nth, params) in grid.combinations.iter().enumerate() {
            let mut scorer = fitted(key, &Value::Object(params.clone()), &resnet::set().data);
            let ood = resnet::set().data.val_ood.as_ref().expect("OOD validation images");
            let (id, ood) = (scorer.score(&resnet::set().data.val), scorer.score(ood));
            let expected = &golden["val_metrics_fpr_auroc_auprin_auprout_acc"][nth][1];
            let expected = expected.as_f64().expect("an AUROC");
            let what = ours[nth].to_string();
            aurocs.push(Some(report.auroc(key, &what, &id, &ood, expected)));
            scorers.push(scorer);
        }
        let (chosen, _) = first_greatest(&aurocs).expect("a combination");
        println!("{key}: {} of {} combinations", ours[chosen], ours.len());
        assert_eq!(ours[chosen], golden["chosen_api_first_max"], "{key}: choice");
        let variant = format!("aps.{key}");
        compare(&variant, tolerance(key), &mut report, |_, split| scorers[chosen].score(split));
    }
    report.end();
}

#[test]
fn weights_of_layers_are_fitted_as_openood_fits_them() {
    let mut report = Report::default();
    let tolerance = tolerance("mds_ensemble");
    let layers = json!({"layers": ["stem", "layer1", "layer2"], "alpha": []});
    let mut ours = fitted("mds_ensemble", &layers, &resnet::set().data);
    let variant = "mds_ensemble.3layers_fitted_alpha";
    compare(variant, tolerance, &mut report, |_, split| ours.score(split));
    report.end();
}

#[test]
fn grood_is_in_closed_form() {
    // Differences of squares in f32, on scores of 1e-11.
    const TOLERANCE: Tolerance =
        Tolerance { std: 1e-4, relative: 1e-6, absolute: 0.0, exceptions: None };
    let mut report = Report::default();
    let set = resnet::set();
    let ood = set.data.val_ood.as_ref().expect("OOD validation images");
    let prototypes = |data: &MemoryData| {
        let (train, labels) = (rows(&data.train), &data.train.labels);
        Prototypes::new(train, labels, data.n_classes, rows(ood)).expect("prototypes")
    };
    let of_labels = prototypes(&set.data);
    compare("grood.grad_norm", TOLERANCE, &mut report, |_, split| {
        let gradients = of_labels.gradients(rows(split)).expect("gradients");
        let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).abs()).sum::<f64>() as f32;
        gradients.chunks_exact(set.data.n_features).map(norm).collect()
    });

    // Where there is a bank, labels are the predictions, so that every training image is in it.
    let mut data = MemoryData::clone(&set.data);
    let logits = data.train.logits.data.chunks_exact(data.n_classes);
    data.train.labels = logits.map(|row| argmax(row) as i64).collect();
    let data = Arc::new(data);
    let mut ours = fitted("grood", &json!({}), &data);
    compare("grood.exact_all", TOLERANCE, &mut report, |_, split| ours.score(split));
    let of_predictions = prototypes(&data);
    let gradients = |split: &MemorySplit| of_predictions.gradients(rows(split)).expect("gradients");
    let bank = gradients(&data.train);
    for (split, key) in [(&set.test, "test.grads"), (&set.ood, "ood.grads")] {
        same(&gradients(split), &format!("grood.{key}"), &set.references);
    }
    same(&bank, "grood.grad_bank", &set.references);

    // The batch that the reference trains its index with is not in it.
    let indexed = numbers(&set.references, "grood.indexed_rows");
    let row = |i: usize| &bank[indexed[i] as usize * data.n_features..][..data.n_features];
    let bank = Bank::new(indexed.len(), data.n_features, |i, out| out.copy_from_slice(row(i)));
    compare("grood.exact_indexed", TOLERANCE, &mut report, |_, split| {
        let queries = gradients(split);
        bank.kth_distances(Matrix::new(&queries, split.len(), data.n_features).expect("rows"), &[1])
    });
    report.end();
}

fn rows(split: &MemorySplit) -> Matrix<'_> {
    let features = &split.features;
    Matrix::new(&features.data, features.n_rows(), features.row_len()).expect("a matrix")
}

/// Whether numbers are the reference's, to a part of the greatest.
fn same(ours: &[f32], key: &str, references: &Tensors) {
    let expected = numbers(references, key);
    assert_eq!(ours.len(), expected.len(), "{key}");
    let greatest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let off = ours.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs());
    let off = off.fold(0.0, f64::max) / greatest;
    assert!(off < 1e-5, "{key}: off by {off:.1e} of the greatest");
}
