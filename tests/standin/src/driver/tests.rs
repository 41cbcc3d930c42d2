//! The driver's entries, called as a program calls them.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use super::codes::*;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: usize) -> u32;
    fn cuStreamCreate(stream: *mut usize, flags: u32) -> u32;
    fn cuStreamDestroy_v2(stream: usize) -> u32;
    fn cuStreamSynchronize(stream: usize) -> u32;
    fn cuStreamBeginCapture_v2(stream: usize, mode: u32) -> u32;
    fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> u32;
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) -> u32;
    fn cuStreamIsCapturing(stream: usize, status: *mut u32) -> u32;
    fn cuEventCreate(event: *mut usize, flags: u32) -> u32;
    fn cuEventRecord(event: usize, stream: usize) -> u32;
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> u32;
    fn cuMemAllocAsync(to: *mut u64, len: usize, stream: usize) -> u32;
    fn cuMemFreeAsync(at: u64, stream: usize) -> u32;
    fn cuMemAlloc_v2(to: *mut u64, len: usize) -> u32;
    fn cuMemHostAlloc(to: *mut *mut c_void, len: usize, flags: u32) -> u32;
    fn cuMemFreeHost(at: *mut c_void) -> u32;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) -> u32;
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) -> u32;
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> u32;
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) -> u32;
    fn cuGraphInstantiateWithFlags(ready: *mut usize, graph: usize, flags: u64) -> u32;
    fn cuGraphLaunch(ready: usize, stream: usize) -> u32;
    fn cuGraphExecDestroy(ready: usize) -> u32;
    fn cuGraphDestroy(graph: usize) -> u32;
    fn cuModuleLoadData(module: *mut usize, image: *const c_void) -> u32;
    fn cuModuleUnload(module: usize) -> u32;
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32;
    fn cuFuncSetAttribute(function: usize, which: u32, value: c_int) -> u32;
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;
}

const THREAD_LOCAL: u32 = 1;

/// Calls an entry that has to succeed and that stores its result through its first argument.
macro_rules! made {
    ($entry:ident($($argument:expr),*)) => {{
        let mut made = Default::default();
        // SAFETY: room for one result; the other arguments are plain values.
        let code = unsafe { $entry(&raw mut made $(, $argument)*) };
        assert_eq!(code, 0, stringify!($entry));
        made
    }};
}

/// Calls an entry whose arguments are plain values, or addresses that the test keeps.
macro_rules! code {
    ($entry:ident($($argument:expr),*)) => {{
        // SAFETY: as the stand-in checks them, or the test keeps what they point to.
        unsafe { $entry($($argument),*) }
    }};
}

fn stream() -> usize {
    assert_eq!(code!(cuInit(0)), 0);
    let context: usize = made!(cuDevicePrimaryCtxRetain(0));
    assert_eq!(code!(cuCtxSetCurrent(context)), 0);
    made!(cuStreamCreate(1))
}

fn words(at: u64, count: usize, stream: usize) -> Vec<u32> {
    let mut read = vec![0_u32; count];
    assert_eq!(code!(cuMemcpyDtoHAsync_v2(read.as_mut_ptr().cast(), at, count * 4, stream)), 0);
    assert_eq!(code!(cuStreamSynchronize(stream)), 0);
    read
}

#[test]
fn a_graph_runs_what_was_captured_again_and_again() {
    let stream = stream();
    let kept: u64 = made!(cuMemAllocAsync(16, stream));
    assert_eq!(code!(cuMemsetD32Async(kept, 1, 4, stream)), 0);
    assert_eq!(code!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL)), 0);
    // Memory of the graph: taken, filled, copied from, given back.
    let inner: u64 = made!(cuMemAllocAsync(16, stream));
    assert_eq!(code!(cuMemsetD32Async(inner, 7, 4, stream)), 0);
    assert_eq!(code!(cuMemcpyDtoDAsync_v2(kept, inner, 8, stream)), 0);
    assert_eq!(code!(cuMemFreeAsync(inner, stream)), 0);
    // What no graph allocated cannot be freed by one.
    assert_eq!(code!(cuMemFreeAsync(kept, stream)), INVALID_VALUE);
    let graph: usize = made_from(stream);
    assert_eq!(words(kept, 4, stream), [1; 4], "nothing has run yet");
    let ready: usize = made!(cuGraphInstantiateWithFlags(graph, 0));
    for _ in 0..3 {
        assert_eq!(code!(cuMemsetD32Async(kept, 1, 4, stream)), 0);
        assert_eq!(code!(cuGraphLaunch(ready, stream)), 0);
        assert_eq!(words(kept, 4, stream), [7, 7, 1, 1]);
    }
    assert_eq!(code!(cuGraphExecDestroy(ready)), 0);
    assert_eq!(code!(cuGraphLaunch(ready, stream)), INVALID_VALUE);
    assert_eq!(code!(cuGraphDestroy(graph)), 0);
    assert_eq!(code!(cuMemFreeAsync(kept, stream)), 0);
    assert_eq!(code!(cuMemFreeAsync(kept, stream)), INVALID_VALUE, "freed twice");
    assert_eq!(code!(cuStreamDestroy_v2(stream)), 0);
    assert_eq!(code!(cuStreamSynchronize(stream)), INVALID_HANDLE);
}

