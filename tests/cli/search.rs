//! `bench --aps`: parameters chosen on validation images, and what is left of the search.

use oodbench_tests::binary::{Ran, Scene, target};
use serde_json::Value;

/// The JSON leaderboard of a run that ended well.
#[track_caller]
fn board(ran: &Ran) -> Value {
    ran.succeeded();
    serde_json::from_str(&ran.stdout).expect("a leaderboard as JSON")
}

fn row<'a>(board: &'a Value, id: &str) -> &'a Value {
    let rows = board["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row `{id}` in {board}"))
}

fn search(scene: &Scene, methods: &str, args: &[&str]) -> Ran {
    let start = ["--method", methods, "--aps", "--message-format", "json"];
    scene.bench(&[&start[..], args].concat())
}

/// The place of the first greatest AUROC of a search.
fn best(search: &Value) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, tried) in search["combinations"].as_array().expect("a list").iter().enumerate() {
        let auroc = tried["metrics"]["auroc"].as_f64();
        if let Some(auroc) = auroc.filter(|auroc| *auroc > best.1) {
            best = (place, auroc);
        }
    }
    best.0
}

#[test]
fn the_best_on_validation_images_scores_the_test_sets() {
    let scene = Scene::new();
    let first = search(&scene, "msp,react,gen", &[]);
    let board = board(&first);
    // Without a sweep nothing is searched.
    assert_eq!(row(&board, "msp")["search"], Value::Null);
    for (id, n) in [("react", 4), ("gen", 42)] {
        let (row, search) = (row(&board, id), &row(&board, id)["search"]);
        assert_eq!(search["combinations"].as_array().map(Vec::len), Some(n), "{search}");
        assert_eq!(
            (&search["id"]["n_images"], &search["ood"]["n_images"]),
            (&50.into(), &50.into())
        );
        let chosen = best(search);
        assert_eq!(search["chosen"], chosen, "{search}");
        let params = &search["combinations"][chosen]["params"];
        for (name, value) in params.as_object().expect("parameters") {
            assert_eq!(&row["params"][name], value);
        }
        // What was chosen gives what it gives when it is asked for.
        let alone = Scene::new();
        let settings: Vec<String> = params
            .as_object()
            .expect("parameters")
            .iter()
            .flat_map(|(name, value)| ["--set".to_owned(), format!("{id}.{name}={value}")])
            .collect();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        alone.bench(&[&["--method", id][..], &settings].concat()).succeeded();
        let file = format!("run/scores/{id}.csv");
        assert_eq!(scene.read(&file), alone.read(&file));
    }
    // All classes count for any M from 10: of equals the first is chosen.
    assert_eq!(row(&board, "gen")["params"]["M"], 10);
    let csv = scene.read("run/search.csv");
    assert_eq!(csv.lines().count(), 1 + 4 + 42, "{csv}");
    assert_eq!(csv.lines().filter(|line| line.contains(",true,id-val/digits,")).count(), 2);
    let page = scene.read("run/leaderboard.md");
    assert!(page.contains("## Parameter search") && page.contains("### gen"), "{page}");
    assert!(scene.read("run/run.json").contains("\"combinations\""));

    let again = search(&scene, "msp,react,gen", &[]);
    again.succeeded();
    assert!(again.stderr.contains("0 cells scored, 107 kept, 0 failed"), "{}", again.stderr);
    assert_eq!(again.stdout, first.stdout);
}

