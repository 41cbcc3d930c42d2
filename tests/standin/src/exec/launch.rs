//! One launch: blocks one after the other, and in each the threads until all have ended.
//!
//! Threads that meet at a barrier or at a warp's instruction are coroutines. They run in order
//! until they wait; after each barrier the order is turned round, so that a kernel that needs a
//! barrier and lacks it computes something else. `order` has more orders.

mod calls;
mod layout;

use std::ffi::c_void;
use std::sync::LazyLock;

use super::compile::Kernel;
use super::coroutine::{Stack, keep, stacks, switch};
use super::order::Order;
use super::watch::Watch;
use crate::api::{Outcome, Refusal, refusal, switched_on};
use crate::driver::codes::LAUNCH_FAILED;
use calls::{barrier, fail, find, meet, watch};
use layout::{Cell, Gather, Watcher};
pub(super) use layout::{Context, Site, Thread};

/// What a barrier of a warp is called in translations, among the things that lanes do together.
const WARP_BARRIER: u32 = 9;

static RACES: LazyLock<bool> = LazyLock::new(|| switched_on("STANDIN_RACES"));

const STACK: usize = 128 << 10;

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Waiting(&'static str),
    Ended,
}

/// Threads of a warp on their way to one instruction.
struct Pending {
    warp: u32,
    kind: u32,
    mask: u32,
    arrived: u32,
    value: [u64; 32],
}

#[derive(Default, Clone)]
struct Barrier {
    count: u32,
    arrived: u32,
    yes: u32,
    waiting: Vec<usize>,
}

/// A launch on its way. The context comes first: kernels know this as a pointer to it.
#[repr(C)]
pub(super) struct Run<'k> {
    context: Context,
    kernel: &'k Kernel,
    threads: Vec<Thread>,
    stack_pointers: Vec<usize>,
    states: Vec<State>,
    scheduler: usize,
    current: usize,
    ended: usize,
    turned: bool,
    ready: Vec<usize>,
    pending: Vec<Pending>,
    gathers: Vec<Gather>,
    barriers: Vec<Barrier>,
    barrier_results: [u64; 16],
    watched: Watch,
    order: Order,
    failure: Option<Refusal>,
}

/// Runs a kernel to its end.
///
/// # Errors
/// What a thread does wrong; threads that wait for each other for ever.
pub(crate) fn run(kernel: &Kernel, shape: Shape, params: &[u8], globals: &[u64]) -> Outcome {
    let shared_len = kernel.shared + shape.dynamic_shared;
    // 16 bytes more, so that the block can begin at an address aligned to 128.
    let mut shared = vec![0_u8; shared_len + 128];
    let shared_start = shared.as_mut_ptr().wrapping_add(shared.as_ptr().align_offset(128));
    let mut cells = vec![Cell::default(); shared_len.div_ceil(2)];
    let mut sites = vec![Site::default(); kernel.sites];
    let count = shape.block.iter().product::<u32>() as usize;
    let mut run = Run {
        context: Context {
            params: params.as_ptr(),
            shared: shared_start,
            globals: globals.as_ptr(),
            sites: sites.as_mut_ptr(),
            shared_len: shared_len as u64,
            dynamic_len: shape.dynamic_shared as u64,
            ntid: shape.block,
            nctaid: shape.grid,
            ctaid: [0; 3],
            epoch: 0,
            cells: cells.as_mut_ptr(),
            fail,
            find,
            meet,
            watch: RACES.then_some(watch as Watcher),
            barrier,
        },
        kernel,
        threads: Vec::new(),
        stack_pointers: Vec::new(),
        states: Vec::new(),
        scheduler: 0,
        current: 0,
        ended: 0,
        turned: false,
        ready: Vec::new(),
        pending: Vec::new(),
        gathers: Vec::new(),
        barriers: Vec::new(),
        barrier_results: [0; 16],
        watched: Watch::default(),
        order: Order::new(),
        failure: None,
    };
    let used = if kernel.meets { count } else { 1 };
    let stacks = stacks(used, STACK + kernel.local);
    if kernel.meets {
        let [width, height, depth] = shape.grid.map(|extent| extent as usize);
        for block in run.order.blocks(width * height * depth) {
            let at = [block % width, block / width % height, block / (width * height)];
            run.context.ctaid = at.map(|at| at as u32);
            run.context.epoch += 1;
            // SAFETY: the block's shared memory, which no thread uses yet.
            unsafe { std::ptr::write_bytes(run.context.shared, 0xFF, shared_len) };
            run.block(&stacks);
            if run.failure.is_some() {
                break;
            }
        }
    } else {
        run.alone(&stacks[0]);
    }
    keep(stacks);
    run.failure.map_or(Ok(()), Err)
}

