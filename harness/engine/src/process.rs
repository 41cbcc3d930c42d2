//! The inside of a worker process: a private channel for events, limits, and the four things that
//! a worker is asked to do.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use crate::bench::Trial;
use crate::check::CheckResult;
use crate::job::{Event, Job};
use crate::pack::{Pack, PackSummary};
use crate::text::chain;
use crate::worker::run_job;

/// What a worker is asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Say what is in a library that may be anything.
    Probe { library: PathBuf },
    /// Run the conformance check on one detector of a library.
    Check { library: PathBuf, detector: String },
    /// Make detectors of a library with the parameters that they are to run with.
    Try { library: PathBuf, trials: Vec<Trial> },
    /// Run a job.
    Run { job: Box<Job> },
}

/// What a worker answers to everything but [`Request::Run`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    Summary {
        summary: Box<PackSummary>,
    },
    /// The library is no pack of this host.
    Refused {
        message: String,
        hint: Option<String>,
        details: Option<String>,
        foreign: bool,
    },
    Checked {
        results: Vec<CheckResult>,
    },
    Tried {
        /// The first detector that takes none of its parameters, and what it says.
        refused: Option<(String, String)>,
    },
}

/// Serves one request from standard input, and returns when it is answered.
///
/// # Errors
/// A request that cannot be read; descriptors that cannot be had.
pub fn serve() -> std::io::Result<()> {
    // Should the host be killed, nobody waits for this process any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let channel = Arc::new(Mutex::new(take_standard_output()?));
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let request: Request = serde_json::from_slice(&text)?;
    match request {
        Request::Probe { library } => send(&channel, &answer_probe(&library)),
        Request::Check { library, detector } => {
            send(&channel, &answer_check(&library, &detector));
        }
        Request::Try { library, trials } => send(&channel, &answer_try(&library, &trials)),
        Request::Run { job } => {
            if let Some(limit) = job.memory_limit.filter(|_| job.device == "cpu") {
                limit_data(limit)?;
            }
            let say = move |event: Event| send(&channel, &event);
            run_job(&job, &(Arc::new(say) as _));
        }
    }
    Ok(())
}

/// Keeps standard output for events alone: what a detector prints goes to standard error.
fn take_standard_output() -> std::io::Result<File> {
    let private = rustix::io::fcntl_dupfd_cloexec(std::io::stdout().as_fd(), 3)?;
    rustix::stdio::dup2_stdout(std::io::stderr().as_fd())?;
    Ok(File::from(private))
}

/// An allocation beyond the limit fails, which ends the process with a message that says so,
/// before the machine is out of memory. Mapped files do not count.
fn limit_data(bytes: u64) -> std::io::Result<()> {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    Ok(rustix::process::setrlimit(Resource::Data, limit)?)
}

fn send<T: Serialize>(channel: &Mutex<File>, message: &T) {
    let mut line = serde_json::to_vec(message).expect("a message is plain data");
    line.push(b'\n');
    let mut file = channel.lock().unwrap_or_else(PoisonError::into_inner);
    // Without the host there is nobody to tell, and the death signal is on its way.
    let _ = file.write_all(&line);
}

fn refused(error: &crate::pack::PackError) -> Answer {
    Answer::Refused {
        message: chain(error),
        hint: error.hint(),
        details: error.details().map(str::to_owned),
        foreign: error.is_foreign(),
    }
}

fn answer_probe(library: &std::path::Path) -> Answer {
    match Pack::open(library).and_then(|pack| pack.summary()) {
        Ok(summary) => Answer::Summary { summary: Box::new(summary) },
        Err(error) => refused(&error),
    }
}

fn answer_check(library: &std::path::Path, detector: &str) -> Answer {
    match Pack::open(library) {
        Ok(pack) => Answer::Checked { results: crate::check::check(&pack, detector) },
        Err(error) => refused(&error),
    }
}

fn answer_try(library: &std::path::Path, trials: &[Trial]) -> Answer {
    match Pack::open(library) {
        Ok(pack) => {
            let mut refused =
                trials.iter().filter_map(|trial| Some((trial.detector.clone(), trial.run(&pack)?)));
            Answer::Tried { refused: refused.next() }
        }
        Err(error) => refused(&error),
    }
}
