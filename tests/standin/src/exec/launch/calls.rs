//! What kernels call: an access outside of what there is, a thread's note of one, and what threads
//! wait for each other at.

use std::ffi::{CStr, c_char};

use super::layout::{Gather, Site, Thread};
use super::{Pending, Run, State};
use crate::api::refusal;
use crate::driver::codes::LAUNCH_FAILED;
use crate::driver::memory;
use crate::exec::watch::{Access, Moment};

/// `RACE` of the prelude: two threads without a barrier between them.
const RACE: u32 = 0x10000;

pub(super) extern "C" fn fail(
    run: *mut Run<'_>,
    thread: *const Thread,
    code: u32,
    address: u64,
    size: u64,
    what: *const c_char,
) -> ! {
    // SAFETY: the kernel passes on what it was given; the text is a literal of its translation.
    let (run, thread, what) = unsafe { (&mut *run, &*thread, CStr::from_ptr(what)) };
    let mut line = format!("{}: `{}`", run.place(thread), what.to_string_lossy());
    if code & RACE != 0 {
        let other = match code & 0xFFFF {
            0xFFFF => "other threads".to_owned(),
            0xFFFE => "an atomic instruction".to_owned(),
            thread => format!("thread {thread}"),
        };
        line += &format!(
            ": byte {address} of shared memory was touched by {other} before, with no \
                          barrier since"
        );
        run.give_up(refusal(LAUNCH_FAILED, line));
    }
    if size > 0 {
        let known = memory().explain(address as usize);
        line += &format!(": {size} bytes at {address:#x}: {known}");
    }
    run.give_up(refusal(code, line))
}

pub(super) extern "C" fn watch(
    run: *mut Run<'_>,
    thread: *const Thread,
    address: u64,
    size: u64,
    mode: u32,
    what: *const c_char,
) {
    // SAFETY: the kernel passes on what it was given; the text is a literal of its translation.
    let (run, thread, what) = unsafe { (&mut *run, &*thread, CStr::from_ptr(what)) };
    let now = Moment {
        block: run.context.ctaid,
        thread: thread.linear,
        epoch: run.context.epoch,
        meeting: thread.meeting,
    };
    if let Some(other) = run.watched.note(address, size, Access::of(mode), now) {
        let line = format!(
            "{}: `{}`: {size} bytes at {address:#x}, {}, were touched by thread {} of block {:?} \
             in this launch, and nothing orders the two",
            run.place(thread),
            what.to_string_lossy(),
            memory().explain(address as usize),
            other.thread,
            other.block
        );
        run.give_up(refusal(LAUNCH_FAILED, line));
    }
}

pub(super) extern "C" fn find(_run: *mut Run<'_>, address: u64, size: u64, site: *mut Site) -> u32 {
    let Some(range) = memory().find(address as usize, size as usize) else { return 0 };
    // SAFETY: a site of this launch.
    unsafe { site.write(Site { low: range.start as u64, len: range.len as u64 }) };
    1
}

pub(super) extern "C" fn meet(
    run: *mut Run<'_>,
    thread: *const Thread,
    kind: u32,
    mask: u32,
    value: u64,
) -> *const Gather {
    // SAFETY: the kernel passes on what it was given.
    let (run, thread) = unsafe { (&mut *run, &*thread) };
    if mask >> thread.lane & 1 == 0 {
        let line = format!(
            "{}: the mask {mask:#x} of a warp's instruction lacks the calling lane {}",
            run.place(thread),
            thread.lane
        );
        run.give_up(refusal(LAUNCH_FAILED, line));
    }
    let same = |pending: &Pending| {
        pending.warp == thread.warp && pending.kind == kind && pending.mask == mask
    };
    let at = run.pending.iter().position(same).unwrap_or_else(|| {
        let (warp, arrived) = (thread.warp, 0);
        run.pending.push(Pending { warp, kind, mask, arrived, value: [0; 32] });
        run.pending.len() - 1
    });
    run.pending[at].arrived |= 1 << thread.lane;
    run.pending[at].value[thread.lane as usize] = value;
    if !run.complete_meeting(at) {
        run.leave(State::Waiting("warp instruction"));
    }
    &raw const run.gathers[thread.warp as usize * 32 + mask.trailing_zeros() as usize]
}

pub(super) extern "C" fn barrier(
    run: *mut Run<'_>,
    thread: *const Thread,
    id: u32,
    count: u32,
    wait: u32,
    predicate: u32,
) -> u64 {
    // SAFETY: the kernel passes on what it was given.
    let (run, thread) = unsafe { (&mut *run, &*thread) };
    let known = run.barriers.get(id as usize).map(|barrier| (barrier.arrived, barrier.count));
    let fault = match known {
        None => Some(format!("barrier {id} of 16")),
        Some((arrived, other)) if arrived > 0 && other != count => {
            Some(format!("barrier {id} is met with counts {other} and {count}"))
        }
        _ if !count.is_multiple_of(32) => {
            Some(format!("barrier count {count} is no multiple of 32"))
        }
        _ => None,
    };
    if let Some(fault) = fault {
        let line = format!("{}: {fault}", run.place(thread));
        run.give_up(refusal(LAUNCH_FAILED, line));
    }
    let (id, own) = (id as usize, run.current);
    let met = &mut run.barriers[id];
    met.count = count;
    met.arrived += 1;
    met.yes += u32::from(predicate != 0);
    if wait != 0 {
        met.waiting.push(own);
    }
    if !run.complete_barrier(id) && wait != 0 {
        run.leave(State::Waiting("barrier"));
    }
    run.barrier_results[id]
}