#[test]
fn one_pass_for_all_readouts_gives_the_cells_of_separate_runs() {
    let (together, apart) = (Scene::new(), Scene::new());
    // The toy has 200 training images, so that K = 500 and 1000 are refused.
    let ran = search(&together, "knn", &["--no-baselines"]);
    let found = board(&ran);
    let search = &row(&found, "knn")["search"];
    let status = |nth: usize| search["combinations"][nth]["status"].as_str().expect("a word");
    assert_eq!([0, 1, 2, 3, 4].map(status), ["done", "done", "done", "failed", "failed"]);
    assert!(ran.stderr.contains("knn with K=500 on id-val/digits: FAILED"), "{}", ran.stderr);
    assert!(ran.stderr.contains("at most 200"), "{}", ran.stderr);

    // The test sets of a run with the chosen K have the keys that the search's run gave them.
    let chosen = format!("knn.K={}", row(&found, "knn")["params"]["K"]);
    apart.bench(&["--method", "knn", "--no-baselines", "--set", &chosen]).succeeded();
    let names = |scene: &Scene| -> Vec<String> {
        let entries = std::fs::read_dir(scene.path("run/cells")).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let (searched, alone) = (names(&together), names(&apart));
    assert!(alone.iter().all(|name| searched.contains(name)), "{alone:?} {searched:?}");
    assert_eq!(searched.len(), alone.len() + 2 * 5);
}

#[test]
fn what_is_set_is_not_searched() {
    let scene = Scene::new();
    let ran = search(&scene, "gen,knn", &["--set", "gen.M=5", "--set", "knn.K=3"]);
    let board = board(&ran);
    assert_eq!(row(&board, "knn")["search"], Value::Null);
    let gen_entropy = row(&board, "gen");
    assert_eq!(gen_entropy["search"]["parameters"], serde_json::json!(["gamma"]));
    assert_eq!(gen_entropy["params"]["M"], 5);
    assert_eq!(gen_entropy["search"]["combinations"].as_array().map(Vec::len), Some(7));
}

#[test]
fn a_dry_run_counts_the_combinations() {
    let scene = Scene::new();
    let ran = scene.bench(&["--method", "gen,knn,msp", "--aps", "--dry-run"]);
    ran.succeeded();
    for part in [
        "searches 42 combinations of gamma, M, in 42 passes",
        "searches 5 combinations of K, in 1 pass\n",
    ] {
        assert!(ran.stdout.contains(part), "expected `{part}` in\n{}", ran.stdout);
    }
    assert_eq!(ran.stdout.matches("searches").count(), 2, "{}", ran.stdout);
}

#[test]
fn a_limit_holds_for_the_search_too() {
    let scene = Scene::new();
    let board = board(&search(&scene, "react", &["--limit", "20"]));
    let search = &row(&board, "react")["search"];
    assert_eq!((&search["id"]["n_images"], &search["id"]["of_images"]), (&20.into(), &50.into()));
    assert!(board["marks"].to_string().contains("limited to 20 images"), "{board}");
}

#[test]
fn without_validation_images_there_is_no_search() {
    let scene = Scene::new();
    let toy = include_str!("../fixtures/toy.toml");
    let start = toy.find("[[sets]]\nrole = \"ood-val\"").expect("an OOD validation set");
    let end = toy.find("[[sets]]\nrole = \"near\"").expect("a near set");
    scene.write("own.toml", format!("{}{}", &toy[..start], &toy[end..]));
    let args = ["bench", "--method", "react", "--benchmark", "own.toml", "--out", "run"];
    scene.run(&[&args[..], &["--aps"]].concat()).refused(96, &["`toy`", "ood-val", "--aps"]);
    scene.run(&args).succeeded();
}

/// Benches the detector of the faulty pack of which some values fail.
fn faulty(scene: &Scene, args: &[&str]) -> Ran {
    let pack = target().join("libfaulty.so");
    let start = ["--plugin-path", pack.to_str().expect("UTF-8")];
    search(scene, "faulty-sweep,msp", &[&start[..], args].concat())
}

#[test]
fn combinations_that_fail_are_left_out_and_reported() {
    let scene = Scene::new();
    let ran = faulty(&scene, &[]);
    let board = board(&ran);
    let row = row(&board, "faulty-sweep");
    // The first in the order of the search of the two that are right.
    assert_eq!(row["params"], serde_json::json!({ "wrong": "nothing", "factor": 2 }));
    let combinations = row["search"]["combinations"].as_array().expect("a list");
    assert_eq!(combinations.len(), 15);
    let reason = |wrong: &str, factor: i64| {
        let wanted = serde_json::json!({ "wrong": wrong, "factor": factor });
        let tried = combinations.iter().find(|tried| tried["params"] == wanted);
        tried.expect("it was tried")["reason"].as_str().unwrap_or("").to_owned()
    };
    for (wrong, factor, part) in [
        ("error", 2, "this value always fails"),
        ("panic", 2, "panicked"),
        ("nothing", 0, "non-finite scores"),
        ("nothing", 3, "at most 2"),
    ] {
        assert!(
            reason(wrong, factor).contains(part),
            "{wrong} {factor}: {}",
            reason(wrong, factor)
        );
    }
    assert_eq!([reason("nothing", -1), reason("nothing", 1)], ["", ""]);
}

#[test]
fn a_detector_of_which_every_combination_fails_has_failed() {
    let scene = Scene::new();
    let ran = faulty(&scene, &["--set", "faulty-sweep.wrong=error"]);
    assert_eq!(ran.code, 100, "{}", ran.stderr);
    let board: Value = serde_json::from_str(&ran.stdout).expect("a leaderboard as JSON");
    let failed = row(&board, "faulty-sweep");
    assert_eq!(failed["status"], "failed");
    let reason = failed["reason"].as_str().expect("a reason");
    assert!(reason.contains("every one of 5 combinations failed"), "{reason}");
    assert_eq!(row(&board, "msp")["status"], "done");
}

#[test]
fn a_search_that_is_killed_goes_on_to_the_same_choice() {
    let whole = Scene::new();
    let expected = board(&search(&whole, "gen,react", &[]));
    let scene = Scene::new();
    let args = scene.bench_args(&["--method", "gen,react", "--aps"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for delay_ms in [300, 700, 1100] {
        let mut command = scene.command(&args);
        let quiet = std::process::Stdio::null;
        let mut child = command.stdout(quiet()).stderr(quiet()).spawn().expect("a process");
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        // SIGKILL: nothing can be tidied up.
        let _ = child.kill();
        child.wait().expect("an end");
    }
    let found = board(&search(&scene, "gen,react", &[]));
    for id in ["gen", "react"] {
        for field in ["params", "near", "far"] {
            assert_eq!(row(&found, id)[field], row(&expected, id)[field], "{id}");
        }
        assert_eq!(row(&found, id)["search"]["chosen"], row(&expected, id)["search"]["chosen"]);
    }
}
