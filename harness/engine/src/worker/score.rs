//! Scores the cells of a job, set by set, and writes their records.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut};
use oodbench_abi::{ErrorCode, Needs, RawError, ScoreBatch, TensorView};
use oodbench_datasets::Pack;
use oodbench_record::{Cost, Outcome, Record, RecordError, RunFolder, SCHEMA};

use super::{Detector, Stop, outcome_of, peak_bytes};
use crate::error::EngineError;
use crate::host::Say;
use crate::image::write_images;
use crate::job::{CellJob, Event, Job};
use crate::set::SetData;
use crate::text::one_line;
use crate::variants::set_variants;

/// Images of a batch where no pixels are asked for.
const FEATURE_BATCH: usize = 4096;

/// What all cells of a job have in common.
pub(super) struct Scoring<'a> {
    pub(super) job: &'a Job,
    pub(super) say: &'a Say,
    pub(super) fit_wall_s: f64,
    pub(super) warnings: &'a Arc<Mutex<Vec<String>>>,
    /// Why the detector cannot be made with a variant.
    pub(super) refused: Vec<Option<String>>,
}

/// The scores of each cell of a pass, or why it has none.
type Rows = Vec<Result<Vec<f32>, Failed>>;

/// Why a cell has no scores.
#[derive(Clone)]
struct Failed {
    outcome: Outcome,
    message: String,
}

impl From<RawError> for Failed {
    fn from(error: RawError) -> Self {
        let message = format!("score: {}", one_line(&error.message));
        Self { outcome: outcome_of(&error), message }
    }
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self { outcome: Outcome::Error, message: crate::text::chain(&error) }
    }
}

/// Adds the scores of a batch to those before, unless one of them is not finite.
fn keep(row: &mut Result<Vec<f32>, Failed>, scores: &[f32], set: &SetData) {
    let Ok(before) = row else { return };
    let Some(at) = scores.iter().position(|score| !score.is_finite()) else {
        before.extend_from_slice(scores);
        return;
    };
    let (index, score) = (before.len() + at, scores[at]);
    let id = set.id(index);
    let message =
        format!("score of image {index} (`{id}`) expected a finite number, got `{score}`");
    *row = Err(Failed { outcome: Outcome::NonFinite, message });
}

