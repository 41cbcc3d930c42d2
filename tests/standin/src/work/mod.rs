//! Streams, events and captures: in which order work runs, and what may be recorded into a graph.
//!
//! Work runs at once when it is submitted, which is one of the schedules that the real device may
//! choose. With `STANDIN_LAZY=1` it runs as late as it may, which is another: then a missing wait
//! between two streams shows in the numbers.

mod capture;
mod event;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::api::{Handles, Outcome, Refusal, lock, refusal, say, switched_on};
use crate::driver::codes::*;
pub(crate) use capture::{
    Capture, begin_capture, capture_status, capturing, end_capture, forbid_during_capture,
    not_capturing, not_while_anything_captures,
};
pub(crate) use event::{EVENTS, create_event, elapsed_ms, record, synchronize_event, wait};

/// One piece of work on the device.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) run: Arc<dyn Fn() -> Outcome + Send + Sync>,
}

pub(crate) struct Stream {
    pub(crate) id: usize,
    /// Whether it waits for the legacy stream, and that for it.
    blocking: bool,
    capture: Mutex<Option<Arc<Capture>>>,
    queue: Mutex<VecDeque<Job>>,
    pushed: AtomicU64,
    done: AtomicU64,
}

static STREAMS: Handles<Stream> = Handles::new("stream");
static LAZY: LazyLock<bool> = LazyLock::new(|| switched_on("STANDIN_LAZY"));
static TRACE: LazyLock<bool> = LazyLock::new(|| switched_on("STANDIN_TRACE"));
/// The device does one thing at a time.
static DEVICE: Mutex<()> = Mutex::new(());
static SPOILED: Mutex<Option<Refusal>> = Mutex::new(None);

static LEGACY: LazyLock<Arc<Stream>> = LazyLock::new(|| Arc::new(Stream::new(1, true)));

thread_local! {
    static OWN: Arc<Stream> = Arc::new(Stream::new(2, true));
    static ON_DEVICE: Cell<bool> = const { Cell::new(false) };
}

impl Stream {
    fn new(id: usize, blocking: bool) -> Self {
        Self {
            id,
            blocking,
            capture: Mutex::new(None),
            queue: Mutex::default(),
            pushed: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    fn is_legacy(&self) -> bool {
        self.id == 1
    }

    pub(crate) fn captured_by(&self) -> Option<Arc<Capture>> {
        lock(&self.capture).clone()
    }
}

/// # Errors
/// The context is spoiled by what a kernel did.
pub(crate) fn healthy() -> Outcome {
    // The line was said when it happened; from then on the code alone answers.
    match &*lock(&SPOILED) {
        Some(refusal) => Err(Refusal { code: refusal.code, line: String::new() }),
        None => Ok(()),
    }
}

pub(crate) fn create_stream(flags: u32) -> usize {
    let mut stream = Stream::new(0, flags & 1 == 0);
    static NEXT: AtomicU64 = AtomicU64::new(3);
    stream.id = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    STREAMS.insert(stream)
}

/// The stream of a handle, which may be one of the two that always exist.
///
/// # Errors
/// It is none.
pub(crate) fn stream(handle: usize) -> Outcome<Arc<Stream>> {
    match handle {
        0 | 1 => Ok(LEGACY.clone()),
        2 => Ok(OWN.with(Arc::clone)),
        _ => STREAMS.get(handle, INVALID_HANDLE),
    }
}

/// # Errors
/// No such stream; it captures.
pub(crate) fn destroy_stream(handle: usize) -> Outcome {
    let found = STREAMS.get(handle, INVALID_HANDLE)?;
    if found.captured_by().is_some() {
        return Err(refusal(STREAM_CAPTURE_UNSUPPORTED, "destroying a stream that captures"));
    }
    finish(&found)?;
    STREAMS.remove(handle, INVALID_HANDLE).map(|_| ())
}

/// Has the device to itself, also where it is called from work on the device.
fn on_device<R>(body: impl FnOnce() -> R) -> R {
    let nested = ON_DEVICE.replace(true);
    let guard = (!nested).then(|| lock(&DEVICE));
    let result = body();
    drop(guard);
    ON_DEVICE.set(nested);
    result
}

fn run_now(job: &Job) -> Outcome {
    healthy()?;
    let outcome = on_device(|| {
        if *TRACE {
            say(&job.name);
        }
        (job.run)()
    });
    outcome.map_err(|mut refusal| {
        if !refusal.line.starts_with('`') {
            refusal.line = format!("`{}`: {}", job.name, refusal.line);
        }
        if spoils_the_context(refusal.code) {
            lock(&SPOILED).get_or_insert(refusal.clone());
        }
        refusal
    })
}

/// Runs the stream's work up to a position.
fn finish_to(stream: &Stream, position: u64) -> Outcome {
    // Whoever takes work off the queue has to run it before anybody takes the next.
    on_device(|| {
        while stream.done.load(Ordering::Acquire) < position {
            let Some(job) = lock(&stream.queue).pop_front() else { break };
            let outcome = run_now(&job);
            stream.done.fetch_add(1, Ordering::AcqRel);
            outcome?;
        }
        Ok(())
    })
}

/// Runs all of the stream's work.
///
/// # Errors
/// Those of the work.
pub(crate) fn finish(stream: &Stream) -> Outcome {
    healthy()?;
    finish_to(stream, stream.pushed.load(Ordering::Acquire))
}

/// Runs all work of all streams.
///
/// # Errors
/// Those of the work.
pub(crate) fn finish_all() -> Outcome {
    STREAMS.all().iter().try_for_each(|stream| finish(stream))?;
    OWN.with(|own| finish(own))?;
    finish(&LEGACY)
}

/// Submits work: runs it, queues it, or records it where the stream captures.
///
/// # Errors
/// Those of the work; those of capturing.
pub(crate) fn submit(
    handle: usize,
    name: impl Into<String>,
    run: impl Fn() -> Outcome + Send + Sync + 'static,
) -> Outcome {
    healthy()?;
    let stream = stream(handle)?;
    let job = Job { name: name.into(), run: Arc::new(run) };
    if let Some(capture) = capturing(&stream)? {
        capture.add(&stream, job);
        return Ok(());
    }
    if stream.is_legacy() {
        capture::not_while_blocking_streams_capture()?;
    }
    if !*LAZY {
        return run_now(&job);
    }
    if stream.is_legacy() {
        STREAMS.all().iter().filter(|other| other.blocking).try_for_each(|other| finish(other))?;
        return run_now(&job);
    }
    lock(&stream.queue).push_back(job);
    stream.pushed.fetch_add(1, Ordering::AcqRel);
    Ok(())
}
