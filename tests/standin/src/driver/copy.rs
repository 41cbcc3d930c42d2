//! Copies and fills.

use std::ffi::{c_int, c_uint, c_void};

use super::codes::*;
use super::device::in_context;
use super::memory::Kind;
use super::{call, entries, memory};
use crate::api::{Outcome, peek, refusal};
use crate::work::{capturing, finish, forbid_during_capture, stream, submit};

/// The stream that calls without one use.
const LEGACY: usize = 0;

/// One side of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Device(usize),
    Host(usize),
}

impl Side {
    fn address(self) -> usize {
        match self {
            Self::Device(at) | Self::Host(at) => at,
        }
    }

    fn check(self, what: &str, len: usize) -> Outcome {
        match self {
            Self::Device(at) => memory().check(what, at, len),
            Self::Host(0) if len > 0 => {
                Err(refusal(INVALID_VALUE, format!("{what}: a null pointer of the host")))
            }
            Self::Host(_) => Ok(()),
        }
    }

    /// Memory of the host that the driver has to stage, since it may be paged out.
    fn pageable(self, len: usize) -> bool {
        match self {
            Self::Device(_) => false,
            Self::Host(at) => !memory().is_pinned(at, len),
        }
    }
}

/// Rows of bytes: `(pitch, width, height)` is `(len, len, 1)` for a plain copy.
#[derive(Clone, Copy)]
struct Rows {
    from_pitch: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

impl Rows {
    fn span(self, pitch: usize) -> usize {
        if self.height == 0 || self.width == 0 { 0 } else { pitch * (self.height - 1) + self.width }
    }
}

fn copy_rows(to: usize, from: usize, rows: Rows) {
    for row in 0..rows.height {
        let from = (from + row * rows.from_pitch) as *const u8;
        let to = (to + row * rows.to_pitch) as *mut u8;
        // SAFETY: the caller has checked both spans against what is allocated; of the host's
        // memory the program promises as much. `copy` allows overlap.
        unsafe { std::ptr::copy(from, to, rows.width) };
    }
}

fn copy(name: &str, to: Side, from: Side, rows: Rows, handle: usize, sync: bool) -> Outcome {
    in_context()?;
    if sync {
        forbid_during_capture(name)?;
    }
    let (to_len, from_len) = (rows.span(rows.to_pitch), rows.span(rows.from_pitch));
    if to_len == 0 {
        return Ok(());
    }
    let stream = stream(handle)?;
    let captured = capturing(&stream)?.is_some();
    if captured && (from.pageable(from_len) || to.pageable(to_len)) {
        let line = "memory of the host in a captured copy has to be page-locked";
        return Err(refusal(STREAM_CAPTURE_UNSUPPORTED, line));
    }
    let title = format!("{name} of {to_len} bytes");
    let run = move || {
        from.check("source", from_len)?;
        to.check("destination", to_len)?;
        copy_rows(to.address(), from.address(), rows);
        Ok(())
    };
    // What the driver stages before the call returns is read now, not when the stream gets there.
    if !captured && from.pageable(from_len) {
        from.check("source", from_len)?;
        let mut staged = vec![0_u8; from_len];
        let tight = Rows { to_pitch: rows.from_pitch, ..rows };
        copy_rows(staged.as_mut_ptr() as usize, from.address(), tight);
        submit(handle, title, move || {
            to.check("destination", to_len)?;
            copy_rows(to.address(), staged.as_ptr() as usize, rows);
            Ok(())
        })?;
    } else {
        submit(handle, title, run)?;
    }
    if sync || to.pageable(to_len) { finish(&stream) } else { Ok(()) }
}

fn plain(name: &str, to: Side, from: Side, len: usize, stream: usize, sync: bool) -> Outcome {
    let rows = Rows { from_pitch: len, to_pitch: len, width: len, height: 1 };
    copy(name, to, from, rows, stream, sync)
}

/// The side that an address is on, where the call leaves that open.
fn either(at: u64) -> Side {
    let at = at as usize;
    match memory().find(at, 1) {
        Some(range) if range.kind != Kind::Pinned => Side::Device(at),
        _ => Side::Host(at),
    }
}

fn fill<T: Copy + Send + Sync + 'static>(
    name: &str,
    to: u64,
    value: T,
    count: usize,
    handle: usize,
    sync: bool,
) -> Outcome {
    in_context()?;
    if sync {
        forbid_during_capture(name)?;
    }
    if count == 0 {
        return Ok(());
    }
    let (to, len) = (to as usize, count * size_of::<T>());
    if !to.is_multiple_of(size_of::<T>()) {
        return Err(refusal(INVALID_VALUE, format!("{to:#x} is not aligned to the value")));
    }
    submit(handle, format!("{name} of {len} bytes"), move || {
        memory().check("destination", to, len)?;
        // SAFETY: the range is inside one allocation, and aligned.
        unsafe { std::slice::from_raw_parts_mut(to as *mut T, count) }.fill(value);
        Ok(())
    })?;
    if sync { finish(&*stream(handle)?) } else { Ok(()) }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Copy2d {
    from_x: usize,
    from_y: usize,
    from_type: c_uint,
    from_host: *const c_void,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_type: c_uint,
    to_host: *mut c_void,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

fn copy_2d(name: &str, wanted: *const Copy2d, stream: usize, sync: bool) -> Outcome {
    let wanted = peek(wanted, INVALID_VALUE)?;
    let side = |kind, host: usize, device: u64, offset: usize| match kind {
        1 => Ok(Side::Host(host + offset)),
        2 => Ok(Side::Device(device as usize + offset)),
        _ => Err(refusal(NOT_SUPPORTED, format!("memory type expected 1 or 2, got {kind}"))),
    };
    let or_width = |pitch: usize| if pitch == 0 { wanted.width } else { pitch };
    let rows = Rows {
        from_pitch: or_width(wanted.from_pitch),
        to_pitch: or_width(wanted.to_pitch),
        width: wanted.width,
        height: wanted.height,
    };
    if rows.from_pitch < wanted.from_x + rows.width || rows.to_pitch < wanted.to_x + rows.width {
        return Err(refusal(INVALID_VALUE, "a pitch is smaller than the rows"));
    }
    let from_offset = wanted.from_y * rows.from_pitch + wanted.from_x;
    let to_offset = wanted.to_y * rows.to_pitch + wanted.to_x;
    let from = side(wanted.from_type, wanted.from_host as usize, wanted.from_device, from_offset)?;
    let to = side(wanted.to_type, wanted.to_host as usize, wanted.to_device, to_offset)?;
    copy(name, to, from, rows, stream, sync)
}

entries! { call;
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) {
        plain("copy to the device", Side::Device(to as usize), Side::Host(from as usize), len,
            LEGACY, true)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) {
        plain("copy to the device", Side::Device(to as usize), Side::Host(from as usize), len,
            stream, false)
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) {
        plain("copy to the host", Side::Host(to as usize), Side::Device(from as usize), len,
            LEGACY, true)
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) {
        plain("copy to the host", Side::Host(to as usize), Side::Device(from as usize), len,
            stream, false)
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) {
        plain("copy on the device", Side::Device(to as usize), Side::Device(from as usize), len,
            LEGACY, true)
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) {
        plain("copy on the device", Side::Device(to as usize), Side::Device(from as usize), len,
            stream, false)
    }
    fn cuMemcpyPeerAsync(to: u64, _to_context: usize, from: u64, _from_context: usize, len: usize,
        stream: usize) {
        plain("copy on the device", Side::Device(to as usize), Side::Device(from as usize), len,
            stream, false)
    }
    fn cuMemcpy(to: u64, from: u64, len: usize) {
        plain("copy", either(to), either(from), len, LEGACY, true)
    }
    fn cuMemcpyAsync(to: u64, from: u64, len: usize, stream: usize) {
        plain("copy", either(to), either(from), len, stream, false)
    }
    fn cuMemcpy2D_v2(wanted: *const Copy2d) { copy_2d("copy of rows", wanted, LEGACY, true) }
    fn cuMemcpy2DUnaligned_v2(wanted: *const Copy2d) {
        copy_2d("copy of rows", wanted, LEGACY, true)
    }
    fn cuMemcpy2DAsync_v2(wanted: *const Copy2d, stream: usize) {
        copy_2d("copy of rows", wanted, stream, false)
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        fill("fill", to, value, count, LEGACY, true)
    }
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        fill("fill", to, value, count, LEGACY, true)
    }
    fn cuMemsetD32_v2(to: u64, value: c_int, count: usize) {
        fill("fill", to, value, count, LEGACY, true)
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) {
        fill("fill", to, value, count, stream, false)
    }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) {
        fill("fill", to, value, count, stream, false)
    }
    fn cuMemsetD32Async(to: u64, value: c_int, count: usize, stream: usize) {
        fill("fill", to, value, count, stream, false)
    }
}
