//! Detectors that panic, crash, hang and lie: each becomes a failed cell with its reason, and the
//! others finish.

use oodbench_tests::binary::{Scene, target};

/// Benches a faulty detector beside a sound one, and returns the faulty one's line of the CSV.
#[track_caller]
fn check(detector: &str, args: &[&str], status: &str, reason: &str) {
    let scene = Scene::new();
    let pack = target().join("libfaulty.so");
    let methods = format!("{detector},msp");
    let start = ["--method", &methods, "--plugin-path", pack.to_str().unwrap()];
    let ran = scene.bench(&[&start[..], args].concat());
    let csv = scene.read("run/leaderboard.csv");
    let line = csv.lines().find(|line| line.starts_with(detector)).expect("a line");
    assert!(line.contains(status) && line.contains(reason), "{line}\n{}", ran.stderr);
    let sound = csv.lines().find(|line| line.starts_with("msp")).expect("a line");
    assert!(sound.contains(",done,"), "{sound}");
    assert_eq!(ran.code, if status == "failed" { 100 } else { 0 }, "{}", ran.stderr);
    if status == "failed" {
        assert!(ran.stdout.contains(reason), "{}", ran.stdout);
    }
}

#[test]
fn a_panic() {
    check("faulty-panic", &[], "failed", "panicked");
    check("faulty-panic-in-fit", &[], "failed", "panicked");
}

#[test]
fn a_crash() {
    check("faulty-segfault", &[], "failed", "SIGSEGV");
    check("faulty-stack-overflow", &[], "failed", "the stack overflowed");
}

#[test]
fn an_exit_that_looks_like_success() {
    check("faulty-exit-0", &[], "failed", "exited early (0)");
}

#[test]
fn a_hang() {
    check("faulty-hang", &["--time-limit", "2"], "failed", "timed out");
}

#[test]
fn too_much_memory() {
    check("faulty-eat-memory", &["--memory-limit", "600"], "failed", "out of memory");
}

#[test]
fn a_score_that_is_no_number() {
    check("faulty-nan", &[], "failed", "non-finite scores");
}

#[test]
fn an_error() {
    check("faulty-error", &[], "failed", "error");
}

#[test]
fn output_on_stdout_disturbs_nothing() {
    check("faulty-stdout", &[], "done", "");
    check("faulty-panic-in-drop", &[], "done", "");
}
