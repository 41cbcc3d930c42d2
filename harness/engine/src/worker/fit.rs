//! Fits a detector, or restores what it learned in an earlier run.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use oodbench_abi::abi_stable::std_types::{RNone, RResult, RSlice, RSome, RStr};
use oodbench_abi::{ErrorCode, FitData, Needs, SplitView, TensorView, extension};
use oodbench_datasets::Pack as Images;
use oodbench_record::write_atomically;

use super::{Detector, Stop, failed, reads_bank};
use crate::bank::Bank;
use crate::error::EngineError;
use crate::job::{Job, SetFiles};

/// Images of the sets that a detector is fitted on.
pub(super) struct Splits {
    pub(super) train: Option<Arc<Images>>,
    pub(super) val: Option<Arc<Images>>,
    pub(super) val_ood: Option<Arc<Images>>,
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
    let bank = |files: &Option<SetFiles>| -> Result<Option<Bank>, EngineError> {
        let wanted = files.as_ref().filter(|_| reads_bank(needs));
        wanted.map(|files| Bank::open(&files.bank)).transpose()
    };
    let (train, val, val_ood) =
        (bank(&job.fit.train)?, bank(&job.fit.val)?, bank(&job.fit.val_ood)?);
    let sizes = crate::bank::HeadFile::open(&job.head)?;
    let shapes = |bank: &Option<Bank>| {
        bank.as_ref().map(|b| ([b.len(), b.n_classes()], [b.len(), b.n_features()]))
    };
    let all_shapes = [shapes(&train), shapes(&val), shapes(&val_ood)];
    let [of_train, of_val, of_val_ood] = &all_shapes;
    let train = split_view(needs, splits.train.as_deref(), train.as_ref(), of_train.as_ref());
    let val = split_view(needs, splits.val.as_deref(), val.as_ref(), of_val.as_ref());
    let val_ood =
        split_view(needs, splits.val_ood.as_deref(), val_ood.as_ref(), of_val_ood.as_ref());
    let data = FitData {
        train: view_or_empty(train),
        val: view_or_empty(val),
        val_ood: val_ood.map_or(RNone, RSome),
        n_classes: sizes.n_classes,
        n_features: sizes.n_features,
    };
    match detector.fit(data) {
        RResult::ROk(()) => Ok(()),
        RResult::RErr(error) => Err(failed("fit", &error)),
    }
}

type Shapes = ([usize; 2], [usize; 2]);

fn split_view<'a>(
    needs: Needs,
    images: Option<&'a Images>,
    bank: Option<&'a Bank>,
    shapes: Option<&'a Shapes>,
) -> Option<SplitView<'a>> {
    let images = images?;
    let (mut logits, mut features) = (TensorView::absent(), TensorView::absent());
    if let (Some(bank), Some((of_logits, of_features))) = (bank, shapes) {
        if needs.contains(Needs::LOGITS) {
            logits = TensorView::new(bank.logits(), of_logits);
        }
        if needs.contains(Needs::FEATURES) {
            features = TensorView::new(bank.features(), of_features);
        }
    }
    let labels = if needs.contains(Needs::LABELS) { images.labels() } else { &[] };
    Some(SplitView { len: images.len(), labels: RSlice::from_slice(labels), logits, features })
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
