//! The bridge, driven as a host drives it.

use std::sync::{Arc, Mutex};

use oodbench_abi::abi_stable::std_types::{RNone, RString};
use oodbench_abi::{
    ForwardOutputs, Head, Host as RawHost, Host_TO, LogLevel, NamedTensor, SplitId, SplitView,
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::{NoParams, Param};

/// A host that offers nothing, and keeps what it is told.
#[derive(Clone, Default)]
struct SilentHost {
    messages: Arc<Mutex<Vec<String>>>,
}

fn unavailable<T>() -> RawResult<T> {
    RResult::RErr(RawError::new(ErrorCode::UNAVAILABLE, "nothing is offered"))
}

impl RawHost for SilentHost {
    fn log(&self, _level: LogLevel, message: RStr<'_>) {
        self.messages.lock().unwrap().push(message.to_string());
    }
    fn progress(&self, _done: u64, _total: u64) {}
    fn cancelled(&self) -> bool {
        true
    }
    fn seed(&self) -> u64 {
        7
    }
    fn threads(&self) -> usize {
        1
    }
    fn device(&self) -> RString {
        "cpu".into()
    }
    fn asset(&self, _name: RStr<'_>) -> RawResult<RString> {
        unavailable()
    }
    fn head(&self) -> RawResult<Head> {
        // Sizes that contradict each other: the SDK must not hand this on.
        let (weight, bias) = (vec![1.0; 4].into(), vec![0.0; 3].into());
        RResult::ROk(Head { weight, bias, n_classes: 2, n_features: 2 })
    }
    fn images(&self, _: SplitId, _: usize, _: RSliceMut<'_, f32>) -> RawResult<()> {
        unavailable()
    }
    fn image_shape(&self) -> RawResult<RVec<usize>> {
        unavailable()
    }
    fn forward(&self, _: TensorView<'_>) -> RawResult<ForwardOutputs> {
        unavailable()
    }
    fn vjp(&self, _: TensorView<'_>, _: RStr<'_>, _: TensorView<'_>) -> RawResult<RVec<f32>> {
        unavailable()
    }
    fn layer_names(&self) -> RawResult<RVec<RString>> {
        unavailable()
    }
    fn layers(&self, _: TensorView<'_>, _: RVec<RString>) -> RawResult<RVec<NamedTensor>> {
        unavailable()
    }
    fn extension(&self, _: RStr<'_>, _: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        unavailable()
    }
}

/// Does what its parameter says.
struct Actor {
    params: ActorParams,
    host: Host,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ActorParams {
    act: String,
    width: f64,
}

impl Detector for Actor {
    type Params = ActorParams;

    fn info() -> Info {
        Info {
            id: "actor",
            params: vec![
                Param::new("act", "what to do", "this test"),
                Param::new("width", "a number", "this test").sweep([0.5, 2.0]),
            ],
            ..Info::default()
        }
    }

    fn new(params: ActorParams, host: Host) -> Result<Self> {
        if params.act == "panic in new" {
            panic!("as told");
        }
        Ok(Self { params, host })
    }

    fn fit(&mut self, _data: &FitData<'_>) -> Result<()> {
        match self.params.act.as_str() {
            "panic in fit" => panic!("as told"),
            "head" => self.host.head().map(|_| ()),
            "progress" => self.host.progress(1, 2),
            _ => Ok(()),
        }
    }

    fn score(&mut self, _batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if self.params.act == "panic in score" {
            std::panic::panic_any(5);
        }
        scores.fill(self.params.width as f32);
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        Ok((self.params.act == "state").then(|| b"learned".to_vec()))
    }

    fn load_state(&mut self, state: &[u8]) -> Result<()> {
        assert_eq!(state, b"learned");
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if self.params.act == "panic in drop" {
            panic!("as told");
        }
    }
}

fn create_with(params: &str, host: &SilentHost) -> Result<DetectorBox> {
    create::<Actor>(params, Host_TO::from_value(host.clone(), TD_Opaque))
}

fn actor(act: &str) -> DetectorBox {
    create_with(&format!("{{\"act\": \"{act}\"}}"), &SilentHost::default()).unwrap()
}

fn split(logits: TensorView<'_>) -> SplitView<'_> {
    let len = logits.shape.first().copied().unwrap_or(0);
    SplitView { len, labels: RSlice::EMPTY, logits, features: TensorView::absent() }
}

/// Fits on one training image of `columns` logits for a classifier of two classes.
fn fit(detector: &mut DetectorBox, columns: usize) -> std::result::Result<(), RawError> {
    let (values, shape) = (vec![0.0; columns], [1, columns]);
    let data = RawFit {
        train: split(TensorView::new(&values, &shape)),
        val: split(TensorView::absent()),
        val_ood: RNone,
        n_classes: 2,
        n_features: 0,
    };
    detector.fit(data).into_result()
}

/// Scores one image of `columns` logits.
fn score(detector: &mut DetectorBox, columns: usize) -> std::result::Result<f32, RawError> {
    let (values, shape, mut scores) = (vec![0.0; columns], [1, columns], [f32::NAN]);
    let batch = ScoreBatch {
        len: 1,
        keys: RSlice::from_slice(&[0]),
        logits: TensorView::new(&values, &shape),
        features: TensorView::absent(),
        images: TensorView::absent(),
    };
    detector.score(batch, RSliceMut::from_mut_slice(&mut scores)).into_result()?;
    Ok(scores[0])
}

fn extend(
    detector: &mut DetectorBox,
    id: &str,
    input: &[u8],
) -> std::result::Result<Vec<u8>, RawError> {
    let answer = detector.extension(RStr::from(id), RSlice::from_slice(input));
    answer.into_result().map(Vec::from)
}

#[test]
fn panics_become_errors() {
    let panicked = |error: RawError, text: &str| {
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::PANICKED, text));
    };
    let host = SilentHost::default();
    let result = guarded(|| create_with(r#"{"act": "panic in new"}"#, &host));
    panicked(result.into_result().err().unwrap(), "as told");
    panicked(fit(&mut actor("panic in fit"), 2).unwrap_err(), "as told");
    panicked(score(&mut actor("panic in score"), 2).unwrap_err(), "a value that is no text");
}

#[test]
fn a_panic_in_drop_is_a_warning() {
    let host = SilentHost::default();
    drop(create_with(r#"{"act": "panic in drop"}"#, &host).unwrap());
    let messages = host.messages.lock().unwrap().clone();
    assert_eq!(messages, ["`actor` panicked when it was dropped: as told"]);
}

#[test]
fn parameters_are_refused_with_their_code() {
    let code =
        |params| RawError::from(create_with(params, &SilentHost::default()).err().unwrap()).code;
    assert_eq!(code(r#"{"atc": ""}"#), ErrorCode::BAD_PARAMETER);
    assert_eq!(code(r#"{"width": "wide"}"#), ErrorCode::BAD_PARAMETER);
    let error =
        create_with(r#"{"act": "none", "width": "wide"}"#, &SilentHost::default()).err().unwrap();
    let text = error.to_string();
    assert!(text.starts_with("parameter `width`: invalid type: string \"wide\""), "{text}");
    assert_eq!(code("nonsense"), ErrorCode::BAD_PARAMETER);
}

#[test]
fn outputs_of_another_classifier_are_refused() {
    let mut detector = actor("");
    assert_eq!(score(&mut detector, 3).unwrap(), 0.0, "nothing is known before the fit");
    let error = fit(&mut detector, 3).unwrap_err();
    assert_eq!(error.code, ErrorCode::BAD_INPUT);
    assert_eq!(error.message, "logits expected [n, 2], got [1, 3]");
    fit(&mut detector, 2).unwrap();
    assert_eq!(score(&mut detector, 2).unwrap(), 0.0);
    assert_eq!(score(&mut detector, 3).unwrap_err().code, ErrorCode::BAD_INPUT);
}

#[test]
fn a_loaded_state_knows_its_classifier() {
    let mut detector = actor("state");
    assert!(extend(&mut detector, extension::SAVE_STATE, &[]).is_err(), "nothing is learned yet");
    fit(&mut detector, 2).unwrap();
    let state = extend(&mut detector, extension::SAVE_STATE, &[]).unwrap();
    let mut restored = actor("state");
    extend(&mut restored, extension::LOAD_STATE, &state).unwrap();
    assert_eq!(score(&mut restored, 2).unwrap(), 0.0);
    assert_eq!(score(&mut restored, 1).unwrap_err().code, ErrorCode::BAD_INPUT);
    let cut = extend(&mut restored, extension::LOAD_STATE, &state[..9]).unwrap_err();
    assert_eq!(cut.message, "the saved state is cut off");
}

#[test]
fn unknown_extensions_are_unsupported() {
    let mut detector = actor("");
    fit(&mut detector, 2).unwrap();
    for id in [extension::SAVE_STATE, "oodbench.later/1"] {
        assert_eq!(extend(&mut detector, id, &[]).unwrap_err().code, ErrorCode::UNSUPPORTED);
    }
}

#[test]
fn a_host_that_contradicts_itself_is_an_error() {
    let error = fit(&mut actor("head"), 2).unwrap_err();
    assert_eq!(error.message, "bias expected 2 values, got 3");
}

#[test]
fn progress_ends_a_call_that_is_cancelled() {
    assert_eq!(fit(&mut actor("progress"), 2).unwrap_err().code, ErrorCode::CANCELLED);
}

#[test]
fn descriptors_take_defaults_and_types_from_the_parameters() {
    let descriptor = descriptor::<Actor>().unwrap();
    let width = &descriptor.params[1];
    assert_eq!((width.name.as_str(), width.default.as_str()), ("width", "0.0"));
    assert_eq!(width.kind, ParamKind::NUMBER);
    assert_eq!(width.sweep, ["0.5", "2.0"].map(RString::from));
    assert!(descriptor.deterministic);
}

/// The greatest logit to the power of `power`, times `factor`, which is a readout of at most as
/// many as there are classes.
struct Scaled {
    params: ScaledParams,
    n_classes: usize,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScaledParams {
    power: i32,
    factor: usize,
}

impl Default for ScaledParams {
    fn default() -> Self {
        Self { power: 1, factor: 1 }
    }
}

impl Detector for Scaled {
    type Params = ScaledParams;

    fn info() -> Info {
        Info {
            id: "scaled",
            params: vec![
                Param::new("power", "", ""),
                Param::new("factor", "", "").sweep([1, 2]).readout(),
            ],
            ..Info::default()
        }
    }

    fn new(params: ScaledParams, _host: Host) -> Result<Self> {
        Ok(Self { params, n_classes: 0 })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.n_classes = data.n_classes();
        Ok(())
    }

    fn check_readout(&self, params: &ScaledParams) -> Result<()> {
        match params.factor > self.n_classes {
            true => Err(Error::parameter("factor", "at most the number of classes", params.factor)),
            false => Ok(()),
        }
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = [self.params.clone()];
        self.score_variants(batch, &own, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[ScaledParams],
        scores: &mut [f32],
    ) -> Result<()> {
        for (row, params) in scores.chunks_exact_mut(batch.len()).zip(variants) {
            for (score, logits) in row.iter_mut().zip(batch.logits()?.rows()) {
                let greatest = logits.iter().copied().fold(f32::MIN, f32::max);
                *score = greatest.powi(self.params.power) * params.factor as f32;
            }
        }
        Ok(())
    }
}

/// `[variant, image]` for one image with the logits 3 and 0.
fn score_rows(detector: &mut DetectorBox, n: usize) -> std::result::Result<Vec<f32>, RawError> {
    let mut scores = vec![f32::NAN; n];
    let batch = ScoreBatch {
        len: 1,
        keys: RSlice::from_slice(&[0]),
        logits: TensorView::new(&[3.0, 0.0], &[1, 2]),
        features: TensorView::absent(),
        images: TensorView::absent(),
    };
    detector.score(batch, RSliceMut::from_mut_slice(&mut scores)).into_result()?;
    Ok(scores)
}

fn scaled(params: &str) -> DetectorBox {
    let host = Host_TO::from_value(SilentHost::default(), TD_Opaque);
    create::<Scaled>(params, host).unwrap()
}

#[test]
fn variants_are_scored_in_one_pass() {
    let mut detector = scaled(r#"{"power": 2}"#);
    let ask = |detector: &mut DetectorBox, input: &str| {
        let answer = extend(detector, extension::VARIANTS, input.as_bytes())?;
        Ok::<_, RawError>(String::from_utf8(answer).unwrap())
    };
    let both = r#"[{"power": 2, "factor": 2}, {"power": 2}]"#;
    assert!(ask(&mut detector, both).is_err(), "nothing is fitted yet");
    fit(&mut detector, 2).unwrap();
    assert_eq!(ask(&mut detector, both).unwrap(), "[null,null]");
    assert_eq!(score_rows(&mut detector, 2).unwrap(), [18.0, 9.0]);
    let error = score_rows(&mut detector, 1).unwrap_err();
    assert_eq!(error.message, "scores expected room for 2, got 1");
    // A fault changes nothing; no variants are the detector itself.
    let answer = ask(&mut detector, r#"[{"power": 2}, {"power": 2, "factor": 3}]"#).unwrap();
    assert!(answer.starts_with("[null,{\"code\":3,\"message\":\"parameter `factor`"), "{answer}");
    assert_eq!(score_rows(&mut detector, 2).unwrap(), [18.0, 9.0]);
    assert_eq!(ask(&mut detector, "[]").unwrap(), "[]");
    assert_eq!(score_rows(&mut detector, 1).unwrap(), [9.0]);
}

#[test]
fn variants_differ_in_readouts_alone() {
    let mut detector = scaled("{}");
    fit(&mut detector, 2).unwrap();
    let refused = |detector: &mut DetectorBox, input: &str| {
        extend(detector, extension::VARIANTS, input.as_bytes()).unwrap_err()
    };
    let error = refused(&mut detector, r#"[{"power": 2}]"#);
    assert_eq!(error.message, "parameter `power` expected `1`, got `2`");
    for bad in [r#"[{"fcator": 2}]"#, "[1]", "nonsense"] {
        assert_eq!(refused(&mut detector, bad).code, ErrorCode::BAD_PARAMETER, "{bad}");
    }
    let mut without = actor("");
    fit(&mut without, 2).unwrap();
    assert_eq!(refused(&mut without, "[{}]").code, ErrorCode::UNSUPPORTED);
}

#[test]
fn a_readout_that_does_not_go_with_the_data_is_refused_at_the_first_score() {
    let mut detector = scaled(r#"{"factor": 3}"#);
    fit(&mut detector, 2).unwrap();
    assert_eq!(score(&mut detector, 2).unwrap_err().code, ErrorCode::BAD_PARAMETER);
    // Its variants are judged for themselves.
    extend(&mut detector, extension::VARIANTS, br#"[{"factor": 2}]"#).unwrap();
    assert_eq!(score_rows(&mut detector, 1).unwrap(), [6.0]);
}

#[test]
fn readouts_are_flagged_and_keep_their_type() {
    let descriptor = descriptor::<Scaled>().unwrap();
    let kinds: Vec<_> = descriptor.params.iter().map(|param| param.kind).collect();
    assert_eq!(kinds.iter().map(|kind| kind.is_readout()).collect::<Vec<_>>(), [false, true]);
    assert_eq!(kinds[1].without_flags(), ParamKind::INTEGER);
    assert_eq!(kinds[1].name(), "integer");
}

/// Describes a parameter that it does not have.
struct Undescribed;

impl Detector for Undescribed {
    type Params = NoParams;

    fn info() -> Info {
        Info { id: "undescribed", params: vec![Param::new("k", "", "")], ..Info::default() }
    }

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self)
    }

    fn score(&mut self, _batch: &Batch<'_>, _scores: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_description_must_match_the_fields() {
    let error = descriptor::<Undescribed>().unwrap_err().to_string();
    assert_eq!(error, "`undescribed` describes the parameters [\"k\"], but its fields are []");
}
