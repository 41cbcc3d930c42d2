//! Which combinations there are, and which is chosen.

use std::time::Duration;

use oodbench_abi::{Example, Needs};
use oodbench_datasets::builtin;
use serde_json::json;

use super::*;
use crate::bench::{ImageSource, Isolation, Setting, Source};
use crate::pack::ParamInfo;

fn param(name: &str, default: Value, sweep: &[Value]) -> ParamInfo {
    let kind = if default.is_string() { ParamKind::TEXT } else { ParamKind::NUMBER };
    let (name, sweep) = (name.to_owned(), sweep.to_vec());
    ParamInfo {
        name,
        kind,
        readout: false,
        many: false,
        auto: false,
        default,
        sweep,
        doc: String::new(),
        source: String::new(),
    }
}

fn info(params: Vec<ParamInfo>) -> DetectorInfo {
    DetectorInfo {
        id: "sum".to_owned(),
        title: String::new(),
        family: String::new(),
        summary: String::new(),
        paper: String::new(),
        year: 0,
        url: String::new(),
        needs: Needs::LOGITS,
        params,
        deterministic: true,
        companion_of: String::new(),
        example: Example::default(),
    }
}

fn two() -> DetectorInfo {
    info(vec![
        param("gamma", json!(0.1), &[json!(0.1), json!(1)]),
        param("m", json!(2.0), &[json!(1), json!(2), json!(3)]),
        param("fixed", json!(5.0), &[]),
    ])
}

fn request(settings: &[&str]) -> BenchRequest {
    BenchRequest {
        source: Source::Images(Box::new(ImageSource {
            benchmark: builtin("glyphs").unwrap().benchmark().unwrap(),
            base: "".into(),
            data: "".into(),
            classifier: None,
            allow_missing: false,
        })),
        methods: Vec::new(),
        baselines: false,
        settings: settings.iter().map(|text| text.parse::<Setting>().unwrap()).collect(),
        cache: "".into(),
        out: "".into(),
        gpu: None,
        precision: Default::default(),
        device: "cpu".to_owned(),
        threads: 1,
        seed: 0,
        limit: None,
        search: true,
        batch_size: crate::bench::BatchSize::Of(1),
        full_spectrum: false,
        force: false,
        isolation: Isolation::None,
        silence: Duration::from_secs(1),
        memory_limit: None,
        version: String::new(),
    }
}

fn grid(info: &DetectorInfo, settings: &[&str]) -> Option<Grid> {
    let request = request(settings);
    let (params, _) = super::super::params::resolve_params(info, &request).unwrap();
    Grid::new(info, &request, &params)
}

fn texts(grid: &Grid) -> Vec<String> {
    (0..grid.combinations.len()).map(|place| grid.text(place)).collect()
}

#[test]
fn the_first_parameter_changes_fastest_as_in_openood() {
    let grid = grid(&two(), &[]).unwrap();
    assert_eq!(
        texts(&grid),
        [
            "gamma=0.1, m=1.0",
            "gamma=1.0, m=1.0",
            "gamma=0.1, m=2.0",
            "gamma=1.0, m=2.0",
            "gamma=0.1, m=3.0",
            "gamma=1.0, m=3.0"
        ]
    );
    assert!(grid.combinations.iter().all(|params| params["fixed"] == json!(5.0)));
}

#[test]
fn what_the_user_sets_is_not_searched() {
    let fixed = grid(&two(), &["sum.m=7"]).unwrap();
    assert_eq!(texts(&fixed), ["gamma=0.1", "gamma=1.0"]);
    assert!(fixed.combinations.iter().all(|params| params["m"] == json!(7.0)));
    assert_eq!(grid(&two(), &["sum.m=7", "sum.gamma=1"]), None);
}

#[test]
fn the_defaults_come_last_where_the_sweep_has_them_not() {
    let off = info(vec![param("k", json!(4.0), &[json!(1), json!(2)])]);
    assert_eq!(texts(&grid(&off, &[]).unwrap()), ["k=1.0", "k=2.0", "k=4.0"]);
    // A sweep of nothing but the default leaves no choice.
    assert_eq!(grid(&info(vec![param("k", json!(1.0), &[json!(1)])]), &[]), None);
    assert_eq!(grid(&info(vec![param("k", json!(1.0), &[])]), &[]), None);
}

#[test]
fn combinations_that_differ_in_readouts_alone_are_scored_together() {
    let mut info = two();
    let places = |info: &DetectorInfo| grid(info, &[]).unwrap().groups(info);
    assert_eq!(places(&info), [[0], [1], [2], [3], [4], [5]]);
    info.params[0].readout = true;
    assert_eq!(places(&info), [[0, 1], [2, 3], [4, 5]]);
    info.params[1].readout = true;
    assert_eq!(places(&info), [[0, 1, 2, 3, 4, 5]]);
}

#[test]
fn of_equals_the_first_is_chosen_and_what_failed_is_left_out() {
    assert_eq!(first_greatest(&[Some(0.5), Some(0.75), Some(0.75)]), Some((1, 0.75)));
    assert_eq!(first_greatest(&[None, Some(0.25), None]), Some((1, 0.25)));
    assert_eq!(first_greatest(&[None, None]), None);
    assert_eq!(first_greatest(&[Some(0.0)]), Some((0, 0.0)));
}