fn made_from(stream: usize) -> usize {
    let mut graph = 0;
    assert_eq!(code!(cuStreamEndCapture(stream, &raw mut graph)), 0);
    graph
}

#[test]
fn what_a_graph_leaves_allocated_forbids_a_second_launch() {
    let stream = stream();
    assert_eq!(code!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL)), 0);
    let left: u64 = made!(cuMemAllocAsync(64, stream));
    assert_eq!(code!(cuMemsetD32Async(left, 3, 16, stream)), 0);
    let graph = made_from(stream);
    let ready: usize = made!(cuGraphInstantiateWithFlags(graph, 0));
    assert_eq!(code!(cuGraphLaunch(ready, stream)), 0);
    assert_eq!(words(left, 16, stream), [3; 16]);
    assert_eq!(code!(cuGraphLaunch(ready, stream)), INVALID_VALUE);
    assert_eq!(code!(cuMemFreeAsync(left, stream)), 0);
    assert_eq!(code!(cuGraphLaunch(ready, stream)), 0);
    let freeing: usize = made!(cuGraphInstantiateWithFlags(graph, 1));
    assert_eq!(code!(cuGraphLaunch(freeing, stream)), 0);
    assert_eq!(code!(cuGraphLaunch(freeing, stream)), 0);
    assert_eq!(words(left, 16, stream), [3; 16]);
    assert_eq!(code!(cuMemFreeAsync(left, stream)), 0);
}

