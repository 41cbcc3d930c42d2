//! Streams and events.

use std::ffi::{c_int, c_uint, c_void};

use super::codes::*;
use super::device::in_context;
use super::{call, entries, memory};
use crate::api::{put, refusal};
use crate::work;

entries! { call;
    fn cuStreamCreate(stream: *mut usize, flags: c_uint) {
        in_context()?;
        if flags > 1 {
            return Err(refusal(INVALID_VALUE, format!("flags expected 0 or 1, got {flags}")));
        }
        put(stream, work::create_stream(flags), INVALID_VALUE)
    }
    fn cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, _priority: c_int) {
        in_context()?;
        if flags > 1 {
            return Err(refusal(INVALID_VALUE, format!("flags expected 0 or 1, got {flags}")));
        }
        put(stream, work::create_stream(flags), INVALID_VALUE)
    }
    fn cuStreamDestroy_v2(stream: usize) {
        in_context()?;
        work::destroy_stream(stream)
    }
    fn cuStreamSynchronize(stream: usize) {
        in_context()?;
        let stream = work::stream(stream)?;
        work::not_capturing(&stream, "synchronising")?;
        work::finish(&stream)?;
        memory().settle();
        Ok(())
    }
    fn cuStreamQuery(stream: usize) {
        in_context()?;
        let stream = work::stream(stream)?;
        work::not_capturing(&stream, "a query")?;
        work::finish(&stream)
    }
    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) {
        in_context()?;
        work::wait(stream, event)
    }
    fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) {
        in_context()?;
        work::begin_capture(stream, mode)
    }
    fn cuStreamIsCapturing(stream: usize, status: *mut c_uint) {
        in_context()?;
        put(status, work::capture_status(&*work::stream(stream)?), INVALID_VALUE)
    }
    fn cuStreamAttachMemAsync(stream: usize, _start: u64, _len: usize, _flags: c_uint) {
        in_context()?;
        work::stream(stream).map(|_| ())
    }
    fn cuLaunchHostFunc(stream: usize, function: Option<extern "C" fn(*mut c_void)>,
        argument: *mut c_void) {
        in_context()?;
        let function = function.ok_or_else(|| refusal(INVALID_VALUE, "no function"))?;
        let argument = argument as usize;
        work::submit(stream, "function of the host", move || {
            function(argument as *mut c_void);
            Ok(())
        })
    }
    fn cuEventCreate(event: *mut usize, flags: c_uint) {
        in_context()?;
        put(event, work::create_event(flags), INVALID_VALUE)
    }
    fn cuEventDestroy_v2(event: usize) {
        in_context()?;
        work::EVENTS.remove(event, INVALID_HANDLE).map(|_| ())
    }
    fn cuEventRecord(event: usize, stream: usize) {
        in_context()?;
        work::record(event, stream)
    }
    fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: c_uint) {
        in_context()?;
        work::record(event, stream)
    }
    fn cuEventSynchronize(event: usize) {
        in_context()?;
        work::forbid_during_capture("waiting for an event")?;
        work::synchronize_event(event)?;
        memory().settle();
        Ok(())
    }
    fn cuEventQuery(event: usize) {
        in_context()?;
        work::forbid_during_capture("a query of an event")?;
        work::synchronize_event(event)
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) {
        in_context()?;
        put(milliseconds, work::elapsed_ms(start, end)?, INVALID_VALUE)
    }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) {
        in_context()?;
        put(milliseconds, work::elapsed_ms(start, end)?, INVALID_VALUE)
    }
}
