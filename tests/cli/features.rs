//! `bench --features`: a leaderboard of what another program exported, and everything that can be
//! wrong with it.

mod export;

use oodbench_tests::binary::{Ran, Scene};
use serde_json::Value;

use export::{D, Format, K, Set, all_sets, scene, write, write_head};

fn bench(scene: &Scene, args: &[&str]) -> Ran {
    scene.run(&[&["bench", "--features", "dir", "--out", "run"], args].concat())
}

fn board(scene: &Scene) -> Value {
    serde_json::from_str(&scene.read("run/leaderboard.json")).unwrap()
}

/// The rows of the leaderboard with this status, by detector.
fn with_status(board: &Value, status: &str) -> Vec<String> {
    let rows = board["rows"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["status"] == status);
    rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_detector_that_can_runs_and_the_others_say_what_they_lack() {
    let scene = scene(Format::Safetensors);
    let ran = scene.run(&["bench", "--features", "dir", "--method", "all"]);
    ran.succeeded();
    // The folder's name is that of the run.
    assert!(scene.path("runs/dir/leaderboard.json").is_file());
    for part in ["Exported features", "dir, accuracy"] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    let board: Value = serde_json::from_str(&scene.read("runs/dir/leaderboard.json")).unwrap();
    let sets = board["sets"].as_array().unwrap().iter();
    let sets: Vec<&str> = sets.map(|set| set["name"].as_str().unwrap()).collect();
    assert_eq!(sets, ["test", "mix", "small"]);
    let done = with_status(&board, "done");
    for id in ["msp", "knn", "react", "vim", "mds", "ash", "she", "klm", "gen", "fdbd"] {
        assert!(done.iter().any(|done| done == id), "expected `{id}` in {done:?}");
    }
    let skipped = with_status(&board, "skipped");
    assert!(skipped.contains(&"odin".to_owned()), "{skipped:?}");
    assert!(
        ran.stdout.contains("odin, iodin, adascale: needs images and the classifier itself ("),
        "{}",
        ran.stdout
    );
    let kept = scene.run(&["bench", "--features", "dir", "--method", "all"]);
    assert!(kept.stderr.contains("0 cells scored"), "{}", kept.stderr);
    assert!(kept.stderr.contains(", 0 failed"), "{}", kept.stderr);
    scene.run(&["report", "runs/dir"]).succeeded();
}

#[test]
fn either_format_gives_the_same_scores() {
    let args = ["--method", "msp,knn,vim,react", "--set", "vim.dim=2", "--set", "knn.K=3"];
    let (one, other) = (scene(Format::Safetensors), scene(Format::Npz));
    bench(&one, &args).succeeded();
    bench(&other, &args).succeeded();
    for method in ["msp", "knn", "vim", "react"] {
        let file = format!("run/scores/{method}.csv");
        assert_eq!(one.read(&file), other.read(&file));
    }
}

#[test]
fn scores_are_those_of_the_numbers_that_were_exported() {
    let scene = scene(Format::Safetensors);
    bench(&scene, &["--method", "msp"]).succeeded();
    let expected: Vec<f64> = all_sets()
        .into_iter()
        .filter(|(name, _)| ["test", "near/mix", "far/small"].contains(name))
        .flat_map(|(_, set)| set.logits.unwrap())
        .collect::<Vec<f32>>()
        .chunks(K)
        .map(|row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            -1.0 / row.iter().map(|x| f64::from(x - max).exp()).sum::<f64>()
        })
        .collect();
    let csv = scene.read("run/scores/msp.csv");
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|it| *it == name).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let scores: Vec<f64> =
        rows.iter().map(|row| row[column("ood_score")].parse().unwrap()).collect();
    assert_eq!(scores.len(), expected.len());
    // All in one direction: a constant aside, scores are what the formula says.
    let shift = scores[0] - expected[0];
    for (score, expected) in scores.iter().zip(&expected) {
        assert!((score - expected - shift).abs() < 1e-6, "{score} {expected}");
    }
    // A row without a name is called by its place.
    assert_eq!(rows[1][column("image_id")], "1");
}

