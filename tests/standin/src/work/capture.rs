//! Captures: work that is recorded instead of run, across the streams that events draw in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use super::{Job, OWN, STREAMS, Stream, finish, stream};
use crate::api::{Outcome, lock, refusal};
use crate::driver::codes::*;

/// How much of each stream's work something comes after.
pub(super) type Clock = BTreeMap<usize, u64>;

pub(crate) struct Capture {
    mode: u32,
    thread: ThreadId,
    origin: usize,
    pub(crate) jobs: Mutex<Vec<Job>>,
    dead: AtomicBool,
    clocks: Mutex<BTreeMap<usize, Clock>>,
    /// The addresses of its allocation nodes.
    pub(crate) allocations: Mutex<Vec<usize>>,
}

static CAPTURES: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

impl Capture {
    /// Makes it fail when it ends, and every use of its streams until then.
    pub(super) fn invalidate(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Adds work of a stream.
    pub(super) fn add(&self, stream: &Stream, job: Job) {
        lock(&self.jobs).push(job);
        let mut clocks = lock(&self.clocks);
        let clock = clocks.entry(stream.id).or_default();
        *clock.entry(stream.id).or_default() += 1;
    }

    /// What an event that is recorded now in a stream comes after.
    pub(super) fn clock_of(&self, stream: &Stream) -> Clock {
        lock(&self.clocks).get(&stream.id).cloned().unwrap_or_default()
    }

    /// What the stream records from now on comes after all of this.
    pub(super) fn join(&self, stream: &Stream, clock: Clock) {
        let mut clocks = lock(&self.clocks);
        let joined = clocks.entry(stream.id).or_default();
        for (id, count) in clock {
            let seen = joined.entry(id).or_default();
            *seen = (*seen).max(count);
        }
    }
}

/// # Errors
/// A blocking stream captures; that capture is invalidated.
pub(super) fn not_while_blocking_streams_capture() -> Outcome {
    for other in STREAMS.all() {
        if let Some(capture) = other.captured_by().filter(|_| other.blocking) {
            capture.invalidate();
            let line = "the legacy stream is used while a blocking stream captures";
            return Err(refusal(STREAM_CAPTURE_IMPLICIT, line));
        }
    }
    Ok(())
}

/// The stream's capture, if one is on and sound.
///
/// # Errors
/// It is on and was invalidated.
pub(crate) fn capturing(stream: &Stream) -> Outcome<Option<Arc<Capture>>> {
    match stream.captured_by() {
        Some(capture) if capture.dead.load(Ordering::Acquire) => {
            let line = "the capture was invalidated before";
            Err(refusal(STREAM_CAPTURE_INVALIDATED, line))
        }
        other => Ok(other),
    }
}

/// Refuses what a captured stream cannot wait for, and invalidates the capture.
///
/// # Errors
/// The stream captures.
pub(crate) fn not_capturing(stream: &Stream, what: &str) -> Outcome {
    if let Some(capture) = stream.captured_by() {
        capture.invalidate();
        return Err(refusal(
            STREAM_CAPTURE_UNSUPPORTED,
            format!("{what} while the stream captures"),
        ));
    }
    Ok(())
}

/// Refuses calls that may wait for the device while a capture forbids them.
///
/// # Errors
/// A capture in global mode is on, or one in thread-local mode that this thread began.
pub(crate) fn forbid_during_capture(what: &str) -> Outcome {
    for capture in lock(&CAPTURES).iter() {
        let own = capture.thread == std::thread::current().id();
        if capture.mode == 0 || (capture.mode == 1 && own) {
            capture.invalidate();
            let line = format!("{what} may wait for the device, and a capture is on");
            return Err(refusal(STREAM_CAPTURE_UNSUPPORTED, line));
        }
    }
    Ok(())
}

/// Refuses to wait for a whole context, whatever the mode, and invalidates the captures in it.
///
/// # Errors
/// A capture is on.
pub(crate) fn not_while_anything_captures(what: &str) -> Outcome {
    let captures = lock(&CAPTURES);
    if captures.is_empty() {
        return Ok(());
    }
    captures.iter().for_each(|capture| capture.invalidate());
    let line = format!("{what} while a stream of it captures");
    Err(refusal(STREAM_CAPTURE_UNSUPPORTED, line))
}

/// # Errors
/// The stream is the legacy one, captures already, or the mode is none.
pub(crate) fn begin_capture(handle: usize, mode: u32) -> Outcome {
    let stream = stream(handle)?;
    if stream.is_legacy() {
        return Err(refusal(STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot capture"));
    }
    if mode > 2 {
        return Err(refusal(INVALID_VALUE, format!("capture mode expected 0, 1 or 2, got {mode}")));
    }
    if stream.captured_by().is_some() {
        return Err(refusal(INVALID_VALUE, "the stream captures already"));
    }
    finish(&stream)?;
    let capture = Arc::new(Capture {
        mode,
        thread: std::thread::current().id(),
        origin: stream.id,
        jobs: Mutex::default(),
        dead: AtomicBool::new(false),
        clocks: Mutex::new(BTreeMap::from([(stream.id, Clock::new())])),
        allocations: Mutex::default(),
    });
    lock(&CAPTURES).push(capture.clone());
    *lock(&stream.capture) = Some(capture);
    Ok(())
}

/// Ends a capture and hands out what it recorded.
///
/// # Errors
/// None is on, it began elsewhere, was invalidated, or has streams that were never joined.
pub(crate) fn end_capture(handle: usize) -> Outcome<Arc<Capture>> {
    let stream = stream(handle)?;
    let capture = stream.captured_by();
    let capture = capture.ok_or_else(|| refusal(INVALID_VALUE, "the stream does not capture"))?;
    if capture.origin != stream.id {
        return Err(refusal(STREAM_CAPTURE_UNMATCHED, "the capture began in another stream"));
    }
    if capture.mode != 2 && capture.thread != std::thread::current().id() {
        return Err(refusal(STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread"));
    }
    lock(&CAPTURES).retain(|other| !Arc::ptr_eq(other, &capture));
    for other in STREAMS.all().iter().chain([&OWN.with(Arc::clone)]) {
        let mut held = lock(&other.capture);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &capture)) {
            *held = None;
        }
    }
    if capture.dead.load(Ordering::Acquire) {
        return Err(refusal(STREAM_CAPTURE_INVALIDATED, "the capture was invalidated"));
    }
    let clocks = lock(&capture.clocks).clone();
    let seen = &clocks[&capture.origin];
    for (id, clock) in &clocks {
        if clock.get(id).copied().unwrap_or(0) > seen.get(id).copied().unwrap_or(0) {
            let line = "work of another stream was captured and never waited for";
            return Err(refusal(STREAM_CAPTURE_UNJOINED, line));
        }
    }
    Ok(capture)
}

/// 0: no capture, 1: one is on, 2: it is invalidated.
pub(crate) fn capture_status(stream: &Stream) -> u32 {
    match stream.captured_by() {
        None => 0,
        Some(capture) if capture.dead.load(Ordering::Acquire) => 2,
        Some(_) => 1,
    }
}
