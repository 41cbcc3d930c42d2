//! Leaderboards of runs written by hand.

use super::*;
use crate::fixture::{TestRun, set};
use oodbench_record::Outcome;

fn labels(board: &Leaderboard) -> Vec<&str> {
    board.rows.iter().map(|row| row.label.as_str()).collect()
}

const ID: &[f32] = &[0.1, 0.2, 0.2, 0.4];

#[test]
fn metrics_are_those_of_the_scores() {
    let board = TestRun::small().board();
    let msp = board.rows.iter().find(|row| row.label == "msp").unwrap();
    // Of the 12 pairs with letters, 10 are won and the two at 0.2 halved; noise wins all.
    let won = (2.0 + 4.0 + 4.0) / 12.0;
    assert_eq!((msp.near.auroc, msp.far.auroc), (Some(won), Some(1.0)));
    assert_eq!(msp.metrics[1], OodMetrics::new(ID, &[0.2, 0.5, 0.7]).unwrap());
    assert_eq!(board.accuracy, Some(0.75));
    let cost = msp.cost.as_ref().unwrap();
    assert_eq!((cost.fit_s, cost.score_images_per_s), (0.25, Some(9.0 / 1.5)));
    assert!(board.marks.is_empty() && board.warnings.is_empty());
}

#[test]
fn ties_go_by_label_and_rows_without_scores_come_last_as_planned() {
    let board = TestRun::small().board();
    assert_eq!(labels(&board), ["mls", "msp", "odin", "faulty"]);
    assert_eq!(
        board.rows[3].status,
        Status::Failed { reason: "panicked: index out of bounds".into() }
    );
    assert_eq!(board.rows[2].status.word(), "skipped");
}

#[test]
fn far_auroc_decides_between_equal_near_ones() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    run.ood("far", "noise", 1);
    run.detector("a", &[ID, &[0.3], &[0.3]]);
    run.detector("b", &[ID, &[0.3], &[0.5]]);
    run.detector("c", &[ID, &[0.5], &[0.0]]);
    assert_eq!(labels(&run.board()), ["c", "b", "a"]);
}

#[test]
fn neither_the_planned_order_nor_costs_change_ranks_or_metrics() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 2);
    run.ood("far", "noise", 1);
    for (n, label) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let near = [0.15 + 0.1 * n as f32, 0.3];
        run.detector_at_cost(label, &[ID, &near, &[0.3]], n as f64, 5.0 - n as f64);
    }
    let ranked = |board: &Leaderboard| -> Vec<_> {
        board.rows.iter().map(|row| (row.label.clone(), row.metrics.clone(), row.near)).collect()
    };
    let expected = ranked(&run.board());
    for turn in 0..12 {
        run.manifest.detectors.rotate_left(1);
        run.manifest.detectors.swap(turn % 4, (turn * 2 + 1) % 4);
        assert_eq!(ranked(&run.board()), expected);
    }
    let mut other = TestRun::new();
    other.ood("near", "letters", 2);
    other.ood("far", "noise", 1);
    for (n, label) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let near = [0.15 + 0.1 * n as f32, 0.3];
        other.detector_at_cost(label, &[ID, &near, &[0.3]], 9.0, 0.0);
    }
    let board = other.board();
    assert_eq!(ranked(&board), expected);
    assert_eq!(board.rows[0].cost.as_ref().unwrap().score_images_per_s, None);
}

#[test]
fn a_missing_set_marks_the_average_of_its_group_alone() {
    let mut run = TestRun::small();
    run.missing("far", "svhn");
    let board = run.board();
    assert!(board.far.is_partial() && !board.near.is_partial());
    assert_eq!(board.marks[0].cause(), "incomplete: missing far/svhn");
    assert_eq!(board.rows[0].far.auroc, Some(1.0));
    assert_eq!(board.standing(&board.rows[0]).word, "partial");
}

#[test]
fn a_group_that_is_missing_altogether_has_no_average() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    run.missing("far", "svhn");
    run.detector("a", &[ID, &[0.3]]);
    let board = run.board();
    assert!(board.far.is_partial());
    assert_eq!(board.rows[0].far, OodMetrics::default());
}

#[test]
fn sets_that_no_number_rests_on_do_not_mark_them() {
    let mut run = TestRun::small();
    run.missing("csid", "corrupted");
    assert!(run.board().marks.is_empty());
    run.manifest.full_spectrum = true;
    let board = run.board();
    assert_eq!(board.marks[0].cause(), "incomplete: missing csid/corrupted");
    assert!(board.near.is_partial() && board.far.is_partial());
}

