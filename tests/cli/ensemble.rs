//! Ensembles of checkpoints: files in a list, their hashes in keys, and the scores.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use oodbench_tests::binary::{Ran, Scene};

const EMBEDDED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/benchmarks/glyphs/classifier.safetensors");

/// Another member: the embedded classifier with its last layer turned by so many classes and scaled,
/// under this name in the scene.
fn member(scene: &Scene, name: &str, turn: usize, scale: f64) -> PathBuf {
    let mut tensors = embedded();
    for key in ["linear.weight", "linear.bias"] {
        let turned = mixed(&tensors[key], turn, scale).expect("a tensor with a row for each class");
        tensors.insert(key.to_owned(), turned);
    }
    save(scene, name, &tensors)
}

/// The rows and, scaled, the rows so many places further.
fn mixed(rows: &Tensor, turn: usize, scale: f64) -> candle_core::Result<Tensor> {
    let turned = Tensor::cat(&[rows.narrow(0, turn, 10 - turn)?, rows.narrow(0, 0, turn)?], 0)?;
    (turned * scale)? + rows
}

fn embedded() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(EMBEDDED, &Device::Cpu).expect("the embedded classifier")
}

fn save(scene: &Scene, name: &str, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let path = scene.path(name);
    candle_core::safetensors::save(tensors, &path).expect("a file");
    path
}

/// The logits of a set in the only feature bank of a scene, `[n, 10]`.
fn bank_logits(scene: &Scene, set: &str) -> Vec<Vec<f32>> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(scene.path("cache/bank")).expect("a bank") {
        for file in std::fs::read_dir(folder.expect("a folder").path()).expect("a folder") {
            let path = file.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.contains(set) {
                files.push(path);
            }
        }
    }
    let [file] = &files[..] else { panic!("one file of `{set}` expected, got {files:?}") };
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("a bank file");
    tensors["logits"].to_vec2().expect("logits")
}

/// The scores of a set in `scores/LABEL.csv`.
fn scores(scene: &Scene, set: &str) -> Vec<f64> {
    let (name, group) = match set.split_once('-').expect("a role and a name") {
        ("near", name) => (name.to_owned(), "nearood"),
        ("far", name) => (name.to_owned(), "farood"),
        _ => panic!("`{set}` is no OOD set"),
    };
    let start = format!("{name},{group},");
    let csv = scene.read("run/scores/ensemble.csv");
    let lines = csv.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.rsplit(',').next().expect("a score").parse().expect("a number")).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    logits.iter().map(|logit| (logit - max).exp() / sum).collect()
}

fn entropy(p: &[f64]) -> f64 {
    p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

/// A bench of the ensemble alone.
fn ensemble(scene: &Scene, checkpoints: &str, args: &[&str]) -> Ran {
    let set = format!("ensemble.checkpoints={checkpoints}");
    let start = ["--method", "ensemble", "--no-baselines", "--set", &set];
    scene.bench(&[&start[..], args].concat())
}

#[test]
fn scores_are_those_of_the_members_logits() {
    let own = Scene::new();
    own.bench(&["--method", "msp", "--no-baselines"]).succeeded();
    let mut others = Vec::new();
    for (turn, scale) in [(1, 0.5), (3, 0.25)] {
        let scene = Scene::new();
        let file = member(&scene, "other.safetensors", turn, scale);
        let file = file.to_str().expect("UTF-8");
        scene.bench(&["--method", "msp", "--no-baselines", "--classifier", file]).succeeded();
        others.push(scene);
    }
    let scene = Scene::new();
    member(&scene, "b.safetensors", 1, 0.5);
    member(&scene, "c.safetensors", 3, 0.25);
    let files = r#"["b.safetensors", "c.safetensors"]"#;
    let mean_logits =
        |members: &[Vec<f64>]| -softmax(&mean(members)).into_iter().fold(0.0, f64::max);
    let of_probabilities = |members: &[Vec<f64>]| {
        mean(&members.iter().map(|logits| softmax(logits)).collect::<Vec<_>>())
    };
    let mean_of = |members: &[Vec<f64>]| -of_probabilities(members).into_iter().fold(0.0, f64::max);
    type Case<'a> = (&'a [&'a str], &'a dyn Fn(&[Vec<f64>]) -> f64);
    let cases: [Case<'_>; 5] = [
        (&[], &mean_logits),
        (&["--set", "ensemble.with_classifier=false"], &|members| mean_logits(&members[1..])),
        (&["--set", "ensemble.score=mean-probabilities"], &mean_of),
        (&["--set", "ensemble.score=entropy"], &|members| entropy(&of_probabilities(members))),
        (&["--set", "ensemble.score=mutual-information"], &|members| {
            let each: f64 = members.iter().map(|logits| entropy(&softmax(logits))).sum();
            entropy(&of_probabilities(members)) - each / members.len() as f64
        }),
    ];
    for (args, formula) in cases {
        ensemble(&scene, files, args).succeeded();
        for set in ["near-letters", "far-noise"] {
            let logits: Vec<_> =
                std::iter::once(&own).chain(&others).map(|it| bank_logits(it, set)).collect();
            let ours = scores(&scene, set);
            assert_eq!(ours.len(), logits[0].len());
            let mut differs = false;
            for (image, ours) in ours.iter().enumerate() {
                let row =
                    |member: &Vec<Vec<f32>>| member[image].iter().map(|&x| x.into()).collect();
                let members: Vec<Vec<f64>> = logits.iter().map(row).collect();
                let expected = formula(&members);
                // Single precision, and another batch of the network.
                assert!(
                    (ours - expected).abs() < 1e-5,
                    "{args:?} {set} {image}: {ours} {expected}"
                );
                differs |=
                    (expected - formula(&[members[0].clone(), members[0].clone()])).abs() > 0.01;
            }
            assert!(differs, "the members must not agree on everything: {args:?}");
        }
    }
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64)
        .collect()
}

