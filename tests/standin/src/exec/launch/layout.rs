//! What kernels and a launch know of each other: the structures of the prelude, as C has them.

use std::ffi::c_char;

use super::Run;

/// `struct site` of the prelude.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::exec) struct Site {
    pub(super) low: u64,
    pub(super) len: u64,
}

/// `struct gather` of the prelude.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Gather {
    pub(super) mask: u32,
    pub(super) kind: u32,
    pub(super) value: [u64; 32],
}

/// `struct thread` of the prelude.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::exec) struct Thread {
    pub(super) tid: [u32; 3],
    pub(super) lane: u32,
    pub(super) warp: u32,
    pub(super) linear: u32,
    pub(super) stack_low: u64,
    pub(super) stack_len: u64,
    pub(super) meeting: u32,
    pub(super) padding: u32,
}

/// `struct cell` of the prelude.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    pub(super) write_epoch: u32,
    pub(super) write_meeting: u32,
    pub(super) read_epoch: u32,
    pub(super) read_meeting: u32,
    pub(super) writer: u16,
    pub(super) reader: u16,
    pub(super) reader_warp: u16,
    pub(super) padding: u16,
}

/// `struct context` of the prelude.
#[repr(C)]
pub(in crate::exec) struct Context {
    pub(super) params: *const u8,
    pub(super) shared: *mut u8,
    pub(super) globals: *const u64,
    pub(super) sites: *mut Site,
    pub(super) shared_len: u64,
    pub(super) dynamic_len: u64,
    pub(super) ntid: [u32; 3],
    pub(super) nctaid: [u32; 3],
    pub(super) ctaid: [u32; 3],
    pub(super) epoch: u32,
    pub(super) cells: *mut Cell,
    pub(super) fail: extern "C" fn(*mut Run<'_>, *const Thread, u32, u64, u64, *const c_char) -> !,
    pub(super) find: extern "C" fn(*mut Run<'_>, u64, u64, *mut Site) -> u32,
    pub(super) meet: extern "C" fn(*mut Run<'_>, *const Thread, u32, u32, u64) -> *const Gather,
    pub(super) watch: Option<Watcher>,
    pub(super) barrier: extern "C" fn(*mut Run<'_>, *const Thread, u32, u32, u32, u32) -> u64,
}

/// Notes an access to global memory.
pub(super) type Watcher = extern "C" fn(*mut Run<'_>, *const Thread, u64, u64, u32, *const c_char);
