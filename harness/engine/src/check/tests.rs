//! The check, run on detectors that break one rule of the contract each.

use std::sync::atomic::{AtomicU32, Ordering};

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RVec};
use oodbench_abi::{
    Detector, Detector_TO, Example, ExampleSplit, FitData, Needs, ParamKind, RawResult, ScoreBatch,
    extension,
};
use serde_json::{Value, json};

use super::*;
use crate::pack::ParamInfo;

/// Which rule is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breach {
    None,
    WrongScore,
    Random,
    DependsOnBatch,
    DependsOnOrder,
    FailsOnNothing,
    TakesAnyShape,
    PanicsOnNan,
    LosesItsState,
    AnswersAnything,
    NeedsFitOrPanics,
    TakesAnyParameter,
    RefusesItsDefaults,
    /// Of its readout: see [`with_readout`].
    HasNoVariants,
    MixesVariants,
    HidesAFault,
    FitsForOneVariant,
}

/// The sum of the logits, plus a number that it learns in `fit`, 1, all times `k`.
struct Sum {
    breach: Breach,
    learned: Option<f32>,
    n_classes: usize,
    k: f32,
    has_readout: bool,
    /// Of each variant; none for its own.
    variants: Vec<f32>,
}

/// A `k` beyond it does not go with the data.
const GREATEST: f32 = 5.0;

fn error<T>(code: ErrorCode) -> RawResult<T> {
    RResult::RErr(RawError::new(code, "as told"))
}

impl Detector for Sum {
    fn fit(&mut self, data: FitData<'_>) -> RawResult<()> {
        self.learned = Some(if self.breach == Breach::FitsForOneVariant { self.k } else { 1.0 });
        self.n_classes = data.n_classes;
        RResult::ROk(())
    }

    fn score(&mut self, batch: ScoreBatch<'_>, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let Some(learned) = self.learned else {
            let panics = self.breach == Breach::NeedsFitOrPanics;
            return error(if panics { ErrorCode::PANICKED } else { ErrorCode::FAILED });
        };
        let columns = batch.logits.shape[1];
        if columns != self.n_classes && self.breach != Breach::TakesAnyShape {
            return error(ErrorCode::BAD_INPUT);
        }
        let logits = batch.logits.data.as_slice();
        match self.breach {
            Breach::FailsOnNothing if batch.len == 0 => return error(ErrorCode::FAILED),
            Breach::PanicsOnNan if logits.iter().any(|x| x.is_nan()) => {
                return error(ErrorCode::PANICKED);
            }
            _ => {}
        }
        let ks = if self.variants.is_empty() { vec![self.k] } else { self.variants.clone() };
        if out.len() != ks.len() * batch.len {
            return error(ErrorCode::BAD_INPUT);
        }
        if self.variants.is_empty() && self.k > GREATEST {
            return error(ErrorCode::BAD_PARAMETER);
        }
        for (nth, score) in out.iter_mut().enumerate() {
            let (row, i) = (nth / batch.len, nth % batch.len);
            *score = learned + logits[i * columns..(i + 1) * columns].iter().sum::<f32>();
            *score += match self.breach {
                Breach::WrongScore => 0.5,
                Breach::Random => CALLS.fetch_add(1, Ordering::Relaxed) as f32,
                Breach::DependsOnBatch => batch.len as f32,
                Breach::DependsOnOrder => i as f32,
                _ => 0.0,
            };
            let mixed = self.breach == Breach::MixesVariants;
            *score *= ks[if mixed { ks.len() - 1 - row } else { row }];
        }
        RResult::ROk(())
    }

    fn extension(&mut self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        match (id.as_str(), self.learned) {
            (extension::SAVE_STATE, Some(learned)) => {
                let state = [learned, self.n_classes as f32].map(f32::to_le_bytes);
                RResult::ROk(state.concat().into())
            }
            (extension::LOAD_STATE, _) => {
                let (numbers, _) = input.as_slice().as_chunks::<4>();
                let &[learned, n_classes] = numbers else { return error(ErrorCode::BAD_INPUT) };
                let lost = if self.breach == Breach::LosesItsState { 1.0 } else { 0.0 };
                self.learned = Some(f32::from_le_bytes(learned) + lost);
                self.n_classes = f32::from_le_bytes(n_classes) as usize;
                RResult::ROk(RVec::new())
            }
            (extension::VARIANTS, Some(_))
                if self.has_readout && self.breach != Breach::HasNoVariants =>
            {
                let given: Vec<Value> = serde_json::from_slice(input.as_slice()).unwrap();
                let k = |params: &Value| params["k"].as_f64().unwrap_or(1.0) as f32;
                let ks: Vec<f32> = given.iter().map(k).collect();
                let hides = self.breach == Breach::HidesAFault;
                let fault = |k: &f32| match *k > GREATEST && !hides {
                    true => json!({ "code": 3, "message": "as told" }),
                    false => Value::Null,
                };
                let faults: Vec<Value> = ks.iter().map(fault).collect();
                if faults.iter().all(Value::is_null) {
                    self.variants = ks;
                }
                RResult::ROk(serde_json::to_vec(&faults).unwrap().into())
            }
            _ if self.breach == Breach::AnswersAnything => RResult::ROk(RVec::new()),
            _ => error(ErrorCode::UNSUPPORTED),
        }
    }
}