impl Run<'_> {
    fn add_thread(&mut self, stack: &Stack, start: super::coroutine::Start) {
        let linear = self.threads.len();
        let [x, y, _] = self.context.ntid.map(|extent| extent as usize);
        let (stack_low, stack_len) = stack.range();
        self.threads.push(Thread {
            tid: [linear % x, linear / x % y, linear / (x * y)].map(|at| at as u32),
            lane: (linear % 32) as u32,
            warp: (linear / 32) as u32,
            linear: linear as u32,
            stack_low,
            stack_len,
            meeting: 0,
            padding: 0,
        });
        let own: *mut Self = self;
        self.stack_pointers.push(stack.prepare(start, own.cast(), linear));
        self.states.push(State::Ready);
        self.ready.push(linear);
    }

    fn reset(&mut self) {
        self.threads.clear();
        self.stack_pointers.clear();
        self.states.clear();
        self.ready.clear();
        self.pending.clear();
        self.ended = 0;
        self.turned = false;
        self.barriers.clear();
        self.barriers.resize(16, Barrier::default());
    }

    /// Runs a grid whose threads never wait: one coroutine for all, so that a failure can leave.
    fn alone(&mut self, stack: &Stack) {
        self.reset();
        self.add_thread(stack, start_grid);
        self.resume(0);
    }

    fn block(&mut self, stacks: &[Stack]) {
        self.reset();
        let warps = stacks.len().div_ceil(32);
        self.gathers.resize(warps * 32, Gather { mask: 0, kind: 0, value: [0; 32] });
        for stack in stacks {
            self.add_thread(stack, start_thread);
        }
        while self.ended < stacks.len() && self.failure.is_none() {
            let mut round = std::mem::take(&mut self.ready);
            self.order.arrange(&mut round);
            if round.is_empty() {
                self.deadlock();
                return;
            }
            for thread in round {
                self.resume(thread);
                if self.failure.is_some() {
                    return;
                }
            }
        }
    }

    fn resume(&mut self, thread: usize) {
        self.current = thread;
        let to = self.stack_pointers[thread];
        let own: *mut usize = &raw mut self.scheduler;
        // SAFETY: the stack was prepared, or left by a switch; the scheduler's own is stored.
        unsafe { switch(own, to) };
    }

    /// Leaves the current thread for the scheduler.
    fn leave(&mut self, state: State) {
        self.states[self.current] = state;
        let to = self.scheduler;
        let own: *mut usize = &raw mut self.stack_pointers[self.current];
        // SAFETY: the scheduler's stack was stored when it resumed this thread.
        unsafe { switch(own, to) };
    }

    fn deadlock(&mut self) {
        let stuck = self.states.iter().enumerate().find_map(|(at, state)| match state {
            State::Waiting(what) => Some((at, *what)),
            _ => None,
        });
        let waiting = self.states.iter().filter(|state| **state != State::Ended).count();
        let line = match stuck {
            Some((at, what)) => format!(
                "kernel `{}`, block {:?}: {waiting} of {} threads wait for ever, thread {at} at \
                 a {what} that others never reach",
                self.kernel.name,
                self.context.ctaid,
                self.states.len()
            ),
            None => format!("kernel `{}`: no thread can go on", self.kernel.name),
        };
        self.failure = Some(refusal(LAUNCH_FAILED, line));
    }

    fn warp_alive(&self, warp: u32) -> u32 {
        let first = warp as usize * 32;
        let lanes = self.states.iter().skip(first).take(32).enumerate();
        lanes
            .filter(|(_, state)| **state != State::Ended)
            .fold(0, |mask, (lane, _)| mask | 1 << lane)
    }

    fn wake(&mut self, threads: impl Iterator<Item = usize>) {
        for thread in threads {
            self.states[thread] = State::Ready;
            self.ready.push(thread);
        }
    }

    /// Lets a warp's instruction happen if all lanes that can still come are there.
    fn complete_meeting(&mut self, at: usize) -> bool {
        let pending = &self.pending[at];
        let needed = pending.mask & self.warp_alive(pending.warp);
        if pending.arrived & needed != needed {
            return false;
        }
        let pending = self.pending.swap_remove(at);
        let first = pending.warp as usize * 32;
        let slot = first + pending.mask.trailing_zeros() as usize;
        self.gathers[slot] =
            Gather { mask: pending.arrived, kind: pending.kind, value: pending.value };
        let current = self.current;
        let lanes = (0..32).filter(|lane| pending.arrived >> lane & 1 == 1);
        // Of what lanes do together, only their barrier orders what they read and write.
        if pending.kind == WARP_BARRIER {
            for lane in lanes.clone() {
                self.threads[first + lane].meeting += 1;
            }
        }
        let others: Vec<usize> =
            lanes.map(|lane| first + lane).filter(|thread| *thread != current).collect();
        self.wake(others.into_iter());
        true
    }

    fn complete_barrier(&mut self, id: usize) -> bool {
        let alive = (self.states.len() - self.ended) as u32;
        let barrier = &self.barriers[id];
        let needed = if barrier.count == 0 { alive } else { barrier.count };
        if barrier.arrived == 0 || barrier.arrived < needed {
            return false;
        }
        let barrier = std::mem::take(&mut self.barriers[id]);
        self.context.epoch += 1;
        self.barrier_results[id] = u64::from(barrier.arrived) << 32 | u64::from(barrier.yes);
        let current = self.current;
        let mut others: Vec<usize> =
            barrier.waiting.into_iter().filter(|thread| *thread != current).collect();
        others.sort_unstable();
        self.turned = !self.turned;
        if self.turned {
            others.reverse();
        }
        self.wake(others.into_iter());
        true
    }

    fn end_current(&mut self) {
        self.ended += 1;
        self.states[self.current] = State::Ended;
        // What waited for this thread need not any more.
        let mut at = 0;
        while at < self.pending.len() {
            if !self.complete_meeting(at) {
                at += 1;
            }
        }
        for id in 0..self.barriers.len() {
            self.complete_barrier(id);
        }
    }

    fn place(&self, thread: &Thread) -> String {
        format!(
            "kernel `{}`, block {:?}, thread {:?}",
            self.kernel.name, self.context.ctaid, thread.tid
        )
    }

    fn give_up(&mut self, failure: Refusal) -> ! {
        self.failure = Some(failure);
        self.leave(State::Ended);
        unreachable!("a failed launch is never resumed")
    }
}

unsafe extern "C" fn start_thread(run: *mut c_void, thread: usize) -> ! {
    let run = run.cast::<Run<'_>>();
    // SAFETY: the launch outlives its stacks, and one thing at a time runs. The kernel's code
    // changes the launch through the same pointer, so no reference is held across it.
    unsafe {
        let entry = (*run).kernel.thread;
        let own = (&raw mut (*run).threads).cast::<Vec<Thread>>();
        entry((&raw mut (*run).context).cast(), (*own).as_mut_ptr().add(thread));
        (*run).end_current();
        (*run).leave(State::Ended);
    }
    unreachable!("an ended thread is never resumed")
}

unsafe extern "C" fn start_grid(run: *mut c_void, _thread: usize) -> ! {
    let run = run.cast::<Run<'_>>();
    // SAFETY: as in `start_thread`.
    unsafe {
        let entry = (*run).kernel.grid;
        let own = (&raw mut (*run).threads).cast::<Vec<Thread>>();
        entry((&raw mut (*run).context).cast(), (*own).as_mut_ptr());
        (*run).leave(State::Ended);
    }
    unreachable!("an ended grid is never resumed")
}
