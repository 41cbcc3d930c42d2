//! Exit codes, and how a failure is said.

use std::io::Write;

use oodbench_datasets::DatasetError;
use oodbench_engine::text::chain;
use oodbench_engine::{EngineError, ErrorKind};
use oodbench_reports::ReportError;

/// Everything that was asked for is done.
pub(crate) const DONE: u8 = 0;
/// What nobody foresaw.
pub(crate) const UNFORESEEN: u8 = 1;
/// What was typed makes no sense.
pub(crate) const USAGE: u8 = 2;
/// Nothing is left to run.
pub(crate) const NOTHING_SELECTED: u8 = 4;
/// A report of a run that is not finished, or a training that a signal stopped.
pub(crate) const OUTSTANDING: u8 = 5;
/// What the run needs is not there or broken.
pub(crate) const SETUP: u8 = 96;
/// A batch does not fit into the memory of a GPU. Of a detector it is the outcome of its cells.
pub(crate) const OUT_OF_MEMORY: u8 = 97;
/// Cells failed; the others are finished. Or a training diverged.
pub(crate) const CELLS_FAILED: u8 = 100;
/// A pack was refused, or did not pass the check.
pub(crate) const PLUGIN_REFUSED: u8 = 103;
/// A result cannot be saved.
pub(crate) const WRITE_FAILED: u8 = 110;

/// A failure as the user sees it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) code: u8,
}

impl Failure {
    /// What was typed makes no sense.
    pub(crate) fn usage(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, code: USAGE }
    }

    /// A batch does not fit into the memory of a GPU; as many images would.
    pub(crate) fn out_of_memory(message: impl Into<String>, fits: Option<usize>) -> Self {
        let hint = match fits {
            Some(fits) => format!("`--batch-size {fits}`, or `--batch-size auto`"),
            None => "`nvidia-smi` shows what else takes memory".to_owned(),
        };
        Self { message: message.into(), hint: Some(hint), code: OUT_OF_MEMORY }
    }

    /// Says it on stderr.
    pub(crate) fn say(&self) {
        let mut text = format!("error: {}\n", self.message);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {hint}\n"));
        }
        // There is nowhere else to say it.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = match error.kind() {
            ErrorKind::Usage => USAGE,
            ErrorKind::Setup => SETUP,
            ErrorKind::PackRefused => PLUGIN_REFUSED,
            ErrorKind::NothingSelected => NOTHING_SELECTED,
            ErrorKind::Write => WRITE_FAILED,
            ErrorKind::OutOfMemory => OUT_OF_MEMORY,
            ErrorKind::Unforeseen => UNFORESEEN,
        };
        Self { message: chain(&error), hint: error.hint(), code }
    }
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        let code = if error.is_write_failure() { WRITE_FAILED } else { SETUP };
        Self { message: chain(&error), hint: error.hint().map(str::to_owned), code }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { message: chain(error.as_ref()), hint: None, code: UNFORESEEN }
    }
}

/// Writes data to stdout; a reader that has seen enough is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure {
            message: format!("write to stdout: {error}"),
            hint: None,
            code: WRITE_FAILED,
        }),
        _ => Ok(()),
    }
}