fn param(name: &str, kind: ParamKind, default: Value, sweep: Vec<Value>) -> ParamInfo {
    let (name, doc) = (name.to_owned(), "what it means".to_owned());
    let source = "this test".to_owned();
    ParamInfo { name, kind, readout: false, many: false, auto: false, default, sweep, doc, source }
}

fn info() -> DetectorInfo {
    let batch =
        ExampleSplit { logits: vec![vec![1.0, 2.0], vec![0.0, -3.0]], ..Default::default() };
    let example = Example { batch, scores: vec![4.0, -2.0], tolerance: 1e-5, ..Example::default() };
    DetectorInfo {
        id: "sum".to_owned(),
        title: "Sum".to_owned(),
        family: "logits".to_owned(),
        summary: "the sum of the logits".to_owned(),
        paper: String::new(),
        year: 0,
        url: String::new(),
        needs: Needs::LOGITS,
        params: vec![param("k", ParamKind::INTEGER, json!(1), vec![json!(1), json!(2)])],
        deterministic: true,
        companion_of: String::new(),
        example,
    }
}

/// The checks that fail, with their messages.
fn failures(info: &DetectorInfo, breach: Breach) -> Vec<(String, String)> {
    let create = |params: &str, _host: HostBox| -> Result<DetectorBox, RawError> {
        let params: Value = serde_json::from_str(params).unwrap();
        let known = params.as_object().unwrap().keys().all(|name| name == "k");
        let k = params.get("k").and_then(Value::as_f64).unwrap_or(1.0) as f32;
        if breach == Breach::RefusesItsDefaults && params.get("k").is_some()
            || !known && breach != Breach::TakesAnyParameter
        {
            return Err(RawError::new(ErrorCode::BAD_PARAMETER, "as told"));
        }
        let has_readout = info.has_readout();
        let sum = Sum { breach, learned: None, n_classes: 0, k, has_readout, variants: Vec::new() };
        Ok(Detector_TO::from_value(sum, TD_Opaque))
    };
    let (mut started, mut failed) = (Vec::new(), Vec::new());
    check_detector(info, &create, &mut |event| match event {
        CheckEvent::Started(name) => started.push(name),
        CheckEvent::Ended(result) => {
            assert_eq!(started.last(), Some(&result.check));
            assert_eq!(result.passed, result.message.is_empty());
            if !result.passed {
                failed.push((result.check, result.message));
            }
        }
    });
    failed
}