#[test]
fn what_may_wait_or_page_invalidates_a_capture() {
    let stream = stream();
    let kept: u64 = made!(cuMemAllocAsync(16, stream));
    let pageable = [0_u32; 4];
    let begin = || assert_eq!(code!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL)), 0);
    let mut graph = 0;
    let mut end = || code!(cuStreamEndCapture(stream, &raw mut graph));
    begin();
    assert_eq!(code!(cuStreamSynchronize(stream)), STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(made!(cuStreamIsCapturing_of(stream)), 2);
    assert_eq!(code!(cuMemsetD32Async(kept, 0, 4, stream)), STREAM_CAPTURE_INVALIDATED);
    assert_eq!(end(), STREAM_CAPTURE_INVALIDATED);
    assert_eq!(made!(cuStreamIsCapturing_of(stream)), 0);
    begin();
    let mut other = 0_u64;
    assert_eq!(code!(cuMemAlloc_v2(&raw mut other, 16)), STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(end(), STREAM_CAPTURE_INVALIDATED);
    begin();
    let copied = code!(cuMemcpyHtoDAsync_v2(kept, pageable.as_ptr().cast(), 16, stream));
    assert_eq!(copied, STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(end(), 0);
    let mut pinned = null_mut();
    assert_eq!(code!(cuMemHostAlloc(&raw mut pinned, 16, 0)), 0);
    begin();
    assert_eq!(code!(cuMemcpyHtoDAsync_v2(kept, pinned, 16, stream)), 0);
    assert_eq!(end(), 0);
    assert_eq!(code!(cuMemFreeHost(pinned)), 0);
    assert_eq!(code!(cuStreamEndCapture(stream, &raw mut graph)), INVALID_VALUE, "none is on");
}

/// [`cuStreamIsCapturing`] with its result first.
#[expect(non_snake_case, reason = "it stands beside the entries")]
unsafe fn cuStreamIsCapturing_of(status: *mut u32, stream: usize) -> u32 {
    // SAFETY: passed on.
    unsafe { cuStreamIsCapturing(stream, status) }
}

#[test]
fn other_streams_join_a_capture_through_events_and_have_to_come_back() {
    let (origin, other) = (stream(), stream());
    let kept: u64 = made!(cuMemAllocAsync(16, origin));
    let (fork, join, timed): (usize, usize, usize) =
        (made!(cuEventCreate(2)), made!(cuEventCreate(2)), made!(cuEventCreate(0)));
    let mut graph = 0;
    for joined in [true, false] {
        assert_eq!(code!(cuStreamBeginCapture_v2(origin, THREAD_LOCAL)), 0);
        assert_eq!(code!(cuEventRecord(fork, origin)), 0);
        assert_eq!(code!(cuStreamWaitEvent(other, fork, 0)), 0);
        assert_eq!(code!(cuMemsetD32Async(kept, 5, 4, other)), 0);
        assert_eq!(code!(cuEventRecord(join, other)), 0);
        if joined {
            assert_eq!(code!(cuStreamWaitEvent(origin, join, 0)), 0);
        }
        let expected = if joined { 0 } else { STREAM_CAPTURE_UNJOINED };
        assert_eq!(code!(cuStreamEndCapture(origin, &raw mut graph)), expected);
    }
    // An event from outside cannot be waited for inside.
    assert_eq!(code!(cuEventRecord(fork, other)), 0);
    assert_eq!(code!(cuStreamBeginCapture_v2(origin, THREAD_LOCAL)), 0);
    assert_eq!(code!(cuStreamWaitEvent(origin, fork, 0)), STREAM_CAPTURE_ISOLATION);
    assert_eq!(code!(cuStreamEndCapture(origin, &raw mut graph)), STREAM_CAPTURE_INVALIDATED);
    let mut elapsed = 0.0;
    assert_eq!(code!(cuEventRecord(timed, origin)), 0);
    assert_eq!(code!(cuEventElapsedTime_v2(&raw mut elapsed, timed, timed)), 0);
    assert_eq!(code!(cuEventElapsedTime_v2(&raw mut elapsed, fork, timed)), INVALID_HANDLE);
}

#[test]
fn a_launch_is_checked_before_it_runs() {
    let stream = stream();
    let text = c".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared .b8 room[];\n\
        .visible .entry k(.param .u64 to, .param .u32 value) .maxntid 64, 1, 1 {\n\
        .reg .b64 %d<3>; .reg .b32 %r<4>; ld.param.u64 %d1, [to]; cvta.to.global.u64 %d2, %d1;\n\
        ld.param.u32 %r1, [value]; mov.u32 %r2, room; st.shared.u32 [%r2], %r1;\n\
        ld.shared.u32 %r3, [%r2]; st.global.u32 [%d2], %r3; ret; }\n";
    let module: usize = made!(cuModuleLoadData(text.as_ptr().cast()));
    let mut function = 0;
    let get = |function: &mut usize, name: &std::ffi::CStr| {
        code!(cuModuleGetFunction(&raw mut *function, module, name.as_ptr()))
    };
    assert_eq!(get(&mut function, c"other"), NOT_FOUND);
    assert_eq!(get(&mut function, c"k"), 0);
    let mut kept: u64 = made!(cuMemAllocAsync(4, stream));
    let mut value = 99_u32;
    let mut params: [*mut c_void; 2] = [(&raw mut kept).cast(), (&raw mut value).cast()];
    let mut launch = |grid: u32, block: u32, shared: u32| {
        let params = params.as_mut_ptr();
        code!(cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, params, null_mut()))
    };
    assert_eq!(launch(1, 1, 4), 0);
    assert_eq!(words(kept, 1, stream), [99]);
    assert_eq!(launch(0, 1, 4), INVALID_VALUE, "an empty grid");
    assert_eq!(launch(1, 2048, 4), INVALID_VALUE, "more threads than a block has");
    assert_eq!(launch(1, 65, 4), INVALID_VALUE, "more threads than declared");
    assert_eq!(launch(1, 1, 50_000), INVALID_VALUE, "more shared memory than is usual");
    assert_eq!(code!(cuFuncSetAttribute(function, 8, 60_000)), 0);
    assert_eq!(launch(1, 1, 50_000), 0);
    assert_eq!(code!(cuFuncSetAttribute(function, 8, 300_000)), INVALID_VALUE);
    assert_eq!(code!(cuModuleUnload(module)), 0);
    let mut gone = 0;
    assert_eq!(code!(cuModuleGetFunction(&raw mut gone, module, c"k".as_ptr())), INVALID_HANDLE);
}
