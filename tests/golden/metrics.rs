//! `oodbench-metrics` against OpenOOD v1.5 (commit 3c35632) and scikit-learn 1.9.1.
//!
//! `golden/openood/metrics.json` holds what both computed for the `conf`, labels and predictions in
//! `metrics_inputs.safetensors`. Nothing here knows a case by name: what a case has to show follows
//! from its input, so any other set of cases laid out the same way can be put in its place.
//!
//! The tolerance is 1e-12 absolute: both sides compute in f64, in another order of additions. Rates
//! that are quotients of two counts (FPR, accuracy, CCR) have to be equal to the last bit.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::{collections::BTreeSet, fs, path::Path};

use oodbench_metrics::{
    MetricError, OOD_LABEL, OodMetrics, Positive, RankedScores, Score, Side, accuracy, ccr_at_fpr,
    ccr_at_fpr_openood,
};
use oodbench_tests::shared;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

const TOLERANCE: f64 = 1e-12;

#[test]
fn metrics_equal_openood_and_scikit_learn() {
    let folder = shared().join("golden/openood");
    let cases = cases(&folder.join("metrics.json"));
    let inputs = fs::read(folder.join("metrics_inputs.safetensors")).unwrap();
    let inputs = SafeTensors::deserialize(&inputs).unwrap();

    let mut report = Report::default();
    for (name, expected) in &cases.cases {
        report.case = name.clone();
        let n_before = report.n_compared;
        let conf = inputs.tensor(&format!("{name}.conf")).unwrap();
        let images = Images {
            labels: integers(&inputs, &format!("{name}.label")),
            predictions: integers(&inputs, &format!("{name}.pred")),
            is_column: conf.shape().len() == 2,
        };
        match conf.dtype() {
            Dtype::F32 => {
                let conf = chunks(conf.data()).map(f32::from_le_bytes).map(|conf| -conf);
                check_case(&mut report, &cases.order, expected, &conf.collect::<Vec<_>>(), &images);
            }
            Dtype::F64 => {
                let conf = chunks(conf.data()).map(f64::from_le_bytes).map(|conf| -conf);
                check_case(&mut report, &cases.order, expected, &conf.collect::<Vec<_>>(), &images);
            }
            other => panic!("{name}: conf expected f32 or f64, got {other:?}"),
        }
        assert!(report.n_compared > n_before, "{name}: nothing was compared");
    }
    println!(
        "{} cases, {} numbers, largest deviation {:e} ({})",
        cases.cases.len(),
        report.n_compared,
        report.largest_deviation,
        report.largest_at
    );
}

/// The file with what the references computed.
struct Cases {
    /// What the entries of `compute_all_metrics` are.
    order: Vec<String>,
    cases: Map<String, Value>,
}

fn cases(path: &Path) -> Cases {
    let text =
        fs::read_to_string(path).unwrap_or_else(|e| panic!("read `{}`: {e}", path.display()));
    let mut file: Value = serde_json::from_str(&text).unwrap();
    let order = file["order"].as_array().unwrap().iter();
    let order = order.map(|name| name.as_str().unwrap().to_owned()).collect();
    let Value::Object(cases) = file["cases"].take() else { panic!("`cases` is not an object") };
    assert!(!cases.is_empty(), "`{}` holds no case", path.display());
    Cases { order, cases }
}

/// What belongs to the scores of a case.
struct Images {
    labels: Vec<i64>,
    predictions: Vec<i64>,
    /// Whether `conf` has shape [n, 1], over which the reference's CCR trips.
    is_column: bool,
}

#[derive(Default)]
struct Report {
    case: String,
    n_compared: usize,
    largest_deviation: f64,
    largest_at: String,
}

impl Report {
    /// `expected` as the JSON has it; undefined there is NaN, undefined here is `None`.
    #[track_caller]
    fn compare(&mut self, what: &str, found: Option<f64>, expected: &Value, tolerance: f64) {
        let found = found.unwrap_or_else(|| panic!("{}: {what} is absent", self.case));
        let Some(expected) = expected.as_f64() else {
            panic!("{}: {what} is {found}, the reference has {expected}", self.case)
        };
        let deviation = (found - expected).abs();
        assert!(deviation <= tolerance, "{}: {what} is {found}, not {expected}", self.case);
        self.n_compared += 1;
        if deviation > self.largest_deviation {
            self.largest_deviation = deviation;
            self.largest_at = format!("{what} of {}", self.case);
        }
    }
}