fn failed_names(breach: Breach) -> Vec<String> {
    failures(&info(), breach).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_detector_that_keeps_the_contract_passes() {
    assert_eq!(failures(&info(), Breach::None), []);
}

#[test]
fn each_breach_fails_its_check() {
    for (breach, expected) in [
        (Breach::WrongScore, &["worked-example"][..]),
        (Breach::Random, &["worked-example", "determinism", "batch-split", "order", "state"]),
        (Breach::DependsOnBatch, &["worked-example", "batch-split"]),
        (Breach::DependsOnOrder, &["worked-example", "batch-split", "order"]),
        (Breach::FailsOnNothing, &["empty-batch"]),
        (Breach::TakesAnyShape, &["wrong-shapes"]),
        (Breach::PanicsOnNan, &["non-finite-input"]),
        (Breach::LosesItsState, &["state"]),
        (Breach::AnswersAnything, &["state", "variants"]),
        (Breach::NeedsFitOrPanics, &["score-before-fit"]),
        (Breach::TakesAnyParameter, &["unknown-parameter"]),
        (Breach::RefusesItsDefaults, &["defaults", "sweep"]),
    ] {
        assert_eq!(failed_names(breach), expected);
    }
}

/// Its `k` is a readout, of which 7 does not go with the data.
fn with_readout() -> DetectorInfo {
    let mut info = info();
    info.params[0].readout = true;
    info.params[0].sweep.push(json!(7));
    info
}

#[test]
fn a_readout_must_give_what_a_detector_for_it_gives() {
    assert_eq!(failures(&with_readout(), Breach::None), []);
    for (breach, reason) in [
        (Breach::HasNoVariants, "variants failed: as told"),
        (
            Breach::MixesVariants,
            "one pass for several variants with `{}`: score of image 0 expected 4, got 8, at most 0e0 off allowed",
        ),
        (
            Breach::HidesAFault,
            "variant with `{\"k\":7}` expected a fault, as alone it has no scores, got none",
        ),
        (
            Breach::FitsForOneVariant,
            "one pass for several variants with `{\"k\":2}`: score of image 0 expected 10, got 8, at most 0e0 off allowed",
        ),
    ] {
        let failed = failures(&with_readout(), breach);
        assert_eq!(failed, [("variants".to_owned(), reason.to_owned())]);
    }
}

#[test]
fn a_failure_says_what_was_expected_and_what_came() {
    let failed = failures(&info(), Breach::WrongScore);
    assert_eq!(
        failed[0].1,
        "worked example: score of image 0 expected 4, got 4.5, at most 4e-5 off allowed"
    );
}

#[test]
fn a_detector_that_says_it_is_random_may_be() {
    let mut info = info();
    info.deterministic = false;
    let failed = failures(&info, Breach::Random);
    let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["worked-example"], "its example can be met by chance alone");
}

/// The only failure of a descriptor that was changed so.
#[track_caller]
fn only_failure(change: fn(&mut DetectorInfo)) -> String {
    let mut info = info();
    change(&mut info);
    let mut failed = failures(&info, Breach::None);
    assert_eq!(failed.len(), 1, "{failed:?}");
    failed.remove(0).1
}

#[test]
fn descriptors_are_read_closely() {
    assert_eq!(
        only_failure(|info| info.id = "Sum".to_owned()),
        "id expected lower-case letters, digits, - and _, got `Sum`"
    );
    assert_eq!(
        only_failure(|info| info.summary = "one\ntwo".to_owned()),
        "summary expected one line, got 2"
    );
    assert_eq!(only_failure(|info| info.title.clear()), "title expected a line, got none");
    assert_eq!(
        only_failure(|info| info.needs = info.needs.and(Needs(1 << 40))),
        "needs expected flags that this host knows, got 0x10000000000 as well"
    );
    assert_eq!(
        only_failure(|info| info.params[0].sweep.push(json!("three"))),
        "parameter `k` expected a value of kind integer, got `\"three\"`"
    );
}

#[test]
fn examples_are_read_closely() {
    assert_eq!(
        only_failure(|info| info.example = Example::default()),
        "the descriptor has no worked example"
    );
    assert_eq!(
        only_failure(|info| info.example.scores.truncate(1)),
        "the example expected a score for each of 2 images, got 1"
    );
    assert_eq!(
        only_failure(|info| info.example.batch.logits[1].push(0.0)),
        "row 1 of `batch.logits` of the example expected 2 values, got 3"
    );
    assert_eq!(
        only_failure(|info| info.needs = info.needs.and(Needs::TRAIN)),
        "the detector needs `train`, but its example has none"
    );
}
