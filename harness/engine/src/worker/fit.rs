//! Fits a detector, or restores what it learned in an earlier run.

use std::path::Path;
use std::time::Instant;

use oodbench_abi::abi_stable::std_types::{RNone, RResult, RSlice, RSome, RStr};
use oodbench_abi::{ErrorCode, FitData, Needs, SplitView, TensorView, extension};
use oodbench_record::write_atomically;

use super::{Detector, Stop, failed};
use crate::job::Job;
use crate::set::SetData;

/// The sets that a detector is fitted on.
pub(super) struct Splits {
    pub(super) train: Option<SetData>,
    pub(super) val: Option<SetData>,
    pub(super) val_ood: Option<SetData>,
}

/// Makes the detector ready to score, and returns what fitting it took, now or when it was done.
pub(super) fn fit_or_restore(
    job: &Job,
    detector: &mut Detector,
    splits: &Splits,
) -> Result<f64, Stop> {
    if let Some((wall_s, state)) = read_state(&job.state) {
        let id = RStr::from(extension::LOAD_STATE);
        match detector.extension(id, RSlice::from_slice(&state)) {
            RResult::ROk(_) => return Ok(wall_s),
            RResult::RErr(error) => return Err(failed("restore the fitted state", &error)),
        }
    }
    let start = Instant::now();
    fit(job, detector, splits)?;
    let wall_s = start.elapsed().as_secs_f64();
    match detector.extension(RStr::from(extension::SAVE_STATE), RSlice::EMPTY) {
        RResult::ROk(state) => write_state(&job.state, wall_s, &state)?,
        RResult::RErr(error) if error.code == ErrorCode::UNSUPPORTED => {}
        RResult::RErr(error) => return Err(failed("save the fitted state", &error)),
    }
    Ok(wall_s)
}

fn fit(job: &Job, detector: &mut Detector, splits: &Splits) -> Result<(), Stop> {
    let needs = job.detector.needs;
    let all = [&splits.train, &splits.val, &splits.val_ood];
    let shapes = all.map(|set| set.as_ref().map(shapes));
    let [train, val, val_ood] = [0, 1, 2].map(|nth| {
        let (set, shapes) = all[nth].as_ref().zip(shapes[nth].as_ref())?;
        Some(split_view(needs, set, shapes))
    });
    let data = FitData {
        train: view_or_empty(train),
        val: view_or_empty(val),
        val_ood: val_ood.map_or(RNone, RSome),
        n_classes: job.n_classes,
        n_features: job.n_features,
    };
    match detector.fit(data) {
        RResult::ROk(()) => Ok(()),
        RResult::RErr(error) => Err(failed("fit", &error)),
    }
}

/// Shapes of logits and features.
type Shapes = ([usize; 2], [usize; 2]);

fn shapes(set: &SetData) -> Shapes {
    let bank = set.bank();
    ([bank.len(), bank.n_classes()], [bank.len(), bank.n_features()])
}

fn split_view<'a>(needs: Needs, set: &'a SetData, shapes: &'a Shapes) -> SplitView<'a> {
    let (mut logits, mut features) = (TensorView::absent(), TensorView::absent());
    let (of_logits, of_features) = shapes;
    if needs.contains(Needs::LOGITS) {
        logits = TensorView::new(set.bank().logits(), of_logits);
    }
    if needs.contains(Needs::FEATURES) {
        features = TensorView::new(set.bank().features(), of_features);
    }
    let labels = if needs.contains(Needs::LABELS) { set.labels() } else { &[] };
    SplitView { len: set.len(), labels: RSlice::from_slice(labels), logits, features }
}

fn view_or_empty(view: Option<SplitView<'_>>) -> SplitView<'_> {
    view.unwrap_or(SplitView {
        len: 0,
        labels: RSlice::EMPTY,
        logits: TensorView::absent(),
        features: TensorView::absent(),
    })
}

/// Begins a file with a fitted state; what follows is its wall time and the detector's bytes.
const STATE_MAGIC: &[u8; 8] = b"oodstat1";

fn read_state(path: &Path) -> Option<(f64, Vec<u8>)> {
    // A state that cannot be read costs another fit, and nothing else.
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(STATE_MAGIC)?;
    let (wall_s, state) = rest.split_first_chunk::<8>()?;
    Some((f64::from_le_bytes(*wall_s), state.to_vec()))
}

fn write_state(path: &Path, wall_s: f64, state: &[u8]) -> Result<(), Stop> {
    let bytes = [&STATE_MAGIC[..], &wall_s.to_le_bytes(), state].concat();
    write_atomically(path, &bytes).map_err(super::score::write_failed)
}
