//! How a run is shown: a bar with ETA on a terminal, one line for each finished unit elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use oodbench_datasets::Progress;
use oodbench_engine::bench::{CellEnd, Observer};
use oodbench_record::SetRef;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    /// A bar.
    Bar,
    /// One line for each finished unit.
    Counter,
    /// Nothing but warnings.
    None,
}

/// Talks on stderr.
pub(crate) struct Talk {
    mode: ProgressMode,
    verbose: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Talk {
    pub(crate) fn new(mode: ProgressMode, verbose: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let mode = match mode {
            ProgressMode::Auto if on_terminal => ProgressMode::Bar,
            ProgressMode::Auto => ProgressMode::Counter,
            other => other,
        };
        Self { mode, verbose, bar: Mutex::new(None) }
    }

    /// Whether progress is a bar.
    pub(crate) fn has_bar(&self) -> bool {
        self.mode == ProgressMode::Bar
    }

    /// A line above the bar.
    pub(crate) fn line(&self, text: &str) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let write = || {
            // Without stderr nobody listens.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &*bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// A line that `--progress none` leaves out.
    pub(crate) fn note(&self, text: &str) {
        if self.mode != ProgressMode::None {
            self.line(text);
        }
    }
}

impl Progress for Talk {
    fn begin(&self, what: &str, total: u64) {
        match self.mode {
            ProgressMode::Bar => {
                let target = ProgressDrawTarget::stderr();
                let bar = ProgressBar::with_draw_target((total > 0).then_some(total), target);
                let style = "{msg} {wide_bar} {pos}/{len} {per_sec} {eta} left";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.set_message(what.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
                *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
            }
            ProgressMode::Counter if !what.contains(" on ") => match total {
                // Waiting has no number of images.
                0 => self.line(what),
                1 => self.line(&format!("{what}: 1 image")),
                _ => self.line(&format!("{what}: {total} images")),
            },
            _ => {}
        }
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(steps);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Talk {
    fn warn(&self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    fn debug(&self, message: &str) {
        if self.verbose {
            self.line(message);
        }
    }

    fn note(&self, message: &str) {
        Self::note(self, message);
    }

    fn detector(&self, label: &str, nth: usize, of: usize) {
        self.note(&format!("[{nth}/{of}] {label}"));
    }

    fn cell(&self, label: &str, set: &SetRef, end: &CellEnd) {
        match end {
            CellEnd::Kept => self.debug(&format!("  {set}: kept")),
            CellEnd::Done { wall_s, n_images } => {
                self.note(&format!("  {set}: {n_images} images in {wall_s:.2} s"));
            }
            CellEnd::Failed { outcome, message } => {
                self.line(&format!("  {label} on {set}: FAILED, {outcome}: {message}"));
            }
        }
    }
}
