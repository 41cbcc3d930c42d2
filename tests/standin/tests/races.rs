//! With `STANDIN_RACES=1` a sum to which several threads add without atomics ends the launch. In a
//! process of its own, since the switch is read once and the context is spoiled afterwards.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

use oodbench_standin as _;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: usize) -> u32;
    fn cuMemAlloc_v2(to: *mut u64, len: usize) -> u32;
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32;
    fn cuModuleLoadData(module: *mut usize, image: *const c_void) -> u32;
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32;
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

const TEXT: &CStr = c".version 9.0\n.target sm_90a\n.address_size 64\n\
    .visible .entry atomic(.param .u64 to) { .reg .b64 %d<3>; ld.param.u64 %d1, [to];\n\
    cvta.to.global.u64 %d2, %d1; red.global.add.f32 [%d2], 0f3F800000; ret; }\n\
    .visible .entry plain(.param .u64 to) { .reg .b64 %d<3>; .reg .f32 %f<3>;\n\
    ld.param.u64 %d1, [to]; cvta.to.global.u64 %d2, %d1; ld.global.f32 %f1, [%d2];\n\
    add.f32 %f2, %f1, 0f3F800000; st.global.f32 [%d2], %f2; ret; }\n";

#[test]
fn a_sum_without_atomics_is_a_race_and_one_with_them_is_none() {
    const LAUNCH_FAILED: u32 = 719;
    // SAFETY: no other thread runs yet that would read the environment; each entry has room for its
    // result.
    unsafe {
        std::env::set_var("STANDIN_RACES", "1");
        assert_eq!(cuInit(0), 0);
        let (mut context, mut to, mut module) = (0, 0_u64, 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuMemAlloc_v2(&raw mut to, 4), 0);
        assert_eq!(cuMemsetD8_v2(to, 0, 4), 0);
        assert_eq!(cuModuleLoadData(&raw mut module, TEXT.as_ptr().cast()), 0);
        let launch = |name: &CStr, grid: u32, block: u32| {
            let (mut function, mut to) = (0, to);
            assert_eq!(cuModuleGetFunction(&raw mut function, module, name.as_ptr()), 0);
            let mut params: [*mut c_void; 1] = [(&raw mut to).cast()];
            let params = params.as_mut_ptr();
            cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, 0, params, null_mut())
        };
        assert_eq!(launch(c"atomic", 3, 64), 0);
        assert_eq!(launch(c"plain", 1, 1), 0);
        assert_eq!(launch(c"plain", 2, 1), LAUNCH_FAILED);
    }
}
