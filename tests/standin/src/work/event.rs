//! Events: marks in a stream's work, which others wait for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::capture::{Capture, Clock, capturing, not_while_blocking_streams_capture};
use super::{LAZY, Stream, finish_to, healthy, stream, submit};
use crate::api::{Handles, Outcome, lock, refusal};
use crate::driver::codes::*;

#[derive(Default)]
struct Recorded {
    at: Option<Instant>,
    work: Option<(Arc<Stream>, u64)>,
    captured: Option<(Arc<Capture>, Clock)>,
}

pub(crate) struct Event {
    pub(crate) timing: bool,
    last: Mutex<Recorded>,
}

pub(crate) static EVENTS: Handles<Event> = Handles::new("event");

pub(crate) fn create_event(flags: u32) -> usize {
    EVENTS.insert(Event { timing: flags & 2 == 0, last: Mutex::default() })
}

/// # Errors
/// No such event or stream; the capture was invalidated.
pub(crate) fn record(event: usize, handle: usize) -> Outcome {
    healthy()?;
    let event = EVENTS.get(event, INVALID_HANDLE)?;
    let stream = stream(handle)?;
    if let Some(capture) = capturing(&stream)? {
        let clock = capture.clock_of(&stream);
        lock(&event.last).captured = Some((capture, clock));
        return Ok(());
    }
    if stream.is_legacy() {
        not_while_blocking_streams_capture()?;
    }
    let position = stream.pushed.load(Ordering::Acquire);
    let work = Some((stream, position));
    *lock(&event.last) = Recorded { at: Some(Instant::now()), work, captured: None };
    Ok(())
}

/// # Errors
/// No such event or stream; what capturing forbids.
pub(crate) fn wait(handle: usize, event: usize) -> Outcome {
    healthy()?;
    let event = EVENTS.get(event, INVALID_HANDLE)?;
    let waiting = stream(handle)?;
    let (captured, work) = {
        let last = lock(&event.last);
        (last.captured.clone(), last.work.clone())
    };
    let own = capturing(&waiting)?;
    match (captured, own) {
        (Some((theirs, clock)), own) => {
            match own {
                Some(own) if !Arc::ptr_eq(&own, &theirs) => {
                    let line = "the event belongs to another capture";
                    return Err(refusal(STREAM_CAPTURE_MERGE, line));
                }
                Some(_) => {}
                None => *lock(&waiting.capture) = Some(theirs.clone()),
            }
            theirs.join(&waiting, clock);
            Ok(())
        }
        (None, Some(own)) => {
            if work.is_none() {
                return Ok(());
            }
            own.invalidate();
            let line = "a captured stream waits for an event recorded outside the capture";
            Err(refusal(STREAM_CAPTURE_ISOLATION, line))
        }
        (None, None) => match work {
            Some((other, position)) if *LAZY && other.id != waiting.id => {
                submit(handle, "wait for event", move || finish_to(&other, position))
            }
            _ => Ok(()),
        },
    }
}

/// Waits for an event.
///
/// # Errors
/// No such event; it was last recorded in a capture; those of the work.
pub(crate) fn synchronize_event(handle: usize) -> Outcome {
    healthy()?;
    let event = EVENTS.get(handle, INVALID_HANDLE)?;
    let last = lock(&event.last);
    if let Some((capture, _)) = &last.captured {
        capture.invalidate();
        return Err(refusal(CAPTURED_EVENT, "the event was last recorded in a capture"));
    }
    let work = last.work.clone();
    drop(last);
    work.map_or(Ok(()), |(stream, position)| finish_to(&stream, position))
}

/// Milliseconds between two events.
///
/// # Errors
/// One was created without timing, never recorded, or recorded in a capture.
pub(crate) fn elapsed_ms(start: usize, end: usize) -> Outcome<f32> {
    let at = |handle| {
        let event = EVENTS.get(handle, INVALID_HANDLE)?;
        if !event.timing {
            return Err(refusal(INVALID_HANDLE, "the event was created without timing"));
        }
        let last = lock(&event.last);
        if last.captured.is_some() {
            return Err(refusal(CAPTURED_EVENT, "the event was last recorded in a capture"));
        }
        last.at.ok_or_else(|| refusal(INVALID_HANDLE, "the event was never recorded"))
    };
    let (start, end) = (at(start)?, at(end)?);
    let forwards = end.saturating_duration_since(start).as_secs_f32();
    let backwards = start.saturating_duration_since(end).as_secs_f32();
    Ok((forwards - backwards) * 1e3)
}
