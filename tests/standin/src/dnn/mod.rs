//! `libcudnn.so.9`: convolutions, through the older descriptors and through the graph interface.

mod backend;
mod convolution;
mod legacy;
mod tensor;

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Mutex;

use crate::api::{Handles, Outcome, answer, lock, put, refusal};
use crate::driver::{entries, memory};
use crate::work;

pub(crate) const NOT_INITIALIZED: u32 = 1001;
pub(crate) const BAD_PARAM: u32 = 2000;
pub(crate) const NULL_POINTER: u32 = 2002;
pub(crate) const MISALIGNED: u32 = 2003;
pub(crate) const NOT_FINALIZED: u32 = 2004;
pub(crate) const SIZE_INSUFFICIENT: u32 = 2006;
pub(crate) const SHAPE_MISMATCH: u32 = 2008;
pub(crate) const ATTRIBUTE_TYPE: u32 = 2010;
pub(crate) const DESCRIPTOR_TYPE: u32 = 2012;
pub(crate) const NOT_SUPPORTED: u32 = 3000;
pub(crate) const EXECUTION_FAILED: u32 = 5000;

/// What `cudnnGetVersion` says: 9.12.0.
const VERSION: usize = 91200;

struct Handle {
    stream: Mutex<usize>,
}

static HANDLES: Handles<Handle> = Handles::new("cuDNN handle");

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Answers a call, and keeps the line of a refusal for `cudnnGetLastErrorString`.
fn call(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, EXECUTION_FAILED, || {
        body().inspect_err(|refusal| LAST.with_borrow_mut(|last| last.clone_from(&refusal.line)))
    })
}

/// The stream of a handle.
fn stream_of(handle: usize) -> Outcome<usize> {
    let handle = HANDLES.get(handle, NOT_INITIALIZED)?;
    let stream = *lock(&handle.stream);
    Ok(stream)
}

/// Checks a workspace when it is used, and spoils it: what else lies there would be noticed.
fn use_workspace(start: usize, len: usize) -> Outcome {
    if len == 0 {
        return Ok(());
    }
    memory().check("workspace", start, len)?;
    // SAFETY: inside one allocation.
    unsafe { std::ptr::write_bytes(start as *mut u8, 0xFF, len) };
    Ok(())
}

entries! { call;
    fn cudnnCreate(handle: *mut usize) {
        work::forbid_during_capture("cudnnCreate")?;
        put(handle, HANDLES.insert(Handle { stream: Mutex::new(0) }), NULL_POINTER)
    }
    fn cudnnDestroy(handle: usize) { HANDLES.remove(handle, NOT_INITIALIZED).map(|_| ()) }
    fn cudnnSetStream(handle: usize, stream: usize) {
        work::stream(stream)?;
        *lock(&HANDLES.get(handle, NOT_INITIALIZED)?.stream) = stream;
        Ok(())
    }
    fn cudnnGetStream(handle: usize, stream: *mut usize) {
        put(stream, stream_of(handle)?, NULL_POINTER)
    }
    fn cudnnGetProperty(which: c_int, value: *mut c_int) {
        let parts = [9, 12, 0];
        let part = usize::try_from(which).ok().and_then(|which| parts.get(which));
        let part = part.ok_or_else(|| refusal(BAD_PARAM, format!("property {which}")))?;
        put(value, *part, NULL_POINTER)
    }
    fn cudnnOpsVersionCheck() { Ok(()) }
    fn cudnnCnnVersionCheck() { Ok(()) }
    fn cudnnAdvVersionCheck() { Ok(()) }
    fn cudnnGraphVersionCheck() { Ok(()) }
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetCudartVersion() -> usize {
    13000
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetErrorString(status: u32) -> *const c_char {
    let text = match status {
        0 => c"CUDNN_STATUS_SUCCESS",
        NOT_INITIALIZED => c"CUDNN_STATUS_NOT_INITIALIZED",
        NULL_POINTER => c"CUDNN_STATUS_BAD_PARAM_NULL_POINTER",
        MISALIGNED => c"CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER",
        NOT_FINALIZED => c"CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED",
        SIZE_INSUFFICIENT => c"CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT",
        SHAPE_MISMATCH => c"CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH",
        ATTRIBUTE_TYPE => c"CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE",
        DESCRIPTOR_TYPE => c"CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE",
        2000..3000 => c"CUDNN_STATUS_BAD_PARAM",
        3000..4000 => c"CUDNN_STATUS_NOT_SUPPORTED",
        4000..5000 => c"CUDNN_STATUS_INTERNAL_ERROR",
        _ => c"CUDNN_STATUS_EXECUTION_FAILED",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetLastErrorString(text: *mut c_char, len: usize) {
    let line = LAST.with_borrow_mut(std::mem::take);
    let line = CString::new(line).unwrap_or_default();
    let bytes = line.as_bytes();
    if text.is_null() || len == 0 {
        return;
    }
    let copied = bytes.len().min(len - 1);
    // SAFETY: the caller owes `len` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), text.cast::<u8>(), copied);
        text.add(copied).write(0);
    }
}

/// A pointer of the caller as the number that the stand-in keeps.
fn address(pointer: *const c_void) -> usize {
    pointer as usize
}