#[test]
fn a_changed_file_is_scored_again_and_a_renamed_one_is_not() {
    let scene = Scene::new();
    let b = member(&scene, "b.safetensors", 1, 0.5);
    // A single file needs no list.
    let first = ensemble(&scene, "b.safetensors", &[]);
    first.succeeded();
    assert!(first.stderr.contains("5 cells scored, 0 kept"), "{}", first.stderr);
    std::fs::copy(&b, scene.path("c.safetensors")).unwrap();
    let renamed = ensemble(&scene, r#"["c.safetensors"]"#, &[]);
    assert!(renamed.stderr.contains("0 cells scored, 5 kept"), "{}", renamed.stderr);
    let twice = ensemble(&scene, r#"["b.safetensors", "c.safetensors"]"#, &[]);
    assert!(twice.stderr.contains("5 cells scored, 0 kept"), "{}", twice.stderr);
    member(&scene, "b.safetensors", 2, 0.5);
    let changed = ensemble(&scene, "b.safetensors", &[]);
    assert!(changed.stderr.contains("5 cells scored, 0 kept"), "{}", changed.stderr);
    // The order counts: sums are rounded.
    let order = ensemble(&scene, r#"["c.safetensors", "b.safetensors"]"#, &[]);
    assert!(order.stderr.contains("5 cells scored, 0 kept"), "{}", order.stderr);
}

#[test]
fn a_search_over_the_score_is_one_pass() {
    let scene = Scene::new();
    member(&scene, "b.safetensors", 1, 0.5);
    let ran = ensemble(&scene, "b.safetensors", &["--aps", "--message-format", "json"]);
    ran.succeeded();
    assert!(ran.stderr.contains("search 4 combinations of score"), "{}", ran.stderr);
    let dry = ensemble(&scene, "b.safetensors", &["--aps", "--dry-run"]);
    assert!(dry.stdout.contains("searches 4 combinations of score, in 1 pass\n"), "{}", dry.stdout);
}

#[test]
fn without_checkpoints_there_is_no_ensemble() {
    let scene = Scene::new();
    let parts =
        ["`ensemble` needs the files `checkpoints`", "--set 'ensemble.checkpoints=[\"FILE\""];
    let ran = scene.bench(&["--method", "all", "--dry-run"]);
    ran.succeeded();
    let skipped = ran.stdout.lines().find(|line| line.contains("skipped: `ensemble`"));
    assert!(parts.iter().all(|part| skipped.expect("it is skipped").contains(part)), "{skipped:?}");
    scene.bench(&["--method", "ensemble"]).refused(2, &parts);
    ensemble(&scene, "[]", &[]).refused(2, &["create `ensemble`", "`checkpoints`", "at least one"]);
    let ran = scene.bench(&["--method", "ensemble", "--set", "ensemble.score=entropy"]);
    ran.refused(2, &["create `ensemble`", "`checkpoints`"]);
    member(&scene, "b.safetensors", 1, 0.5);
    let twice = r#"["b.safetensors", "b.safetensors"]"#;
    ensemble(&scene, twice, &[]).refused(2, &["different files", "b.safetensors twice"]);
    ensemble(&scene, "[1]", &[]).refused(2, &["`checkpoints`", "list of files", "[1]"]);
    assert!(!scene.path("run").exists());
}

#[test]
fn files_that_are_no_members_are_named() {
    let scene = Scene::new();
    member(&scene, "b.safetensors", 1, 0.5);
    ensemble(&scene, r#"["b.safetensors", "nowhere.safetensors"]"#, &[])
        .refused(96, &["nowhere.safetensors"]);
    let mut tensors = embedded();
    for key in ["linear.weight", "linear.bias"] {
        let five = tensors[key].narrow(0, 0, 5).unwrap();
        tensors.insert(key.to_owned(), five);
    }
    save(&scene, "five.safetensors", &tensors);
    scene.write("words.safetensors", "these are no weights at all");
    for (file, parts) in [
        ("five.safetensors", ["five.safetensors", "[10, 64]", "[5, 64]"]),
        ("words.safetensors", ["words.safetensors", "safetensors", "PyTorch"]),
    ] {
        let files = format!(r#"["b.safetensors", "{file}"]"#);
        let ran = ensemble(&scene, &files, &[]);
        assert_eq!(ran.code, 100, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stdout.contains(part), "`{part}` expected in\n{}", ran.stdout);
        }
    }
}

#[test]
fn a_configuration_names_the_files_too() {
    let scene = Scene::new();
    let folder = member(&scene, "b.safetensors", 1, 0.5);
    let toy = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/toy.toml");
    scene.write(
        "bench.toml",
        format!(
            "method = [\"ensemble\"]\nbenchmark = {toy:?}\nout = \"run\"\n\
             [params.ensemble]\ncheckpoints = [{folder:?}]\n"
        ),
    );
    scene.run(&["bench", "--config", "bench.toml"]).succeeded();
    assert!(scene.read("run/leaderboard.csv").contains("b.safetensors"));
}
