//! The whole way from exported features to a leaderboard, on OpenOOD's golden features: the binary
//! with `--features` and every detector it can run.
//!
//! `golden/openood/manifest.json` names variants with their parameters. Those that are the
//! defaults of a detector here are compared, image by image with the manifest's tolerance, and by
//! AUROC with that of `search_results`. What detectors give with other parameters is
//! `golden_detectors`' business.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use oodbench_tests::binary::Scene;
use oodbench_tests::shared;
use serde_json::Value;

/// AUROC in these files is of the reference's f32 scores.
const AUROC: f64 = 1e-4;

/// Fewer variants than this cannot be all defaults that the reference has.
const FEWEST: usize = 15;

#[test]
fn the_leaderboard_of_exported_features_is_openoods() {
    let folder = shared().join("golden/openood");
    let manifest = json(&folder.join("manifest.json"));
    let name = |key: &str| manifest[key].as_str().expect("the manifest names a file").to_owned();
    let features = folder.join(name("features_dir"));
    let results = json(&folder.join(name("search_results")));
    let references = candle_core::safetensors::load(folder.join(name("scores")), &Device::Cpu)
        .expect("the reference's scores");
    let scene = Scene::new();
    let features = features.to_str().expect("UTF-8");
    let ran = scene.run(&[
        "bench",
        "--features",
        features,
        "--method",
        "all",
        "--out",
        "run",
        "--message-format",
        "json",
    ]);
    ran.succeeded();
    let board: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let mut compared = Vec::new();
    let mut failures = Vec::new();
    for case in manifest["variants"].as_array().expect("a list of variants") {
        let variant = case["variant"].as_str().expect("a name");
        // A search, a score without a seed, one from recorded masks or fits.
        if case["search"] == true
            || case["not_reproducible"] == true
            || !case["params"]["note"].is_null()
        {
            continue;
        }
        let Some(row) = row(&board, case) else { continue };
        let scores = scores(&scene.read(&format!("run/scores/{}.csv", label(row))));
        let tolerance = |key: &str| case["tolerance"][key].as_f64().expect("a number");
        for (set, ours) in &scores {
            let expected = references
                .get(&format!("{variant}/{set}.conf"))
                .and_then(|t| t.to_dtype(DType::F64).ok()?.to_vec1::<f64>().ok())
                .unwrap_or_else(|| panic!("no scores of {variant} on {set}"));
            let off = worst(ours, &expected, tolerance("std"), tolerance("relative"));
            if off > 1.0 {
                failures.push(format!("{variant} on {set}: {off:.2} times what is allowed"));
            }
        }
        for set in row["sets"].as_array().expect("sets") {
            let name = set["name"].as_str().expect("a name");
            let ours = set["metrics"]["auroc"].as_f64().expect("an AUROC");
            let expected = results["scores"][variant][name]["auroc"].as_f64().expect("an AUROC");
            if (ours - expected).abs() > AUROC {
                failures
                    .push(format!("{variant} on {name}: AUROC expected {expected}, got {ours}"));
            }
        }
        compared.push(variant);
    }
    println!("{} variants: {}", compared.len(), compared.join(", "));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared.len() >= FEWEST, "{compared:?}");
    let accuracy = results["scores"]["msp"]["near"]["acc"].as_f64().expect("an accuracy");
    assert!((board["accuracy"].as_f64().expect("an accuracy") - accuracy).abs() < 1e-6);
}

/// The row whose parameters, all of them defaults, are those of a variant.
fn row<'a>(board: &'a Value, case: &Value) -> Option<&'a Value> {
    let key = case["detector"].as_str().expect("a name");
    let rows = board["rows"].as_array().expect("rows");
    let with_id = |id: &str| rows.iter().find(|row| row["id"] == id && row["status"] == "done");
    // The reference's `ash_b` is our `ash` with the variant `b`.
    let (row, kind) = match (with_id(key), key.rsplit_once('_')) {
        (Some(row), _) => (row, None),
        (None, Some((id, kind))) => (with_id(id)?, Some(kind)),
        (None, None) => return None,
    };
    if kind.is_some_and(|kind| row["params"]["variant"] != kind) {
        return None;
    }
    let same = |(name, value): (&String, &Value)| {
        let ours = &row["params"][name];
        ours == value || (ours.is_number() && ours.as_f64() == value.as_f64())
    };
    case["params"].as_object().expect("parameters").iter().all(same).then_some(row)
}

fn label(row: &Value) -> &str {
    row["label"].as_str().expect("a label")
}

/// The scores of a file, by set.
fn scores(csv: &str) -> BTreeMap<String, Vec<f64>> {
    let mut sets: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in csv.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let score = cells[3].parse().expect("a score");
        sets.entry(cells[0].to_owned()).or_default().push(score);
    }
    sets
}

/// The worst deviation from the negated confidences, as a part of what is allowed.
fn worst(ours: &[f64], conf: &[f64], std: f64, relative: f64) -> f64 {
    assert_eq!(ours.len(), conf.len(), "number of scores");
    let n = conf.len() as f64;
    let mean = conf.iter().sum::<f64>() / n;
    let spread = (conf.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let part =
        |(ours, conf): (&f64, &f64)| (ours + conf).abs() / (std * spread + relative * conf.abs());
    ours.iter().zip(conf).map(part).fold(0.0, f64::max)
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
}
