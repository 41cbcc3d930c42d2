//! Allocating and freeing, memory pools, page-locked memory of the host.

use std::ffi::{c_int, c_uint, c_void};

use super::codes::*;
use super::device::{in_context, pool};
use super::memory::Kind;
use super::{call, entries, memory};
use crate::api::{Outcome, lock, put, refusal};
use crate::work::{self, capturing, forbid_during_capture, stream, submit};

/// # Errors
/// The pool is not the device's own.
pub(super) fn only_pool(asked: usize, pool: usize) -> Outcome {
    if asked == pool {
        return Ok(());
    }
    Err(refusal(INVALID_HANDLE, format!("{asked:#x} is not the device's pool")))
}

fn allocate_async(to: *mut u64, len: usize, handle: usize) -> Outcome {
    in_context()?;
    let stream = stream(handle)?;
    let Some(capture) = capturing(&stream)? else {
        let start = memory().allocate(len, Kind::Device)?;
        return put(to, start as u64, INVALID_VALUE);
    };
    let start = memory().promise(len)?;
    lock(&capture.allocations).push(start);
    submit(handle, format!("allocate {len} bytes at {start:#x}"), move || {
        memory().keep_promise(start)
    })?;
    put(to, start as u64, INVALID_VALUE)
}

fn free_async(start: usize, handle: usize) -> Outcome {
    in_context()?;
    if start == 0 {
        return Ok(());
    }
    let stream = stream(handle)?;
    let kind = memory().kind_at(start);
    // A free node takes the address of an allocation node, of this graph or another.
    let captured = capturing(&stream)?.is_some();
    let (fits, whose) = if captured {
        (matches!(kind, Some(Kind::Promised | Kind::Graph)), "is captured, and no graph's")
    } else {
        (matches!(kind, Some(Kind::Device | Kind::Graph)), "is not allocated")
    };
    if !fits {
        let line = format!("free of {start:#x}, which {whose}: {}", memory().explain(start));
        return Err(refusal(INVALID_VALUE, line));
    }
    submit(handle, format!("free {start:#x}"), move || memory().free(start))
}

