//! The main job: a leaderboard, kept cells, a run that is killed.

use std::process::Stdio;
use std::time::Duration;

use oodbench_tests::binary::Scene;

/// The leaderboard without its costs.
fn without_costs(csv: &str) -> String {
    let costs = ["fit_s", "score_images_per_s", "peak_mb"];
    let header: Vec<&str> = csv.lines().next().expect("a header").split(',').collect();
    let columns: Vec<usize> = (0..header.len()).filter(|&i| !costs.contains(&header[i])).collect();
    // Parameters and reasons may hold commas inside of quotes; those columns come before and after.
    let cells = |line: &str| -> Vec<String> {
        let (mut cells, mut quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => cells.push(String::new()),
                _ => cells.last_mut().expect("one cell").push(c),
            }
        }
        cells
    };
    csv.lines()
        .map(|line| {
            let cells = cells(line);
            columns.iter().map(|&i| cells[i].as_str()).collect::<Vec<_>>().join("|") + "\n"
        })
        .collect()
}

#[test]
fn a_bench_prints_a_leaderboard_and_leaves_its_files() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "msp,knn,react", "--set", "knn.K=5"]);
    ran.succeeded();
    for part in ["msp", "knn", "react", "Near", "Far", "leaderboard.csv"] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    let csv = scene.read("run/leaderboard.csv");
    assert!(
        csv.starts_with("method,params,group,dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC"),
        "{csv}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&scene.read("run/leaderboard.json")).unwrap();
    assert_eq!(json["rows"].as_array().map(Vec::len), Some(3), "{json}");
    assert!(scene.read("run/leaderboard.md").contains("| msp |"));
    let scores = scene.read("run/scores/knn.csv");
    assert_eq!(scores.lines().count(), 1 + 60 + 60 + 40 + 40 + 40, "{scores}");
}

#[test]
fn finished_cells_are_kept_and_force_runs_them_again() {
    let scene = Scene::new();
    scene.bench(&["--method", "msp"]).succeeded();
    let first = scene.read("run/leaderboard.csv");
    let again = scene.bench(&["--method", "msp"]);
    again.succeeded();
    assert!(again.stderr.contains("0 cells scored, 5 kept, 0 failed"), "{}", again.stderr);
    assert_eq!(first, scene.read("run/leaderboard.csv"));
    let forced = scene.bench(&["--method", "msp", "--force"]);
    assert!(forced.stderr.contains("5 cells scored, 0 kept"), "{}", forced.stderr);
    // Another seed is another cell, and another parameter too.
    let seeded = scene.bench(&["--method", "msp", "--seed", "1"]);
    assert!(seeded.stderr.contains("5 cells scored, 0 kept"), "{}", seeded.stderr);
}

#[test]
fn a_killed_run_goes_on_to_the_same_leaderboard() {
    let whole = Scene::new();
    let args = ["--method", "msp,ebo,mds,odin", "--isolation", "process"];
    whole.bench(&args).succeeded();
    let expected = without_costs(&whole.read("run/leaderboard.csv"));
    let scene = Scene::new();
    let args = scene.bench_args(&args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for delay_ms in [40, 150, 400, 900] {
        let mut child =
            scene.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        // SIGKILL: nothing can be tidied up.
        let _ = child.kill();
        child.wait().unwrap();
    }
    scene.run(&args).succeeded();
    assert_eq!(without_costs(&scene.read("run/leaderboard.csv")), expected);
    assert_eq!(
        std::fs::read_dir(scene.path("run/cells")).unwrap().count(),
        std::fs::read_dir(whole.path("run/cells")).unwrap().count()
    );
}

#[test]
fn isolation_does_not_change_a_score() {
    let (apart, together) = (Scene::new(), Scene::new());
    apart.bench(&["--method", "mls,knn", "--set", "knn.K=3"]).succeeded();
    together.bench(&["--method", "mls,knn", "--set", "knn.K=3", "--isolation", "none"]).succeeded();
    for scores in ["run/scores/mls.csv", "run/scores/knn.csv"] {
        assert_eq!(apart.read(scores), together.read(scores));
    }
}

#[test]
fn a_dry_run_computes_nothing() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "all", "--dry-run"]);
    ran.succeeded();
    for part in ["toy 1.0.0", "near/letters", "knn", "K\":50", "diffood", "skipped"] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    assert!(!scene.path("run").exists());
}

#[test]
fn a_limit_marks_the_leaderboard() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "msp", "--limit", "20", "--message-format", "json"]);
    ran.succeeded();
    let board: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(board.to_string().contains("limited to 20 images"), "{board}");
}

#[test]
fn a_configuration_file_stands_for_options() {
    let scene = Scene::new();
    let toy = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/toy.toml");
    let text =
        format!("method = [\"knn\"]\nbenchmark = {toy:?}\nout = \"run\"\n[params.knn]\nK = 7\n");
    scene.write("bench.toml", text);
    scene.run(&["bench", "--config", "bench.toml"]).succeeded();
    assert!(scene.read("run/leaderboard.csv").contains("\"\"K\"\":7"));
    scene.write("bad.toml", "methods = [\"knn\"]\n");
    scene.run(&["bench", "--config", "bad.toml"]).refused(2, &["bad.toml", "methods"]);
}
