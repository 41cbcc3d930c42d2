//! Scores one cell, and writes its record.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut};
use oodbench_abi::{Needs, RawError, ScoreBatch, TensorView};
use oodbench_datasets::Pack as Images;
use oodbench_record::{Cost, Outcome, Record, RecordError, RunFolder, SCHEMA};

use super::{Detector, Stop, outcome_of, peak_bytes, reads_bank};
use crate::bank::Bank;
use crate::error::EngineError;
use crate::host::Say;
use crate::image::write_images;
use crate::job::{CellJob, Event, Job};
use crate::text::one_line;

/// Images of a batch where no pixels are asked for.
const FEATURE_BATCH: usize = 4096;

/// What all cells of a job have in common.
pub(super) struct Scoring<'a> {
    pub(super) job: &'a Job,
    pub(super) say: &'a Say,
    pub(super) fit_wall_s: f64,
    pub(super) warnings: &'a Arc<Mutex<Vec<String>>>,
}

/// Why a cell has no scores.
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

/// A number for an image that depends on its name alone.
pub(crate) fn image_key(id: &str) -> u64 {
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
    /// Scores the set of a cell. A detector that returns an error may go on with the next set;
    /// after a panic nothing about it can be relied on.
    pub(super) fn cell(
        &self,
        nth: usize,
        detector: &mut Detector,
        run: &RunFolder,
    ) -> Result<(), Stop> {
        let cell = &self.job.cells[nth];
        let start = Instant::now();
        match self.scores(nth, cell, detector) {
            Ok(scores) => {
                let wall_s = start.elapsed().as_secs_f64();
                let record = self.record(cell, scores.len(), wall_s);
                run.write_record(&record, &scores).map_err(write_failed)?;
                (self.say)(Event::CellDone { cell: nth, wall_s });
                Ok(())
            }
            Err(Failed { outcome: Outcome::Panicked, message }) => {
                Err(Stop::Failed(Outcome::Panicked, message))
            }
            Err(Failed { outcome, message }) => {
                (self.say)(Event::CellFailed { cell: nth, outcome, message });
                Ok(())
            }
        }
    }

    fn scores(
        &self,
        nth: usize,
        cell: &CellJob,
        detector: &mut Detector,
    ) -> Result<Vec<f32>, Failed> {
        let needs = self.job.detector.needs;
        let images = Images::open(&cell.files.pack).map_err(EngineError::from)?;
        let bank = if reads_bank(needs) { Some(Bank::open(&cell.files.bank)?) } else { None };
        let (n, height, width) = (images.len(), images.height() as usize, images.width() as usize);
        let with_pixels = needs.contains(Needs::IMAGES);
        let batch = if with_pixels { self.job.batch_size.max(1) } else { FEATURE_BATCH };
        let image = 3 * height * width;
        let mut pixels = vec![0f32; if with_pixels { batch.min(n) * image } else { 0 }];
        let mut scores = vec![0f32; n];
        for first in (0..n).step_by(batch) {
            let range = first..(first + batch).min(n);
            let len = range.len();
            let keys: Vec<u64> = range.clone().map(|i| image_key(images.id(i))).collect();
            if with_pixels {
                write_images(&images, range.clone(), &mut pixels[..len * image]);
            }
            let shapes = bank.as_ref().map(|b| ([len, b.n_classes()], [len, b.n_features()]));
            let (mut logits, mut features) = (TensorView::absent(), TensorView::absent());
            if let (Some(bank), Some((of_logits, of_features))) = (&bank, &shapes) {
                let rows = |columns: usize| range.start * columns..range.end * columns;
                if needs.contains(Needs::LOGITS) {
                    logits = TensorView::new(&bank.logits()[rows(bank.n_classes())], of_logits);
                }
                if needs.contains(Needs::FEATURES) {
                    let values = &bank.features()[rows(bank.n_features())];
                    features = TensorView::new(values, of_features);
                }
            }
            let image_shape = [len, 3, height, width];
            let out = &mut scores[range.clone()];
            out.fill(f32::NAN);
            let result = detector.score(
                ScoreBatch {
                    len,
                    keys: RSlice::from_slice(&keys),
                    logits,
                    features,
                    images: if with_pixels {
                        TensorView::new(&pixels[..len * image], &image_shape)
                    } else {
                        TensorView::absent()
                    },
                },
                RSliceMut::from_mut_slice(out),
            );
            if let RResult::RErr(error) = result {
                return Err(error.into());
            }
            if let Some(at) = out.iter().position(|score| !score.is_finite()) {
                let (index, score) = (first + at, out[at]);
                let id = images.id(index);
                let message = format!(
                    "score of image {index} (`{id}`) expected a finite number, got `{score}`"
                );
                return Err(Failed { outcome: Outcome::NonFinite, message });
            }
            (self.say)(Event::Scoring { cell: nth, done: range.end, total: n });
        }
        Ok(scores)
    }

    fn record(&self, cell: &CellJob, n_images: usize, score_wall_s: f64) -> Record {
        let job = self.job;
        Record {
            schema: SCHEMA,
            key: cell.key.clone(),
            detector: job.detector.id.clone(),
            params: job.params.clone(),
            set: cell.set.clone(),
            seed: job.seed,
            n_images,
            of_images: cell.of_images,
            cost: Cost {
                fit_wall_s: self.fit_wall_s,
                score_wall_s,
                peak_bytes: peak_bytes(),
                device: job.device.clone(),
                threads: job.threads,
            },
            pack: job.pack.clone(),
            version: job.version.clone(),
            warnings: self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