entries! { call;
    fn cuMemAlloc_v2(to: *mut u64, len: usize) {
        in_context()?;
        forbid_during_capture("cuMemAlloc")?;
        let start = memory().allocate(len, Kind::Device)?;
        put(to, start as u64, INVALID_VALUE)
    }
    fn cuMemFree_v2(start: u64) {
        in_context()?;
        if start == 0 {
            return Ok(());
        }
        forbid_during_capture("cuMemFree")?;
        work::finish_all()?;
        memory().free(start as usize)
    }
    fn cuMemAllocAsync(to: *mut u64, len: usize, stream: usize) { allocate_async(to, len, stream) }
    fn cuMemAllocFromPoolAsync(to: *mut u64, len: usize, from: usize, stream: usize) {
        only_pool(from, pool())?;
        allocate_async(to, len, stream)
    }
    fn cuMemFreeAsync(start: u64, stream: usize) { free_async(start as usize, stream) }
    fn cuMemAllocManaged(to: *mut u64, len: usize, flags: c_uint) {
        in_context()?;
        forbid_during_capture("cuMemAllocManaged")?;
        if flags != 1 && flags != 2 {
            return Err(refusal(INVALID_VALUE, format!("flags expected 1 or 2, got {flags}")));
        }
        let start = memory().allocate(len, Kind::Device)?;
        put(to, start as u64, INVALID_VALUE)
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        in_context()?;
        let (reserved, limit) = { let memory = memory(); (memory.reserved, memory.limit) };
        put(free, limit - reserved, INVALID_VALUE)?;
        put(total, limit, INVALID_VALUE)
    }
    fn cuMemHostAlloc(to: *mut *mut c_void, len: usize, _flags: c_uint) {
        in_context()?;
        forbid_during_capture("cuMemHostAlloc")?;
        let start = memory().pin(len)?;
        put(to, start as *mut c_void, INVALID_VALUE)
    }
    fn cuMemAllocHost_v2(to: *mut *mut c_void, len: usize) {
        in_context()?;
        forbid_during_capture("cuMemAllocHost")?;
        let start = memory().pin(len)?;
        put(to, start as *mut c_void, INVALID_VALUE)
    }
    fn cuMemFreeHost(start: *mut c_void) {
        in_context()?;
        forbid_during_capture("cuMemFreeHost")?;
        work::finish_all()?;
        memory().free_pinned(start as usize)
    }
    fn cuMemHostRegister_v2(start: *mut c_void, len: usize, _flags: c_uint) {
        in_context()?;
        memory().register(start as usize, len)
    }
    fn cuMemHostUnregister(start: *mut c_void) {
        in_context()?;
        work::finish_all()?;
        memory().unregister(start as usize)
    }
    fn cuMemHostGetDevicePointer_v2(to: *mut u64, start: *mut c_void, _flags: c_uint) {
        in_context()?;
        if !memory().is_pinned(start as usize, 1) {
            return Err(refusal(INVALID_VALUE, format!("{start:p} is not page-locked")));
        }
        put(to, start as u64, INVALID_VALUE)
    }
    fn cuMemPoolTrimTo(which: usize, keep: usize) {
        only_pool(which, pool())?;
        memory().trim(keep);
        Ok(())
    }
    fn cuMemPoolSetAttribute(which: usize, attribute: c_uint, value: *mut c_void) {
        only_pool(which, pool())?;
        match attribute {
            1..=3 => crate::api::peek(value.cast::<c_int>(), INVALID_VALUE).map(|_| ()),
            4 => {
                let bytes = crate::api::peek(value.cast::<u64>(), INVALID_VALUE)?;
                memory().release_threshold = bytes;
                Ok(())
            }
            6 | 8 => {
                let bytes = crate::api::peek(value.cast::<u64>(), INVALID_VALUE)?;
                if bytes != 0 {
                    let line = format!("a high-water mark can be set to 0 only, got {bytes}");
                    return Err(refusal(INVALID_VALUE, line));
                }
                let mut memory = memory();
                memory.peak = memory.used;
                Ok(())
            }
            _ => Err(refusal(INVALID_VALUE, format!("pool attribute {attribute} cannot be set"))),
        }
    }
    fn cuMemPoolGetAttribute(which: usize, attribute: c_uint, value: *mut c_void) {
        only_pool(which, pool())?;
        let (used, peak, reserved, threshold) = {
            let memory = memory();
            let bytes = [memory.used, memory.peak, memory.reserved].map(|bytes| bytes as u64);
            (bytes[0], bytes[1], bytes[2], memory.release_threshold)
        };
        match attribute {
            1..=3 => put(value.cast::<c_int>(), 1, INVALID_VALUE),
            4 => put(value.cast::<u64>(), threshold, INVALID_VALUE),
            5 => put(value.cast::<u64>(), reserved, INVALID_VALUE),
            7 => put(value.cast::<u64>(), used, INVALID_VALUE),
            6 | 8 => put(value.cast::<u64>(), peak, INVALID_VALUE),
            _ => Err(refusal(INVALID_VALUE, format!("pool attribute {attribute} is none"))),
        }
    }
    fn cuDeviceGetGraphMemAttribute(_device: c_int, attribute: c_uint, value: *mut c_void) {
        let used = memory().graph_bytes() as u64;
        if attribute > 3 {
            return Err(refusal(INVALID_VALUE, format!("attribute {attribute} is none")));
        }
        put(value.cast::<u64>(), used, INVALID_VALUE)
    }
    fn cuDeviceGraphMemTrim(_device: c_int) { Ok(()) }
    fn cuPointerGetAttribute(value: *mut c_void, attribute: c_uint, start: u64) {
        let found = memory().find(start as usize, 1);
        let found = found.ok_or_else(|| refusal(INVALID_VALUE, ""))?;
        match attribute {
            2 => put(value.cast::<u32>(), if found.kind == Kind::Pinned { 1 } else { 2 },
                INVALID_VALUE),
            3 => put(value.cast::<u64>(), start, INVALID_VALUE),
            9 => put(value.cast::<c_int>(), 0, INVALID_VALUE),
            11 => put(value.cast::<u64>(), found.start as u64, INVALID_VALUE),
            12 => put(value.cast::<usize>(), found.len, INVALID_VALUE),
            _ => Err(refusal(NOT_SUPPORTED, format!("pointer attribute {attribute}"))),
        }
    }
}
