//! What a kernel or copy does wrong spoils the context for good: every later call fails. In a
//! process of its own, since it holds for the process.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::ffi::c_int;

use oodbench_standin as _;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: usize) -> u32;
    fn cuStreamCreate(stream: *mut usize, flags: u32) -> u32;
    fn cuMemAllocAsync(to: *mut u64, len: usize, stream: usize) -> u32;
    fn cuMemFreeAsync(at: u64, stream: usize) -> u32;
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) -> u32;
    fn cuStreamSynchronize(stream: usize) -> u32;
}

#[test]
fn a_use_after_free_is_noticed_and_nothing_works_afterwards() {
    const ILLEGAL_ADDRESS: u32 = 700;
    // SAFETY: room for one result each; the stand-in checks everything else.
    unsafe {
        assert_eq!(cuStreamSynchronize(0), 3, "before cuInit");
        assert_eq!(cuInit(0), 0);
        let (mut context, mut stream, mut at) = (0, 0, 0);
        assert_eq!(cuStreamCreate(&raw mut stream, 1), 201, "without a context");
        assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuStreamCreate(&raw mut stream, 1), 0);
        assert_eq!(cuMemAllocAsync(&raw mut at, 100, stream), 0);
        assert_eq!(cuMemsetD8Async(at, 1, 100, stream), 0);
        assert_eq!(cuMemFreeAsync(at, stream), 0);
        assert_eq!(cuMemsetD8Async(at, 1, 100, stream), ILLEGAL_ADDRESS);
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
        assert_eq!(cuMemAllocAsync(&raw mut at, 100, stream), ILLEGAL_ADDRESS);
    }
}
