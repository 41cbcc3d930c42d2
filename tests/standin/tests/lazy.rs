//! With `STANDIN_LAZY=1` work waits until something needs it, so that a missing wait shows. In a
//! process of its own, since the switch is read once.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use oodbench_standin as _;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: usize) -> u32;
    fn cuStreamCreate(stream: *mut usize, flags: u32) -> u32;
    fn cuStreamSynchronize(stream: usize) -> u32;
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) -> u32;
    fn cuEventCreate(event: *mut usize, flags: u32) -> u32;
    fn cuEventRecord(event: usize, stream: usize) -> u32;
    fn cuEventSynchronize(event: usize) -> u32;
    fn cuMemAllocAsync(to: *mut u64, len: usize, stream: usize) -> u32;
    fn cuMemHostAlloc(to: *mut *mut c_void, len: usize, flags: u32) -> u32;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) -> u32;
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> u32;
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) -> u32;
}

/// What the device holds at an address, when the stream gets there.
fn read(at: u64, stream: usize) -> u32 {
    let mut value = 0_u32;
    // SAFETY: room for one number, which the stream is waited for.
    unsafe {
        assert_eq!(cuMemcpyDtoHAsync_v2((&raw mut value).cast(), at, 4, stream), 0);
        assert_eq!(cuStreamSynchronize(stream), 0);
    }
    value
}

#[test]
fn a_missing_wait_shows_in_the_numbers() {
    // SAFETY: no other thread runs yet that would read the environment; of the entries, each has
    // room for its result, and pinned memory is written as a program may.
    unsafe {
        std::env::set_var("STANDIN_LAZY", "1");
        assert_eq!(cuInit(0), 0);
        let mut context = 0;
        assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        let (mut first, mut second, mut event) = (0, 0, 0);
        assert_eq!(cuStreamCreate(&raw mut first, 1), 0);
        assert_eq!(cuStreamCreate(&raw mut second, 1), 0);
        assert_eq!(cuEventCreate(&raw mut event, 2), 0);
        let (mut from, mut to, mut pinned) = (0, 0, null_mut());
        assert_eq!(cuMemAllocAsync(&raw mut from, 4, first), 0);
        assert_eq!(cuMemAllocAsync(&raw mut to, 4, second), 0);
        assert_eq!(cuMemHostAlloc(&raw mut pinned, 4, 0), 0);
        let number = pinned.cast::<u32>();

        // Pinned memory that is written too early: the copy takes what is there when it runs.
        number.write(1);
        assert_eq!(cuMemcpyHtoDAsync_v2(from, pinned, 4, first), 0);
        number.write(2);
        assert_eq!(read(from, first), 2);
        number.write(1);
        assert_eq!(cuMemcpyHtoDAsync_v2(from, pinned, 4, first), 0);
        assert_eq!(cuEventRecord(event, first), 0);
        assert_eq!(cuEventSynchronize(event), 0);
        number.write(2);
        assert_eq!(read(from, first), 1);

        // A stream that does not wait for another sees what was there before.
        number.write(3);
        assert_eq!(cuMemcpyHtoDAsync_v2(from, pinned, 4, first), 0);
        assert_eq!(cuMemcpyDtoDAsync_v2(to, from, 4, second), 0);
        assert_eq!(read(to, second), 1);
        assert_eq!(cuEventRecord(event, first), 0);
        assert_eq!(cuStreamWaitEvent(second, event, 0), 0);
        assert_eq!(cuMemcpyDtoDAsync_v2(to, from, 4, second), 0);
        assert_eq!(read(to, second), 3);
    }
}