fn check_case<T: Score>(
    report: &mut Report,
    order: &[String],
    expected: &Value,
    scores: &[T],
    images: &Images,
) {
    assert_eq!(scores.len(), images.labels.len(), "{}: labels", report.case);
    let pick = |want_ood: bool| {
        let is_wanted = move |&n: &usize| (images.labels[n] == OOD_LABEL) == want_ood;
        (0..scores.len()).filter(is_wanted).collect::<Vec<usize>>()
    };
    let (id_at, ood_at) = (pick(false), pick(true));
    let of = |at: &[usize]| at.iter().map(|&n| scores[n]).collect::<Vec<T>>();
    let (id, ood) = (of(&id_at), of(&ood_at));
    assert_eq!(expected["n"].as_u64(), Some(scores.len() as u64), "{}", report.case);
    assert_eq!(expected["n_ood"].as_u64(), Some(ood.len() as u64), "{}", report.case);

    check_accuracy(report, order, expected, images);

    let position = |scores: &[T]| scores.iter().position(|score| !score.to_f64().is_finite());
    let refused = match (position(&id), position(&ood)) {
        (Some(index), _) => Some((Side::Id, index)),
        (None, Some(index)) => Some((Side::Ood, index)),
        (None, None) => None,
    };
    let reference_refuses = expected["compute_all_metrics"].get("error").is_some();
    assert_eq!(refused.is_some(), reference_refuses, "{}: refused", report.case);

    let ranked = match (RankedScores::new(&id, &ood), refused) {
        (Err(MetricError::NotFinite { side, index, .. }), Some(expected)) => {
            assert_eq!((side, index), expected, "{}", report.case);
            assert!(OodMetrics::new(&id, &ood).is_err(), "{}", report.case);
            return;
        }
        (Ok(ranked), None) => ranked,
        (found, refused) => panic!("{}: expected {refused:?}, got {found:?}", report.case),
    };

    let metrics = OodMetrics::new(&id, &ood).unwrap();
    if id.is_empty() || ood.is_empty() {
        // The reference has NaN, 0, 0.5 or 1 here, depending on the metric; none of them means anything.
        assert_eq!(metrics, OodMetrics::default(), "{}", report.case);
        return;
    }

    for (what, found, tolerance) in [
        ("fpr95", metrics.fpr95_openood, 0.0),
        ("auroc", metrics.auroc, TOLERANCE),
        ("aupr_in", metrics.aupr_in, TOLERANCE),
        ("aupr_out", metrics.aupr_out, TOLERANCE),
    ] {
        report.compare(what, found, entry(order, expected, what), tolerance);
    }
    for (what, found, tolerance) in [
        ("fpr95_without_drop_intermediate", metrics.fpr95, 0.0),
        ("sk_roc_auc_id_positive", metrics.auroc, TOLERANCE),
        ("sk_average_precision_in", ranked.average_precision_in(), TOLERANCE),
        ("sk_average_precision_out", ranked.average_precision_out(), TOLERANCE),
    ] {
        report.compare(what, found, &expected[what], tolerance);
    }
    check_id_positive(report, expected, &ranked);
    let predictions: Vec<i64> = id_at.iter().map(|&n| images.predictions[n]).collect();
    let labels: Vec<i64> = id_at.iter().map(|&n| images.labels[n]).collect();
    check_ccr(report, expected, &id, &predictions, &labels, &ood, images.is_column);
}

/// An entry of `compute_all_metrics`, which is a list.
fn entry<'a>(order: &[String], expected: &'a Value, what: &str) -> &'a Value {
    let position = order.iter().position(|name| name == what).unwrap();
    &expected["compute_all_metrics"][position]
}

fn check_accuracy(report: &mut Report, order: &[String], expected: &Value, images: &Images) {
    let found = accuracy(&images.predictions, &images.labels).unwrap();
    let has_id = images.labels.iter().any(|&label| label != OOD_LABEL);
    assert_eq!(found.is_some(), has_id, "{}: accuracy", report.case);
    if !has_id {
        assert_eq!(expected["acc"], "nan", "{}: accuracy", report.case);
        report.n_compared += 1;
        return;
    }
    report.compare("acc", found, &expected["acc"], 0.0);
    let all = entry(order, expected, "acc");
    if !all.is_null() {
        report.compare("acc", found, all, 0.0);
    }
}

/// `fpr_recall_id_positive_<level>` comes from a curve with vertices dropped, hence from the function
/// that drops them; the exact rate cannot be above it.
fn check_id_positive(report: &mut Report, expected: &Value, ranked: &RankedScores) {
    let mut levels = BTreeSet::new();
    for (key, expected) in expected.as_object().unwrap() {
        let Some(level) = key.strip_prefix("fpr_recall_id_positive_") else { continue };
        levels.insert(level.to_owned());
        let level: f64 = level.parse().unwrap();
        let openood = ranked.fpr_at_tpr_openood(level, Positive::Id).unwrap();
        report.compare(key, openood, expected, 0.0);
        assert!(ranked.fpr_at_tpr(level, Positive::Id).unwrap() <= openood, "{}", report.case);
    }
    assert!(!levels.is_empty(), "{}: no FPR with ID positive", report.case);
}

fn check_ccr<T: Score>(
    report: &mut Report,
    expected: &Value,
    id: &[T],
    predictions: &[i64],
    labels: &[i64],
    ood: &[T],
    is_column: bool,
) {
    // A column of shape [n, 1] is neither sorted there nor multiplied image by image: the numbers, which
    // go past 1, are those of no metric. What holds of any CCR is checked all the same.
    let accuracy = accuracy(predictions, labels).unwrap().unwrap();
    for (fpr, expected) in expected["ccr_fpr"].as_object().unwrap() {
        let what = format!("ccr at {fpr}");
        let fpr: f64 = fpr.parse().unwrap();
        let openood = ccr_at_fpr_openood(id, predictions, labels, ood, fpr).unwrap();
        if !is_column {
            report.compare(&what, openood, expected, 0.0);
        }
        let exact = ccr_at_fpr(id, predictions, labels, ood, fpr).unwrap();
        assert!(exact <= Some(accuracy), "{}: {what}", report.case);
        // Apart from the slip at 0 the reference accepts fewer OOD images than it may.
        assert!(fpr == 0.0 || exact >= openood, "{}: {what}", report.case);
    }
}

fn integers(inputs: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let tensor = inputs.tensor(name).unwrap();
    match tensor.dtype() {
        Dtype::I32 => chunks(tensor.data()).map(i32::from_le_bytes).map(i64::from).collect(),
        Dtype::I64 => chunks(tensor.data()).map(i64::from_le_bytes).collect(),
        other => panic!("{name}: expected i32 or i64, got {other:?}"),
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().unwrap())
}
