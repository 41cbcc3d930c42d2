//! Initialisation, the one device, and contexts.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::codes::*;
use super::{call, entries, memory};
use crate::api::{Outcome, answer, put, refusal};
use crate::work;

/// What `cuDriverGetVersion` says: 13.0.
const VERSION: c_int = 13000;
const CONTEXT: usize = 0x0005_7a4d_c0de_0000;
const POOL: usize = 0x0005_7a4d_9001_0000;

static INITIALISED: AtomicBool = AtomicBool::new(false);
static RETAINED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// # Errors
/// `cuInit` was not called.
pub(super) fn initialised() -> Outcome {
    if INITIALISED.load(Ordering::Acquire) {
        return Ok(());
    }
    Err(refusal(NOT_INITIALIZED, "called before cuInit"))
}

/// # Errors
/// No context is current on this thread, or the device's is released.
pub(super) fn in_context() -> Outcome {
    if CURRENT.get() == 0 {
        return Err(refusal(INVALID_CONTEXT, "no context is current on this thread"));
    }
    if RETAINED.load(Ordering::Acquire) == 0 {
        return Err(refusal(INVALID_CONTEXT, "the primary context is released"));
    }
    work::healthy()
}

fn only_device(device: c_int) -> Outcome {
    if device == 0 {
        return Ok(());
    }
    Err(refusal(INVALID_DEVICE, format!("device expected 0, got {device}")))
}

/// The attributes of an H200 that programs ask for.
fn attribute(which: c_int) -> Option<c_int> {
    Some(match which {
        1..=3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        11 => c_int::MAX,
        12 | 82 => 65536,
        13 => 1_980_000,
        16 => 132,
        19 | 31 | 32 | 41 | 78 | 83 | 89 | 90 | 95 | 99 | 102 | 115 | 120 | 127 | 129 => 1,
        18 | 20 | 33 | 34 | 50 | 88 | 96 | 100 | 110 | 116 | 117 | 118 => 0,
        36 => 3_201_000,
        37 => 6144,
        38 => 60 << 20,
        39 => 2048,
        40 => 3,
        75 => 9,
        76 => 0,
        81 => 228 << 10,
        97 => 227 << 10,
        106 => 32,
        108 => 39_321_600,
        109 => 128 << 20,
        111 => 1024,
        _ => return None,
    })
}

/// What may be called before `cuInit`.
fn early(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, UNKNOWN, body)
}

entries! { early;
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(refusal(INVALID_VALUE, format!("flags expected 0, got {flags}")));
        }
        INITIALISED.store(true, Ordering::Release);
        Ok(())
    }
    fn cuDriverGetVersion(version: *mut c_int) { put(version, VERSION, INVALID_VALUE) }
    fn cuGetErrorName(code: u32, text: *mut *const c_char) {
        let (name, _) = describe(code).ok_or_else(|| refusal(INVALID_VALUE, ""))?;
        put(text, name.as_ptr().cast(), INVALID_VALUE)
    }
    fn cuGetErrorString(code: u32, text: *mut *const c_char) {
        let (_, line) = describe(code).ok_or_else(|| refusal(INVALID_VALUE, ""))?;
        put(text, line.as_ptr().cast(), INVALID_VALUE)
    }
}

entries! { call;
    fn cuDeviceGetCount(count: *mut c_int) { put(count, 1, INVALID_VALUE) }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        only_device(ordinal)?;
        put(device, 0, INVALID_VALUE)
    }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        only_device(device)?;
        let text = b"Stand-in (CPU)\0";
        if len <= 0 {
            return Err(refusal(INVALID_VALUE, format!("length {len} of the name's buffer")));
        }
        let copied = text.len().min(len as usize);
        for (at, byte) in text[..copied - 1].iter().chain([&0]).enumerate() {
            put(name.wrapping_add(at), *byte as c_char, INVALID_VALUE)?;
        }
        Ok(())
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        only_device(device)?;
        put(uuid, *b"oodbench-standin", INVALID_VALUE)
    }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        only_device(device)?;
        put(uuid, *b"oodbench-standin", INVALID_VALUE)
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        only_device(device)?;
        put(bytes, memory().limit, INVALID_VALUE)
    }
    fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int) {
        only_device(device)?;
        let found = attribute(which);
        let found = found.ok_or_else(|| {
            refusal(INVALID_VALUE, format!("device attribute {which} is not known here"))
        })?;
        put(value, found, INVALID_VALUE)
    }
    fn cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) {
        only_device(device)?;
        put(pool, POOL, INVALID_VALUE)
    }
    fn cuDeviceGetMemPool(pool: *mut usize, device: c_int) {
        only_device(device)?;
        put(pool, POOL, INVALID_VALUE)
    }
    fn cuDeviceSetMemPool(device: c_int, pool: usize) {
        only_device(device)?;
        super::allocation::only_pool(pool, POOL)
    }
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) {
        only_device(device)?;
        RETAINED.fetch_add(1, Ordering::AcqRel);
        put(context, CONTEXT, INVALID_VALUE)
    }
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        only_device(device)?;
        let before = RETAINED.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            count.checked_sub(1)
        });
        match before {
            Ok(_) => Ok(()),
            Err(_) => Err(refusal(INVALID_CONTEXT, "the primary context is not retained")),
        }
    }
    fn cuCtxSetCurrent(context: usize) {
        if context != 0 && context != CONTEXT {
            return Err(refusal(INVALID_CONTEXT, format!("{context:#x} is no context")));
        }
        CURRENT.set(context);
        Ok(())
    }
    fn cuCtxGetCurrent(context: *mut usize) { put(context, CURRENT.get(), INVALID_VALUE) }
    fn cuCtxGetDevice(device: *mut c_int) {
        in_context()?;
        put(device, 0, INVALID_VALUE)
    }
    fn cuCtxSetFlags(_flags: c_uint) { in_context() }
    fn cuCtxSynchronize() {
        in_context()?;
        work::not_while_anything_captures("synchronising the context")?;
        work::finish_all()?;
        memory().settle();
        Ok(())
    }
    fn cuCtxGetLimit(value: *mut usize, limit: c_uint) {
        in_context()?;
        match limit {
            0 => put(value, 1024, INVALID_VALUE),
            1 => put(value, 1 << 20, INVALID_VALUE),
            2 => put(value, 8 << 20, INVALID_VALUE),
            _ => Err(refusal(NOT_SUPPORTED, format!("limit {limit} is not known here"))),
        }
    }
    fn cuCtxSetLimit(_limit: c_uint, _value: usize) { in_context() }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        in_context()?;
        put(least, 0, INVALID_VALUE)?;
        put(greatest, -5, INVALID_VALUE)
    }
    fn cuProfilerStart() { in_context() }
    fn cuProfilerStop() { in_context() }
}

pub(super) const fn pool() -> usize {
    POOL
}
