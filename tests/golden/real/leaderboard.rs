//! A leaderboard on real images and a published checkpoint, against `golden/real`.

use oodbench_tests::binary::Scene;
use oodbench_tests::shared;
use serde_json::Value;

const ACCURACY: f64 = 0.0005;
const AUROC: f64 = 0.001;
/// Of the 9,000 ID test images, whose rate it is.
const FPR: f64 = 0.001 + 3.0 / 9000.0;

/// Runs every detector of the golden file on its checkpoint.
pub fn compare(golden: &str, checkpoint: &str) {
    let path = shared().join("golden/real").join(golden);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let data = shared().join("data");
    let weights = data.join("checkpoints").join(checkpoint);
    let benchmark = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cifar10-real.toml");
    let (data, weights) = (data.to_str().expect("UTF-8"), weights.to_str().expect("UTF-8"));
    let detectors = golden["detectors"].as_object().expect("a table of detectors");
    let methods = detectors.keys().map(String::as_str).collect::<Vec<_>>().join(",");
    let vim_dim = format!("vim.dim={}", golden["vim_dim"]);
    let scene = Scene::new();
    let ran = scene.run(&[
        "bench",
        "--benchmark",
        benchmark,
        "--data",
        data,
        "--classifier",
        weights,
        "--method",
        &methods,
        "--set",
        &vim_dim,
        "--out",
        "run",
        "--message-format",
        "json",
    ]);
    ran.succeeded();
    let board: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let mut far = Vec::new();
    let mut close = |what: &str, ours: &Value, expected: &Value, tolerance: f64| {
        let (ours, expected) = (ours.as_f64().expect(what), expected.as_f64().expect(what));
        if (ours - expected).abs() > tolerance {
            far.push(format!("{what}: {ours}, expected {expected}"));
        }
    };
    close("accuracy", &board["accuracy"], &golden["id_test_accuracy_9000"], ACCURACY);
    let rows = board["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), detectors.len());
    for row in rows {
        let id = row["id"].as_str().expect("an id");
        let sets = row["sets"].as_array().expect("sets");
        assert_eq!(sets.len(), 5, "{id}");
        for set in sets {
            let name =
                format!("{}.{}", set["role"].as_str().unwrap(), set["name"].as_str().unwrap());
            let expected = &detectors[id][&name];
            let metrics = &set["metrics"];
            close(
                &format!("AUROC of {id} on {name}"),
                &metrics["auroc"],
                &expected["auroc"],
                AUROC,
            );
            let ours = &metrics["fpr95_openood"];
            close(&format!("FPR@95 of {id} on {name}"), ours, &expected["fpr95"], FPR);
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}
