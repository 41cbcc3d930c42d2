//! Runs the jobs of a plan, one after the other, each in a worker that may use every thread, and
//! writes down how every cell ended. What is finished is not run again.

use std::fs::{File, TryLockError};
use std::sync::Arc;

use oodbench_record::{CellState, Failure, Outcome, RecordError, RunFolder, SCHEMA};

use super::plan::{Planned, PlannedJob, Planner};
use super::{BenchRequest, Observer};
use crate::error::EngineError;
use crate::job::{CellJob, Event, Job};
use crate::process::Request;
use crate::supervise::{Ended, Limits, WorkerCommand, supervise};
use crate::worker::run_job;

/// Where detectors run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// In a process of their own.
    Process,
    /// In the host, for a debugger. A crash ends the run, limits do not hold.
    None,
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq)]
pub enum CellEnd {
    /// It was finished by an earlier run.
    Kept,
    /// It was scored.
    Done { wall_s: f64, n_images: usize },
    /// It has no scores.
    Failed { outcome: Outcome, message: String },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub done: usize,
    pub kept: usize,
    pub failed: usize,
}

/// Keeps other runs out of the folder, as long as the file is open.
pub(super) fn lock(folder: &RunFolder) -> Result<File, EngineError> {
    let path = folder.root().join("lock");
    std::fs::create_dir_all(folder.root()).map_err(EngineError::io("write", folder.root()))?;
    let file = File::create(&path).map_err(EngineError::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EngineError::Locked { path: folder.root().into() }),
        Err(TryLockError::Error(source)) => Err(EngineError::io("lock", &path)(source)),
    }
}

/// Writes the manifest down as it stands.
type WriteManifest<'a> = dyn Fn(&[Planned<'_>]) -> Result<(), EngineError> + 'a;

/// What runs need that run.
pub(super) struct Runner<'a> {
    pub(super) request: &'a BenchRequest,
    pub(super) worker: &'a WorkerCommand,
    pub(super) folder: &'a RunFolder,
    pub(super) observer: &'a dyn Observer,
}

impl Runner<'_> {
    /// Runs every detector: its search, if it has one, and then its cells.
    pub(super) fn run<'a>(
        &self,
        planner: &Planner<'a>,
        plans: &mut [Planned<'a>],
        write: &WriteManifest<'_>,
    ) -> Result<Summary, EngineError> {
        let mut summary = Summary::default();
        for nth in 0..plans.len() {
            self.observer.detector(plans[nth].label(), nth + 1, plans.len());
            if plans[nth].search.is_some() {
                self.search(planner, &mut plans[nth], &mut summary)?;
                write(plans)?;
            }
            let plan = &plans[nth];
            if let Some(test) = &plan.test {
                // What the search has learned in this run is not to be learned again.
                let keep_state = plan.search.is_some();
                self.job(test, Told::All, self.request.force && !keep_state, &mut summary)?;
            }
        }
        Ok(summary)
    }

    fn search<'a>(
        &self,
        planner: &Planner<'a>,
        plan: &mut Planned<'a>,
        summary: &mut Summary,
    ) -> Result<(), EngineError> {
        let Some(search) = &plan.search else { return Ok(()) };
        let (n, names) = (search.grid.combinations.len(), search.grid.parameters.join(", "));
        let (id, ood) = (&search.record.id.set, &search.record.ood.set);
        self.observer.note(&format!("  search {n} combinations of {names} on {id} and {ood}"));
        for job in &search.jobs {
            self.job(job, Told::Failures, self.request.force, summary)?;
        }
        let auroc = planner.settle(plan, self.folder)?;
        let Some(search) = &plan.search else { return Ok(()) };
        match search.record.chosen.zip(auroc) {
            Some((place, auroc)) => self.observer.note(&format!(
                "  chosen: {}, validation AUROC {:.2} %",
                search.grid.text(place),
                100.0 * auroc
            )),
            None => self.observer.warn(&format!(
                "{}: all {n} combinations of {names} failed, so that no test set is scored",
                plan.label()
            )),
        }
        Ok(())
    }

    /// Runs what is not there yet of a job.
    fn job(
        &self,
        planned: &PlannedJob,
        told: Told,
        forget_state: bool,
        summary: &mut Summary,
    ) -> Result<(), EngineError> {
        let mut job = planned.job.clone();
        if self.request.force {
            job.cells.iter().try_for_each(|cell| self.folder.forget(&cell.key))?;
        }
        if forget_state {
            let _ = std::fs::remove_file(&job.state);
        }
        let mut outstanding = Vec::new();
        for cell in job.cells {
            match self.folder.cell(&cell.key)? {
                CellState::Done(..) => {
                    summary.kept += 1;
                    if told == Told::All {
                        self.observer.cell(&planned.label, &cell.set, &CellEnd::Kept);
                    }
                }
                CellState::Failed(_) | CellState::Outstanding => outstanding.push(cell),
            }
        }
        job.cells = outstanding;
        if job.cells.is_empty() {
            return Ok(());
        }
        keep_needed_variants(&mut job);
        let mut running = Running::new(&planned.label, told, &job, self.folder, self.observer);
        let ended = running.run(self.request, self.worker);
        running.finish(ended, summary)
    }
}

