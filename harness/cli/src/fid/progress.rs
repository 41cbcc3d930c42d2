//! How far the images of a set are: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::HumanDuration;
use oodbench_datasets::Progress;

use crate::observer::Talk;

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The images of one set.
pub(super) struct Count<'a> {
    talk: &'a Talk,
    what: String,
    total: usize,
    done: usize,
    start: Instant,
    last_line: Instant,
}

impl<'a> Count<'a> {
    /// Work on `total` images of `what` begins.
    pub(super) fn begin(talk: &'a Talk, what: &str, total: usize) -> Self {
        talk.begin(what, total as u64);
        let start = Instant::now();
        Self { talk, what: what.to_owned(), total, done: 0, start, last_line: start }
    }

    pub(super) fn advance(&mut self, images: usize) {
        self.done += images;
        self.talk.advance(images as u64);
        if self.talk.has_bar() || self.done == self.total || self.last_line.elapsed() < LINE_EVERY {
            return;
        }
        self.last_line = Instant::now();
        let Self { what, total, done, .. } = self;
        let seconds = self.start.elapsed().as_secs_f64();
        let speed = *done as f64 / seconds;
        let left = Duration::from_secs_f64((*total - *done) as f64 / speed.max(1e-9));
        let left = HumanDuration(left);
        self.talk.note(&format!("{what}: {done} of {total}, {speed:.1} images/s, {left} left"));
    }

    pub(super) fn end(self) {
        self.talk.end();
        let Self { what, done, .. } = self;
        let seconds = self.start.elapsed().as_secs_f64();
        let speed = done as f64 / seconds.max(1e-9);
        self.talk.note(&format!("{what}: {done} images in {seconds:.1} s, {speed:.1} a second"));
    }
}