#[test]
fn what_is_not_there_is_not_needed() {
    let scene = Scene::new();
    for (name, mut set) in all_sets() {
        if ["test", "far/small"].contains(&name) {
            (set.features, set.labels) = (None, None);
            write(&scene.path("dir").join(name), &set, Format::Npz);
        }
    }
    let ran = bench(&scene, &["--method", "msp,knn,ash,klm"]);
    ran.succeeded();
    for part in [
        "knn: needs `train.safetensors` and `features` in `test.npz`, `far/small.npz`: not exported",
        "ash: needs `head.safetensors` (the last linear layer) and `features` in",
        "klm: needs `val.safetensors`: not exported",
    ] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    let board = board(&scene);
    assert_eq!(with_status(&board, "done"), ["msp"]);
    assert!(board["accuracy"].is_null(), "{board}");
    bench(&scene, &["--method", "knn"]).refused(4, &["nothing to run", "`knn` needs"]);
}

#[test]
fn embeddings_alone_are_enough_for_distances() {
    let scene = Scene::new();
    for (name, mut set) in all_sets() {
        set.logits = None;
        write(&scene.path("dir").join(name), &set, Format::Safetensors);
    }
    let ran = bench(&scene, &["--method", "mds,knn,msp", "--set", "knn.K=5"]);
    ran.succeeded();
    assert!(ran.stdout.contains("msp: needs `logits` in `test.safetensors`"), "{}", ran.stdout);
    assert_eq!(with_status(&board(&scene), "done").len(), 2);
    assert!(board(&scene)["accuracy"].is_null());
    // With the head there are logits too.
    write_head(&scene);
    let ran = bench(&scene, &["--method", "mds,knn,msp", "--set", "knn.K=5"]);
    ran.succeeded();
    assert_eq!(with_status(&board(&scene), "done").len(), 3);
    assert!(board(&scene)["accuracy"].as_f64().unwrap() > 0.9);
}

#[test]
fn parameters_are_searched_on_the_exported_validation_sets() {
    let scene = scene(Format::Safetensors);
    let ran = bench(&scene, &["--method", "react,ebo", "--aps"]);
    ran.succeeded();
    assert!(ran.stderr.contains("on id-val/val and ood-val/ood_val"), "{}", ran.stderr);
    assert!(scene.path("run/search.csv").is_file());
    std::fs::remove_file(scene.path("dir/ood_val.safetensors")).unwrap();
    bench(&scene, &["--method", "react", "--aps"])
        .refused(96, &["expected `ood_val.safetensors`, got none", "without `--aps`"]);
}

#[test]
fn limit_seed_and_force_are_those_of_every_bench() {
    let scene = scene(Format::Npz);
    let ran = bench(&scene, &["--method", "msp", "--limit", "20"]);
    ran.succeeded();
    assert!(ran.stdout.contains("limited to 20 images"), "{}", ran.stdout);
    assert_eq!(scene.read("run/scores/msp.csv").lines().count(), 1 + 3 * 20);
    let cells = |args: &[&str], text: &str| {
        let ran = bench(&scene, &[&["--method", "msp"], args].concat());
        assert!(ran.stderr.contains(text), "{args:?} {}", ran.stderr);
    };
    cells(&[], "3 cells scored, 0 kept");
    cells(&["--seed", "1"], "3 cells scored, 0 kept");
    cells(&["--force"], "3 cells scored, 0 kept");
    cells(&[], "0 cells scored, 3 kept");
    // A set's content counts, and not its name.
    std::fs::rename(scene.path("dir/far/small.npz"), scene.path("dir/far/tiny.npz")).unwrap();
    cells(&[], "0 cells scored, 3 kept");
    write(&scene.path("dir/far/tiny"), &Set::ood("other", 35, 0.3), Format::Npz);
    cells(&[], "1 cells scored, 2 kept");
}

#[test]
fn shifted_sets_count_as_in_distribution_where_that_is_asked_for() {
    let scene = scene(Format::Safetensors);
    write(&scene.path("dir/csid/noise"), &Set::id("noise", 25), Format::Safetensors);
    let ran = bench(&scene, &["--method", "msp", "--full-spectrum"]);
    ran.succeeded();
    assert!(ran.stdout.contains("full spectrum"), "{}", ran.stdout);
    assert!(scene.read("run/scores/msp.csv").contains("csid"));
    let nothing = "no covariate-shifted images for `--full-spectrum`";
    assert!(!ran.stderr.contains(nothing), "{}", ran.stderr);
    std::fs::remove_dir_all(scene.path("dir/csid")).unwrap();
    let ran = bench(&scene, &["--method", "msp", "--full-spectrum"]);
    ran.succeeded();
    assert!(ran.stderr.contains(nothing), "{}", ran.stderr);
}

