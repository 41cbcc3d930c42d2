//! What packs there are: each file that is found is opened in a worker process, because opening a
//! library runs its code.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bench::Trial;
use crate::check::CheckResult;
use crate::error::EngineError;
use crate::pack::{Catalogue, Origin, PackSummary, SearchPath};
use crate::process::{Answer, Request};
use crate::supervise::{Ended, Limits, WorkerCommand, supervise};

/// How long opening a library, or checking a detector, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A library that was named and is no pack of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub path: PathBuf,
    /// One line.
    pub message: String,
    pub hint: Option<String>,
    /// Many lines, for `-v`.
    pub details: Option<String>,
    /// Whether it is something else than a pack altogether.
    pub foreign: bool,
}

/// Asks a worker for its one answer.
fn ask(worker: &WorkerCommand, request: &Request) -> Result<Answer, Ended> {
    let limits = Limits { silence: PATIENCE, memory: None };
    let mut answer = None;
    supervise(worker, request, 1, &limits, |a: Answer| answer = Some(a), |_| (), |_| true)?;
    answer.ok_or_else(|| Ended {
        outcome: oodbench_record::Outcome::Error,
        message: "the worker gave no answer".to_owned(),
    })
}

/// Opens a library in a worker.
///
/// # Errors
/// Why it is refused, or how it brought the worker down.
pub fn probe(worker: &WorkerCommand, library: &Path) -> Result<PackSummary, Refused> {
    let path = library.to_owned();
    let broken = |message: String| Refused {
        path: path.clone(),
        message,
        hint: Some("it ends the process that opens it: `-v` shows what it says".to_owned()),
        details: None,
        foreign: false,
    };
    match ask(worker, &Request::Probe { library: path.clone() }) {
        Ok(Answer::Summary { summary }) => Ok(*summary),
        Ok(Answer::Refused { message, hint, details, foreign }) => {
            Err(Refused { path, message, hint, details, foreign })
        }
        Ok(Answer::Checked { .. } | Answer::Tried { .. }) => {
            Err(broken(format!("load pack `{}`: no answer", path.display())))
        }
        Err(ended) => Err(broken(format!("load pack `{}`: {}", path.display(), ended.message))),
    }
}

/// Everything that is found on the search path, and what was refused. A file that nobody named
/// and that is no pack at all is passed over.
///
/// # Errors
/// A place that was named and is not there, a library that was named and is refused, two packs
/// with the same detector.
pub fn catalogue(
    worker: &WorkerCommand,
    search: &SearchPath,
) -> Result<(Catalogue, Vec<Refused>), EngineError> {
    let mut packs: Vec<PackSummary> = Vec::new();
    let mut refused = Vec::new();
    for candidate in search.candidates()? {
        match probe(worker, &candidate.path) {
            Ok(summary) => packs.push(summary),
            Err(refusal) if candidate.origin == Origin::Named => {
                return Err(EngineError::Refused(Box::new(refusal)));
            }
            Err(refusal) if refusal.foreign => {}
            Err(refusal) => refused.push(refusal),
        }
    }
    Ok((Catalogue::new(packs)?, refused))
}

/// Runs the conformance check on one detector in a worker; a worker that it brings down is a
/// result like any other.
pub fn check(worker: &WorkerCommand, library: &Path, detector: &str) -> Vec<CheckResult> {
    let request = Request::Check { library: library.to_owned(), detector: detector.to_owned() };
    let failed = |message: String| {
        let (detector, check) = (detector.to_owned(), "survives the check".to_owned());
        vec![CheckResult { detector, check, passed: false, message }]
    };
    match ask(worker, &request) {
        Ok(Answer::Checked { results }) => results,
        Ok(Answer::Refused { message, .. }) => failed(message),
        Ok(Answer::Summary { .. } | Answer::Tried { .. }) => {
            failed("the worker gave another answer".to_owned())
        }
        Err(ended) => failed(format!("{}: {}", ended.outcome, ended.message)),
    }
}

/// The first detector of a library that takes none of the parameters that it is to run with, and
/// what it says. A worker that they bring down tells nothing: the run names that end.
pub(crate) fn try_values(
    worker: &WorkerCommand,
    library: &Path,
    trials: &[Trial],
) -> Option<(String, String)> {
    let request = Request::Try { library: library.to_owned(), trials: trials.to_vec() };
    match ask(worker, &request) {
        Ok(Answer::Tried { refused }) => refused,
        _ => None,
    }
}