#[test]
fn a_limited_run_is_marked() {
    let mut run = TestRun::small();
    run.manifest.limit = Some(4);
    assert!(run.board().marks.is_empty(), "no set has more than 4 images");
    run.manifest.sets[0].of_images = 10;
    let board = run.board();
    assert_eq!(board.marks[0].cause(), "limited to 4 images a set: not comparable");
    assert_eq!(board.standing(&board.rows[0]).word, "partial");
}

#[test]
fn full_spectrum_counts_shifted_images_as_id() {
    let mut run = TestRun::new();
    run.set("csid", "corrupted", &[0, 1], &[1, 0]);
    run.ood("near", "letters", 2);
    let (shifted, near): (&[f32], &[f32]) = (&[0.6, 0.1], &[0.3, 0.7]);
    run.detector("a", &[ID, shifted, near]);
    let board = run.board();
    assert_eq!(board.rows[0].near, OodMetrics::new(ID, near).unwrap());
    assert_eq!((board.accuracy, board.n_id()), (Some(0.75), 4));

    run.manifest.full_spectrum = true;
    let board = run.board();
    let id = [ID, shifted].concat();
    assert_eq!(board.rows[0].near, OodMetrics::new(&id, near).unwrap());
    assert_eq!((board.accuracy, board.n_id()), (Some(0.5), 6));
}

#[test]
fn a_failed_cell_takes_the_average_with_it() {
    let mut run = TestRun::small();
    run.ood("far", "rings", 1);
    run.detector("knn", &[ID, &[0.2, 0.5, 0.7], &[0.9, 1.5], &[]]);
    run.fail("knn-far-rings", &set("far", "rings"), &Outcome::TimedOut, "silent for 60 s");
    let board = run.board();
    let knn = board.rows.iter().find(|row| row.label == "knn").unwrap();
    let reason = "far/rings: timed out: silent for 60 s".to_owned();
    assert_eq!(knn.status, Status::Partial { reason });
    assert_eq!((knn.far.auroc, knn.metrics[2].auroc), (None, Some(1.0)));
    assert!(knn.near.auroc.is_some());
}

#[test]
fn without_id_scores_nothing_is_compared() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    run.detector("a", &[&[], &[0.3]]);
    let board = run.board();
    assert_eq!(board.rows[0].near, OodMetrics::default());
    assert_eq!(board.rows[0].status.reason(), "not run yet: id-test/digits");
}

#[test]
fn a_run_that_has_just_begun_is_outstanding() {
    let mut run = TestRun::new();
    run.detector("a", &[&[]]);
    std::fs::remove_dir_all(run.folder().root().join("sets")).unwrap();
    let board = run.board();
    assert_eq!((board.rows[0].status.clone(), board.accuracy), (Status::Outstanding, None));
}

#[test]
fn worse_than_chance_is_listed() {
    let mut run = TestRun::new();
    run.ood("near", "letters", 1);
    run.ood("far", "noise", 1);
    run.detector("good", &[ID, &[0.3], &[0.5]]);
    run.detector("constant", &[&[1.0; 4], &[1.0], &[1.0]]);
    run.detector("upside-down", &[ID, &[0.3], &[0.0]]);
    run.detector("x-everywhere", &[ID, &[0.0], &[0.0]]);
    let board = run.board();
    let expected = |label: &str, worst, n_others| Warning::BelowChance {
        label: label.to_owned(),
        set: worst,
        auroc: 0.0,
        n_others,
    };
    let of_one = expected("upside-down", set("far", "noise"), 0);
    let of_both = expected("x-everywhere", set("near", "letters"), 1);
    assert_eq!(
        of_both.cause(),
        "AUROC 0.00 % on near/letters and under 50 % on another set, worse than guessing"
    );
    assert_eq!(board.warnings, [of_one, of_both]);
}

#[test]
fn a_record_that_does_not_fit_its_set_is_refused() {
    let mut run = TestRun::new();
    run.detector("a", &[&[0.5]]);
    run.folder().write_manifest(&run.manifest).unwrap();
    let error = Leaderboard::new(run.folder()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("expected 4 scores, one for each image of `id-test/digits`, got 1"),
        "{text}"
    );
    assert!(!error.is_write_failure());
}