/// Which ends of cells are said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    All,
    /// A search has too many cells for a line each.
    Failures,
}

/// Leaves out the variants of which no cell is left.
fn keep_needed_variants(job: &mut Job) {
    let needed = |variant: usize, cells: &[CellJob]| cells.iter().any(|it| it.variant == variant);
    let mut kept = Vec::new();
    let mut places = Vec::new();
    for (place, variant) in job.variants.drain(..).enumerate() {
        places.push(kept.len());
        if needed(place, &job.cells) {
            kept.push(variant);
        }
    }
    job.cells.iter_mut().for_each(|cell| cell.variant = places[cell.variant]);
    job.variants = kept;
}

/// A job that runs.
struct Running<'a> {
    label: &'a str,
    told: Told,
    job: &'a Job,
    folder: &'a RunFolder,
    observer: &'a dyn Observer,
    /// How each cell ended, as far as is known.
    ends: Vec<Option<CellEnd>>,
    /// Why no further cell can be scored.
    stopped: Option<(Outcome, String)>,
    write_failed: Option<(String, bool)>,
    /// The cell that is being scored, and how far it is.
    scoring: Option<(usize, usize)>,
}

impl<'a> Running<'a> {
    fn new(
        label: &'a str,
        told: Told,
        job: &'a Job,
        folder: &'a RunFolder,
        observer: &'a dyn Observer,
    ) -> Self {
        let ends = vec![None; job.cells.len()];
        Self {
            label,
            told,
            job,
            folder,
            observer,
            ends,
            stopped: None,
            write_failed: None,
            scoring: None,
        }
    }

