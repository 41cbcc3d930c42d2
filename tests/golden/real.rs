//! Real images and a published checkpoint, through the binary: `golden/real`.
//!
//! Tolerances: accuracy 0.0005 and AUROC 0.001, because images are decoded and resized by another
//! library than the reference's.

use oodbench_tests::binary::Scene;
use oodbench_tests::shared;
use serde_json::Value;

const ACCURACY: f64 = 0.0005;
const AUROC: f64 = 0.001;

#[test]
fn the_leaderboard_on_cifar10_equals_the_reference() {
    let path = shared().join("golden/real/resnet20-12fca82f.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let data = shared().join("data");
    let weights = data.join("checkpoints/resnet20-12fca82f.th");
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
    let close = |what: &str, ours: &Value, expected: &Value, tolerance: f64| {
        let (ours, expected) = (ours.as_f64().expect(what), expected.as_f64().expect(what));
        assert!((ours - expected).abs() <= tolerance, "{what}: {ours}, expected {expected}");
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
            let expected = &detectors[id][&name]["auroc"];
            close(&format!("{id} on {name}"), &set["metrics"]["auroc"], expected, AUROC);
        }
    }
}
