//! Runs one job: loads the pack, fits the detector once, scores its sets batch by batch, writes
//! each record. The same code runs in a worker process and, with `--isolation none`, in the host.
//!
//! Where a job has several sets of parameters, which differ in readouts alone, one fitted detector
//! scores them all in one pass over each set. What one of them lacks is not the others' fault.

mod fit;
mod score;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use oodbench_abi::abi_stable::sabi_trait::TD_Opaque;
use oodbench_abi::{DetectorBox, ErrorCode, Host_TO, HostBox, RawError};
use oodbench_datasets::Pack as Images;
use oodbench_record::{Outcome, RunFolder};

use crate::error::EngineError;
use crate::host::{Say, WorkerHost};
use crate::job::{Event, Job, SetFiles};
use crate::pack::Pack;
use crate::set::SetData;
use crate::text::chain;

pub use score::image_key;

/// Why a job ends before its last cell.
enum Stop {
    /// The detector, or what it needs, failed.
    Failed(Outcome, String),
    /// A record cannot be written.
    Write { message: String, disk_full: bool },
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Failed(Outcome::Error, chain(&error))
    }
}

/// Runs a job and says how it goes; the last event is [`Event::Done`] unless the process ends.
pub fn run_job(job: &Job, say: &Say) {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    match run(job, say, &warnings) {
        Ok(()) => {}
        Err(Stop::Failed(outcome, message)) => say(Event::Failed { outcome, message }),
        Err(Stop::Write { message, disk_full }) => {
            say(Event::WriteFailed { message, disk_full });
        }
    }
    say(Event::Done);
}

/// How an error of a detector is called.
fn outcome_of(error: &RawError) -> Outcome {
    match error.code {
        ErrorCode::PANICKED => Outcome::Panicked,
        ErrorCode::OUT_OF_MEMORY => Outcome::OutOfMemory,
        _ => Outcome::Error,
    }
}

fn failed(what: &str, error: &RawError) -> Stop {
    Stop::Failed(outcome_of(error), format!("{what}: {}", crate::text::one_line(&error.message)))
}

fn run(job: &Job, say: &Say, warnings: &Arc<Mutex<Vec<String>>>) -> Result<(), Stop> {
    let start = Instant::now();
    let open = |files: &Option<SetFiles>| files.as_ref().map(SetData::open).transpose();
    let needs = job.detector.needs;
    let splits = fit::Splits {
        train: open(&job.fit.train)?,
        val: open(&job.fit.val)?,
        val_ood: open(&job.fit.val_ood)?,
    };
    let size = match job.cells.first() {
        Some(cell) => {
            let size = |images: &Images| (images.height() as usize, images.width() as usize);
            SetData::open(&cell.files)?.images().map(|images| size(images))
        }
        None => return Ok(()),
    };
    let images = |set: &Option<SetData>| set.as_ref().and_then(SetData::images).cloned();
    let host = || -> HostBox {
        let host = WorkerHost {
            needs,
            seed: job.seed,
            threads: job.threads,
            device: job.device.clone(),
            precision: job.precision,
            assets: job.assets.clone(),
            head: job.head.clone(),
            classifier: job.classifier.clone(),
            loaded: Mutex::new(None),
            others: Mutex::default(),
            train: images(&splits.train),
            val: images(&splits.val),
            val_ood: images(&splits.val_ood),
            size,
            say: keeping_warnings(say, warnings),
        };
        Host_TO::from_value(host, TD_Opaque)
    };
    say(Event::Fitting);
    let pack = Pack::open(&job.library).map_err(EngineError::from)?;
    let (mut detector, refused) = create(job, &pack, &host)?;
    let opened = start.elapsed().as_secs_f64();
    let fit_wall_s = opened + fit::fit_or_restore(job, &mut detector, &splits)?;
    say(Event::Fitted { wall_s: fit_wall_s });

    let run = RunFolder::new(&job.run);
    score::Scoring { job, say, fit_wall_s, warnings, refused }.all(&mut detector, &run)
}

/// The detector, made with the first of its variants that it takes, and why it refuses others.
fn create(
    job: &Job,
    pack: &Pack,
    host: &dyn Fn() -> HostBox,
) -> Result<(Detector, Vec<Option<String>>), Stop> {
    let (mut detector, mut refused, mut first_error) = (None, Vec::new(), None);
    for variant in &job.variants {
        let params = serde_json::Value::Object(variant.params.clone()).to_string();
        match pack.create(&job.detector.id, &params, host()) {
            Ok(made) => {
                // Of the others nothing is wanted but that they can be made.
                detector.get_or_insert(made);
                refused.push(None);
            }
            Err(error) if error.code == ErrorCode::PANICKED => {
                return Err(failed("create", &error));
            }
            Err(error) => {
                refused.push(Some(format!("create: {}", crate::text::one_line(&error.message))));
                first_error.get_or_insert(error);
            }
        }
    }
    match (detector, first_error) {
        (Some(detector), _) => Ok((detector, refused)),
        (None, Some(error)) => Err(failed("create", &error)),
        (None, None) => {
            let message = "the job has no parameters at all".to_owned();
            Err(Stop::Failed(Outcome::Error, message))
        }
    }
}

/// Warnings are said, and kept for the records.
fn keeping_warnings(say: &Say, warnings: &Arc<Mutex<Vec<String>>>) -> Say {
    let (say, warnings) = (Arc::clone(say), Arc::clone(warnings));
    Arc::new(move |event| {
        if let Event::Log { level, message } = &event
            && *level >= oodbench_abi::LogLevel::WARN.0
        {
            let mut warnings = warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !warnings.contains(message) {
                warnings.push(message.clone());
            }
        }
        say(event);
    })
}

/// The greatest resident memory of this process so far, in bytes, where the system tells.
///
/// `getrusage` would count the parent's memory too, up to the moment of `exec`.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

type Detector = DetectorBox;
