//! What a user should know before trusting the numbers: on the terminal, in every report, and before
//! anything is computed where a value makes no sense.

use oodbench_tests::binary::Scene;
use serde_json::Value;

/// The kinds of the warnings in `leaderboard.json`, each with the row that it is about.
fn kinds(scene: &Scene) -> Vec<(String, Option<String>)> {
    let board: Value = serde_json::from_str(&scene.read("run/leaderboard.json")).expect("JSON");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let warnings = board["warnings"].as_array().expect("a list");
    warnings.iter().map(|it| (text(&it["kind"]).expect("a kind"), text(&it["label"]))).collect()
}

#[test]
fn a_choice_at_the_end_of_a_sweep_is_in_every_report() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "odin", "--aps", "--no-baselines"]);
    ran.succeeded();
    let cause = "the search chose temperature = 1.0, the least of the 4 values that it tried, 1.0 to 1000.0";
    let remedy = "smaller values may do better: try one with ";
    let expected = format!("warning: odin: {cause}; {remedy}`--set odin.temperature=VALUE`\n");
    assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
    assert_eq!(kinds(&scene), [("sweep-end".to_owned(), Some("odin".to_owned()))]);
    for report in ["run/leaderboard.md", "run/leaderboard.html", "run/leaderboard.json"] {
        let text = scene.read(report);
        assert!(text.contains(cause) && text.contains(remedy), "{report}\n{text}");
    }
    let again = scene.run(&["report", "run"]);
    assert!(again.stderr.contains(&expected), "{}", again.stderr);
}

#[test]
fn worse_than_guessing_limited_and_incomplete_are_said() {
    let scene = Scene::new();
    // Among so few images the 50th neighbour is of another class.
    let ran = scene.bench(&["--method", "knn", "--no-baselines", "--limit", "20"]);
    ran.succeeded();
    let said = " and under 50 % on 2 other sets, worse than guessing; are its scores the wrong way \
                round?";
    let mut lines = ran.stderr.lines();
    let line = lines.find(|line| line.starts_with("warning: knn: AUROC ") && line.contains(said));
    assert!(line.is_some(), "{}", ran.stderr);
    assert!(ran.stdout.contains("limited to 20 images a set: not comparable"), "{}", ran.stdout);
    let kinds: Vec<String> = kinds(&scene).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["limited", "below-chance"]);
}

#[test]
fn a_classifier_near_chance_is_warned_of_once_in_a_run_and_in_a_report() {
    let scene = Scene::new();
    // Classes in another order are as good as none.
    let toy = include_str!("../fixtures/toy.toml")
        .replace(
            "part = \"digits-test\", count = 60 }\nsize = 60",
            "part = \"digits-test\", count = 120 }\nsize = 120",
        )
        .replace("std = [0.25, 0.25, 0.25]", "std = [250.0, 250.0, 250.0]");
    assert!(toy.contains("count = 120") && toy.contains("250.0"));
    scene.write("own.toml", toy);
    let args = ["bench", "--method", "msp", "--benchmark", "own.toml", "--out", "run"];
    // The file states its normalisation; one that states none is used with the benchmark's.
    let tensors = candle_core::safetensors::load(
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../datasets/benchmarks/glyphs/classifier.safetensors"
        ),
        &candle_core::Device::Cpu,
    )
    .expect("the embedded classifier");
    candle_core::safetensors::save(&tensors, scene.path("silent.safetensors")).expect("a file");
    let ran = scene.run(&[&args[..], &["--classifier", "silent.safetensors"]].concat());
    ran.succeeded();
    let words = "which is near chance; do mean, std and the order of classes fit the weights?";
    assert_eq!(ran.stderr.matches(words).count(), 1, "{}", ran.stderr);
    assert!(kinds(&scene).contains(&("near-chance".to_owned(), None)));
    assert_eq!(scene.run(&["report", "run"]).stderr.matches(words).count(), 1);
}

#[test]
fn a_value_that_a_detector_refuses_ends_the_run_before_it_begins() {
    let scene = Scene::new();
    let refused = ["create `knn`: parameter `K` expected", "got `0`"];
    for args in [
        &["--method", "msp,knn", "--set", "knn.K=0"][..],
        &["--method", "all", "--set", "knn.K=0"],
        &["--method", "knn", "--set", "knn.K=0", "--aps"],
        &["--method", "knn", "--set", "knn.K=0", "--dry-run"],
        &["--method", "knn", "--set", "knn.K=0", "--isolation", "none"],
    ] {
        scene.bench(args).refused(2, &refused);
    }
    let ran = scene.bench(&["--method", "diffood", "--set", "diffood.steps=0"]);
    ran.refused(2, &["create `diffood`", "steps", "0"]);
    // A value that is wrong in every combination of the others.
    let ran = scene.bench(&["--method", "gen", "--set", "gen.gamma=-1", "--aps"]);
    ran.refused(2, &["create `gen`", "gamma", "-1"]);
    // What a benchmark presets is asked too.
    let toy = include_str!("../fixtures/toy.toml");
    scene.write("own.toml", format!("{toy}\n[presets.knn]\nK = 0\n"));
    let ran = scene.run(&["bench", "--method", "knn", "--benchmark", "own.toml", "--out", "run"]);
    ran.refused(2, &refused);
    assert!(!scene.path("run").exists() && !scene.path("cache/bank").exists());
}