#[test]
fn a_dry_run_shows_the_sets_and_computes_nothing() {
    let scene = scene(Format::Safetensors);
    std::fs::write(scene.path("dir/nera.npz"), "").unwrap();
    let ran = bench(&scene, &["--method", "all", "--dry-run"]);
    ran.succeeded();
    for part in ["features   dir (3 classes, 6 features, with a head)", "near/mix", "40 images"] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    assert!(ran.stderr.contains("warning: `dir/nera.npz` is not read"), "{}", ran.stderr);
    assert!(!scene.path("run").exists() && !scene.path("cache/bank").exists());
}

#[test]
fn images_and_features_exclude_each_other() {
    let scene = scene(Format::Safetensors);
    for (option, value) in [("--benchmark", "cifar10"), ("--data", "x"), ("--classifier", "x.pt")] {
        let ran = bench(&scene, &["--method", "msp", option, value]);
        ran.refused(2, &["either `--features` or", option, "got both"]);
    }
    bench(&scene, &["--method", "msp", "--allow-missing"]).refused(2, &["--allow-missing"]);
    scene.write("a.toml", "method = [\"msp\"]\nfeatures = \"dir\"\nout = \"run\"\n");
    scene.run(&["bench", "--config", "a.toml"]).succeeded();
    scene.write("b.toml", "method = [\"msp\"]\nfeatures = \"dir\"\nbenchmark = \"glyphs\"\n");
    let ran = scene.run(&["bench", "--config", "b.toml"]);
    ran.refused(2, &["either `--features` or `--benchmark`", "configuration"]);
}

#[test]
fn a_mistake_in_the_files_is_one_line_before_anything_runs() {
    let check = |break_it: &dyn Fn(&Scene), parts: &[&str]| {
        let scene = scene(Format::Safetensors);
        break_it(&scene);
        let ran = bench(&scene, &["--method", "msp,mds"]);
        ran.refused(96, parts);
        assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
        assert!(!scene.path("run/cells").exists());
    };
    let write_set = |scene: &Scene, name: &str, set: Set| {
        write(&scene.path("dir").join(name), &set, Format::Safetensors);
    };
    let mut set = Set::ood("mix", 40, 1.0);
    set.features.as_mut().unwrap()[7 * D + 2] = f32::NAN;
    let parts = ["near/mix.safetensors", "`features`", "`NaN` in row 7, column 2"];
    check(&|scene| write_set(scene, "near/mix", set.clone()), &parts);
    let mut set = Set::id("train", 60);
    set.labels.as_mut().unwrap()[3] = 3;
    check(&|scene| write_set(scene, "train", set.clone()), &["expected 0 to 2, got `3` in row 3"]);
    let cut = |scene: &Scene| {
        let path = scene.path("dir/test.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    check(&cut, &["test.safetensors", "whole safetensors file"]);
    let twice = |scene: &Scene| write(&scene.path("dir/val"), &Set::id("val", 3), Format::Npz);
    check(&twice, &["one file for `val`", "val.npz", "val.safetensors"]);
    let no_test = |scene: &Scene| std::fs::remove_file(scene.path("dir/test.safetensors")).unwrap();
    check(&no_test, &["expected `test.safetensors` or `test.npz`"]);
    Scene::new()
        .run(&["bench", "--features", "nowhere", "--method", "msp"])
        .refused(96, &["read features `nowhere`", "hint: "]);
}

#[test]
fn features_of_another_layer_are_told_by_the_logits() {
    let scene = scene(Format::Safetensors);
    assert!(!bench(&scene, &["--method", "msp"]).stderr.contains("warning"));
    let mut set = Set::id("test", 45);
    set.features.iter_mut().flatten().for_each(|x| *x = *x * *x);
    write(&scene.path("dir/test"), &set, Format::Safetensors);
    let ran = bench(&scene, &["--method", "msp"]);
    ran.succeeded();
    assert!(ran.stderr.contains("the input of the last linear layer"), "{}", ran.stderr);
}