    fn run(&mut self, request: &BenchRequest, worker: &WorkerCommand) -> Result<(), Ended> {
        if request.isolation == Isolation::None {
            let (sender, receiver) = std::sync::mpsc::channel();
            let say = Arc::new(move |event| {
                // The receiver outlives the job.
                let _ = sender.send(event);
            });
            let job = self.job.clone();
            let thread = std::thread::spawn(move || run_job(&job, &(say as _)));
            receiver.iter().for_each(|event| self.hear(event));
            return thread.join().map_err(|_| Ended {
                outcome: Outcome::Panicked,
                message: "the worker's thread panicked".to_owned(),
            });
        }
        let limits = Limits { silence: request.silence, memory: request.memory_limit };
        let job = Request::Run { job: Box::new(self.job.clone()) };
        let (observer, label) = (self.observer, self.label);
        supervise(
            worker,
            &job,
            request.threads,
            &limits,
            |event| self.hear(event),
            |line| observer.debug(&format!("{label}: {line}")),
            |event| *event == Event::Done,
        )
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Scoring { cell, done, total } => {
                let already = match self.scoring {
                    Some((current, already)) if current == cell => already,
                    _ => {
                        self.end_progress();
                        let what = format!("{} on {}", self.label, self.job.cells[cell].set);
                        self.observer.begin(&what, total as u64);
                        0
                    }
                };
                self.observer.advance((done - already) as u64);
                self.scoring = Some((cell, done));
            }
            Event::Log { level, message } if level >= 2 => {
                self.observer.warn(&format!("{}: {message}", self.label));
            }
            Event::Log { message, .. } => {
                self.observer.debug(&format!("{}: {message}", self.label));
            }
            Event::CellDone { cell, wall_s, n_images } => {
                self.end(cell, CellEnd::Done { wall_s, n_images });
            }
            Event::CellFailed { cell, outcome, message } => {
                self.end(cell, CellEnd::Failed { outcome, message });
            }
            Event::Failed { outcome, message } => self.stopped = Some((outcome, message)),
            Event::WriteFailed { message, disk_full } => {
                self.write_failed = Some((message, disk_full));
            }
            Event::Fitted { wall_s } => {
                self.observer.debug(&format!("{}: fitted in {wall_s:.2} s", self.label));
            }
            Event::Fitting | Event::Progress { .. } | Event::Done => {}
        }
    }

    fn end_progress(&mut self) {
        if self.scoring.take().is_some() {
            self.observer.end();
        }
    }

    fn end(&mut self, cell: usize, end: CellEnd) {
        self.end_progress();
        if self.told == Told::All || matches!(end, CellEnd::Failed { .. }) {
            let CellJob { set, variant, .. } = &self.job.cells[cell];
            self.observer.cell(&self.job.variants[*variant].label, set, &end);
        }
        self.ends[cell] = Some(end);
    }

    /// Gives every cell its end, and writes the failures down.
    fn finish(
        mut self,
        ended: Result<(), Ended>,
        summary: &mut Summary,
    ) -> Result<(), EngineError> {
        self.end_progress();
        if let Some((message, disk_full)) = self.write_failed.take() {
            let kind = if disk_full {
                std::io::ErrorKind::StorageFull
            } else {
                std::io::ErrorKind::PermissionDenied
            };
            let path = self.folder.root().join("cells");
            let source = std::io::Error::new(kind, message);
            return Err(RecordError::Write { path, source }.into());
        }
        let reason = match (self.stopped.take(), ended) {
            (Some(reason), _) => Some(reason),
            (None, Err(ended)) => Some((ended.outcome, ended.message)),
            (None, Ok(())) => None,
        };
        for nth in 0..self.ends.len() {
            if self.ends[nth].is_none() {
                let (outcome, message) = reason.clone().unwrap_or_else(|| {
                    (Outcome::Error, "the worker said nothing about this cell".to_owned())
                });
                self.end(nth, CellEnd::Failed { outcome, message });
            }
        }
        // A detector that brings its process down after its last score is no sound one.
        if let Some((outcome, message)) = reason
            && self.ends.iter().all(|end| matches!(end, Some(CellEnd::Done { .. })))
        {
            self.observer.warn(&format!(
                "{}: all scores are there, but the worker ended badly ({outcome}): {message}",
                self.label
            ));
        }
        for (cell, end) in self.job.cells.iter().zip(&self.ends) {
            match end {
                Some(CellEnd::Failed { outcome, message }) => {
                    summary.failed += 1;
                    self.folder.write_failure(&Failure {
                        schema: SCHEMA,
                        key: cell.key.clone(),
                        detector: self.job.detector.id.clone(),
                        set: cell.set.clone(),
                        outcome: outcome.clone(),
                        message: message.clone(),
                    })?;
                }
                _ => summary.done += 1,
            }
        }
        Ok(())
    }
}