/// A number for an image that depends on its name alone.
pub fn image_key(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    let (word, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
    u64::from_le_bytes(*word)
}

pub(super) fn write_failed(error: RecordError) -> Stop {
    let disk_full = matches!(&error, RecordError::Write { source, .. }
        if source.kind() == std::io::ErrorKind::StorageFull);
    Stop::Write { message: crate::text::chain(&error), disk_full }
}

impl Scoring<'_> {
    /// Scores every cell.
    pub(super) fn all(&self, detector: &mut Detector, run: &RunFolder) -> Result<(), Stop> {
        let mut rest: Vec<usize> = (0..self.job.cells.len()).collect();
        while let Some(&first) = rest.first() {
            let files = &self.job.cells[first].files;
            let (pass, later) =
                rest.into_iter().partition(|&nth| self.job.cells[nth].files == *files);
            self.pass(pass, detector, run)?;
            rest = later;
        }
        Ok(())
    }

    /// Scores the cells of one set, each with its own parameters. A detector that returns an error
    /// may go on with the next set; after a panic nothing about it can be relied on.
    fn pass(
        &self,
        cells: Vec<usize>,
        detector: &mut Detector,
        run: &RunFolder,
    ) -> Result<(), Stop> {
        let cells = self.accepted(cells, detector)?;
        if cells.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let rows = match self.scores(&cells, detector) {
            Ok(rows) => rows,
            Err(Failed { outcome: Outcome::Panicked, message }) => {
                return Err(Stop::Failed(Outcome::Panicked, message));
            }
            Err(failed) => {
                cells.iter().for_each(|&nth| self.fail(nth, failed.clone()));
                return Ok(());
            }
        };
        let wall_s = start.elapsed().as_secs_f64() / cells.len() as f64;
        for (nth, row) in cells.into_iter().zip(rows) {
            match row {
                Ok(scores) => {
                    let n_images = scores.len();
                    let record = self.record(&self.job.cells[nth], n_images, wall_s);
                    run.write_record(&record, &scores).map_err(write_failed)?;
                    (self.say)(Event::CellDone { cell: nth, wall_s, n_images });
                }
                Err(failed) => self.fail(nth, failed),
            }
        }
        Ok(())
    }

    fn fail(&self, cell: usize, Failed { outcome, message }: Failed) {
        (self.say)(Event::CellFailed { cell, outcome, message });
    }

    /// The cells whose parameters the detector takes, and scores from now on. The others fail.
    fn accepted(&self, cells: Vec<usize>, detector: &mut Detector) -> Result<Vec<usize>, Stop> {
        let (open, refused): (Vec<usize>, Vec<usize>) =
            cells.into_iter().partition(|&nth| self.refusal(nth).is_none());
        for nth in refused {
            let message = self.refusal(nth).cloned().unwrap_or_default();
            self.fail(nth, Failed { outcome: Outcome::Error, message });
        }
        if self.job.variants.len() == 1 {
            return Ok(open);
        }
        let mut open = open;
        // Once to hear what is refused, and again without it.
        for _ in 0..2 {
            let params: Vec<_> = open
                .iter()
                .map(|&nth| self.job.variants[self.job.cells[nth].variant].params.clone())
                .collect();
            let faults = match set_variants(detector, &params) {
                Ok(faults) => faults,
                Err(error) if error.code == ErrorCode::PANICKED => {
                    return Err(super::failed("set variants", &error));
                }
                Err(error) => {
                    let message = format!("set variants: {}", one_line(&error.message));
                    let failed = Failed { outcome: Outcome::Error, message };
                    open.iter().for_each(|&nth| self.fail(nth, failed.clone()));
                    return Ok(Vec::new());
                }
            };
            let mut accepted = Vec::new();
            for (&nth, fault) in open.iter().zip(faults) {
                match fault {
                    None => accepted.push(nth),
                    Some(fault) => self.fail(nth, RawError::from(fault).into()),
                }
            }
            if accepted.len() == open.len() || accepted.is_empty() {
                return Ok(accepted);
            }
            open = accepted;
        }
        let message = "set variants: parameters expected to be accepted, as before".to_owned();
        let failed = Failed { outcome: Outcome::Error, message };
        open.iter().for_each(|&nth| self.fail(nth, failed.clone()));
        Ok(Vec::new())
    }

    /// Why the parameters of a cell are refused.
    fn refusal(&self, cell: usize) -> Option<&String> {
        self.refused[self.job.cells[cell].variant].as_ref()
    }

    /// One pass over the set of these cells: the scores of each.
    fn scores(&self, cells: &[usize], detector: &mut Detector) -> Result<Rows, Failed> {
        let (first_cell, files) = (cells[0], &self.job.cells[cells[0]].files);
        let needs = self.job.detector.needs;
        let set = SetData::open(files)?;
        let (n, bank) = (set.len(), set.bank());
        let images = set.images().filter(|_| needs.contains(Needs::IMAGES));
        let batch = if images.is_some() { self.job.batch_size.max(1) } else { FEATURE_BATCH };
        let size = |images: &Arc<Pack>| (images.height() as usize, images.width() as usize);
        let (height, width) = images.map_or((0, 0), size);
        let image = 3 * height * width;
        let mut pixels = vec![0f32; batch.min(n) * image];
        let mut rows: Rows = vec![Ok(Vec::with_capacity(n)); cells.len()];
        let mut out = Vec::new();
        for first in (0..n).step_by(batch) {
            let range = first..(first + batch).min(n);
            let len = range.len();
            let keys: Vec<u64> = range.clone().map(|i| image_key(&set.id(i))).collect();
            if let Some(images) = images {
                write_images(images, range.clone(), &mut pixels[..len * image]);
            }
            let (of_logits, of_features) = ([len, bank.n_classes()], [len, bank.n_features()]);
            let (mut logits, mut features) = (TensorView::absent(), TensorView::absent());
            let place = |columns: usize| range.start * columns..range.end * columns;
            if needs.contains(Needs::LOGITS) {
                logits = TensorView::new(&bank.logits()[place(bank.n_classes())], &of_logits);
            }
            if needs.contains(Needs::FEATURES) {
                let values = &bank.features()[place(bank.n_features())];
                features = TensorView::new(values, &of_features);
            }
            let image_shape = [len, 3, height, width];
            out.clear();
            out.resize(cells.len() * len, f32::NAN);
            let result = detector.score(
                ScoreBatch {
                    len,
                    keys: RSlice::from_slice(&keys),
                    logits,
                    features,
                    images: if images.is_some() {
                        TensorView::new(&pixels[..len * image], &image_shape)
                    } else {
                        TensorView::absent()
                    },
                },
                RSliceMut::from_mut_slice(&mut out),
            );
            if let RResult::RErr(error) = result {
                return Err(error.into());
            }
            for (row, scores) in rows.iter_mut().zip(out.chunks_exact(len)) {
                keep(row, scores, &set);
            }
            if rows.iter().all(Result::is_err) {
                break;
            }
            (self.say)(Event::Scoring { cell: first_cell, done: range.end, total: n });
        }
        Ok(rows)
    }

    fn record(&self, cell: &CellJob, n_images: usize, score_wall_s: f64) -> Record {
        let job = self.job;
        Record {
            schema: SCHEMA,
            key: cell.key.clone(),
            detector: job.detector.id.clone(),
            params: job.variants[cell.variant].params.clone(),
            set: cell.set.clone(),
            seed: job.seed,
            n_images,
            of_images: cell.of_images,
            cost: Cost {
                fit_wall_s: self.fit_wall_s,
                score_wall_s,
                peak_bytes: peak_bytes(),
                device: job.device.clone(),
                gpu: job.gpu.clone(),
                threads: job.threads,
            },
            pack: job.pack.clone(),
            version: job.version.clone(),
            warnings: self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
