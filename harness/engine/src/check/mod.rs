//! The conformance check: whether a detector keeps the contract of the scoring ABI.
//!
//! Everything runs on the detector's own worked example, in this process: whoever does not trust
//! the pack runs it in a worker, where a crash ends the worker and a hang meets a time limit.
//! [`check_each`] says before each check which one begins, so that the worker's end can be put
//! down to it.

pub mod memory;
pub(crate) mod network;

mod descriptor;
mod example;
mod run;
#[cfg(test)]
mod tests;
mod variants;

use oodbench_abi::{DetectorBox, ErrorCode, HostBox, RawError};
use serde::{Deserialize, Serialize};

use crate::pack::{DetectorInfo, Pack};
use example::Prepared;

/// How one check of one detector came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckResult {
    /// Id of the detector.
    pub detector: String,
    /// Name of the check.
    pub check: String,
    pub passed: bool,
    /// Why it failed, one line; empty when passed.
    pub message: String,
}

/// What [`check_each`] reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckEvent {
    /// The check with this name begins.
    Started(String),
    /// It ended.
    Ended(CheckResult),
}

/// Why a check failed: one line.
type Verdict = Result<(), String>;

/// One check: its name, and what it does.
type Check = (&'static str, fn(&Subject<'_>) -> Verdict);

/// Checks that look at the descriptor and at `create` alone.
const WITHOUT_DATA: [Check; 4] = [
    ("descriptor", descriptor::sane),
    ("defaults", descriptor::defaults_are_accepted),
    ("sweep", descriptor::sweep_is_accepted),
    ("unknown-parameter", descriptor::unknown_parameters_are_refused),
];

/// Checks that fit and score the worked example.
const WITH_DATA: [Check; 10] = [
    ("worked-example", run::worked_example),
    ("determinism", run::determinism),
    ("batch-split", run::batch_split),
    ("order", run::order),
    ("empty-batch", run::empty_batch),
    ("wrong-shapes", run::wrong_shapes),
    ("non-finite-input", run::non_finite_input),
    ("state", run::state_round_trip),
    ("score-before-fit", run::score_before_fit),
    ("variants", variants::variants),
];

/// Checks one detector of a pack.
pub fn check(pack: &Pack, detector: &str) -> Vec<CheckResult> {
    let mut results = Vec::new();
    check_each(pack, detector, &mut |event| {
        if let CheckEvent::Ended(result) = event {
            results.push(result);
        }
    });
    results
}

/// Checks one detector of a pack, and says of each check when it starts and how it ended.
pub fn check_each(pack: &Pack, detector: &str, report: &mut dyn FnMut(CheckEvent)) {
    let found = pack.descriptors().map_err(|error| error.to_string()).and_then(|all| {
        let found = all.into_iter().find(|info| info.id == detector);
        found.ok_or_else(|| format!("the pack has no detector `{detector}`"))
    });
    let create = |params: &str, host: HostBox| pack.create(detector, params, host);
    match found {
        Ok(info) => check_detector(&info, &create, report),
        Err(message) => Report { detector, report }.of("descriptor", || Err(message)),
    }
}

fn check_detector(info: &DetectorInfo, create: &Create<'_>, report: &mut dyn FnMut(CheckEvent)) {
    let prepared = Prepared::new(info);
    let example = prepared.as_ref().ok();
    let subject = Subject { info, create, prepared: example };
    let mut report = Report { detector: &info.id, report };
    for (name, run) in WITHOUT_DATA {
        report.of(name, || run(&subject));
    }
    match &prepared {
        Ok(_) => WITH_DATA.iter().for_each(|(name, run)| report.of(name, || run(&subject))),
        // Nothing can be fitted or scored without an example.
        Err(message) => report.of(WITH_DATA[0].0, || Err(message.clone())),
    }
}

struct Report<'a> {
    detector: &'a str,
    report: &'a mut dyn FnMut(CheckEvent),
}

impl Report<'_> {
    fn of(&mut self, check: &str, run: impl FnOnce() -> Verdict) {
        (self.report)(CheckEvent::Started(check.to_owned()));
        let verdict = run();
        (self.report)(CheckEvent::Ended(CheckResult {
            detector: self.detector.to_owned(),
            check: check.to_owned(),
            passed: verdict.is_ok(),
            message: verdict.err().map(|text| one_line(&text)).unwrap_or_default(),
        }));
    }
}

/// Makes a detector from its parameters as JSON.
type Create<'a> = dyn Fn(&str, HostBox) -> Result<DetectorBox, RawError> + 'a;

/// The detector under check.
struct Subject<'a> {
    info: &'a DetectorInfo,
    create: &'a Create<'a>,
    /// Its worked example; absent where that cannot be used.
    prepared: Option<&'a Prepared>,
}

impl Subject<'_> {
    /// The worked example.
    ///
    /// # Errors
    /// There is none.
    fn example(&self) -> Result<&Prepared, String> {
        self.prepared.ok_or_else(|| "the descriptor has no worked example".to_owned())
    }
}

/// An error of the detector, with what was tried.
fn said(what: &str, error: &RawError) -> String {
    let verb = if error.code == ErrorCode::PANICKED { "panicked" } else { "failed" };
    format!("{what} {verb}: {}", error.message)
}

/// An error is fine, a panic is not.
fn no_panic<T>(what: &str, result: Result<T, RawError>) -> Verdict {
    match result {
        Err(error) if error.code == ErrorCode::PANICKED => Err(said(what, &error)),
        _ => Ok(()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
