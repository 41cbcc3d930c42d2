//! `libnccl.so.2`: collectives between threads and processes of one machine, through files in
//! shared memory. Several ranks may share the one device, which the real library refuses.

mod exchange;

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;

use crate::api::{Handles, Outcome, answer, lock, put, refusal};
use crate::driver::{entries, memory};
use crate::work;
use exchange::{Meeting, Number, Reduction};

const INTERNAL_ERROR: u32 = 3;
const INVALID_ARGUMENT: u32 = 4;
const INVALID_USAGE: u32 = 5;
/// What `ncclGetVersion` says: 2.28.3.
const VERSION: c_int = 22803;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

struct Communicator {
    meeting: Meeting,
    /// How many groups of collectives were called, and how many collectives.
    calls: Mutex<(u64, u64)>,
}

/// What becomes of the contributions of all ranks.
#[derive(Debug, Clone, Copy)]
enum Collective {
    AllReduce(Reduction),
    /// To the rank.
    Reduce(Reduction, usize),
    Broadcast(usize),
    AllGather,
    ReduceScatter(Reduction),
}

/// One call of one rank.
#[derive(Debug, Clone, Copy)]
struct Call {
    what: Collective,
    number: Number,
    /// Numbers that the rank gives.
    count: usize,
    from: usize,
    to: usize,
    communicator: usize,
    stream: usize,
}

static COMMUNICATORS: Handles<Communicator> = Handles::new("communicator");

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static GROUP: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

fn call(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, INTERNAL_ERROR, body)
}

fn join(to: *mut usize, id: UniqueId, rank: c_int, world: c_int, wait: bool) -> Outcome {
    let meeting = match (usize::try_from(rank), usize::try_from(world)) {
        (Ok(rank), Ok(world)) if rank < world => Meeting::new(&id.0, rank, world)?,
        _ => return Err(refusal(INVALID_ARGUMENT, format!("rank {rank} of {world}"))),
    };
    meeting.post("joined", &[])?;
    if wait {
        meeting.gather("joined")?;
    }
    put(
        to,
        COMMUNICATORS.insert(Communicator { meeting, calls: Mutex::default() }),
        INVALID_ARGUMENT,
    )
}

fn collect(wanted: Call) -> Outcome {
    work::stream(wanted.stream)?;
    COMMUNICATORS.get(wanted.communicator, INVALID_ARGUMENT)?;
    GROUP.with_borrow_mut(|group| group.push(wanted));
    if DEPTH.get() == 0 { run_group() } else { Ok(()) }
}

/// Runs what a group holds: every rank of this thread gives its part before any waits for others.
fn run_group() -> Outcome {
    let group = GROUP.with_borrow_mut(std::mem::take);
    let mut numbered = Vec::new();
    let mut begun: Vec<usize> = Vec::new();
    for wanted in group {
        let communicator = COMMUNICATORS.get(wanted.communicator, INVALID_ARGUMENT)?;
        if work::stream(wanted.stream)?.captured_by().is_some() {
            return Err(refusal(INVALID_USAGE, "the stand-in's collectives cannot be captured"));
        }
        let (group, call) = {
            let mut calls = lock(&communicator.calls);
            calls.0 += u64::from(!begun.contains(&wanted.communicator));
            calls.1 += 1;
            *calls
        };
        begun.push(wanted.communicator);
        let name = format!("{group}-{call}-{:?}", wanted.what).replace([' ', '(', ')', ','], "");
        let (given, poster) = (name.clone(), communicator.clone());
        work::submit(wanted.stream, format!("give to {name}"), move || {
            let len = wanted.count * wanted.number.bytes();
            memory().check("what is sent", wanted.from, len)?;
            // SAFETY: inside one allocation.
            let part = unsafe { std::slice::from_raw_parts(wanted.from as *const u8, len) };
            poster.meeting.forget(group);
            poster.meeting.post(&given, part)
        })?;
        numbered.push((wanted, communicator, name));
    }
    for (wanted, communicator, name) in numbered {
        let stream = work::stream(wanted.stream)?;
        // Threads of one process share the device; waiting on it would keep the others off.
        work::finish(&stream)?;
        communicator.meeting.gather(&name)?;
        work::submit(wanted.stream, format!("take from {name}"), move || {
            let parts = communicator.meeting.gather(&name)?;
            take(&wanted, &communicator.meeting, &parts)
        })?;
    }
    Ok(())
}

/// Writes what a rank gets.
fn take(wanted: &Call, meeting: &Meeting, parts: &[Vec<u8>]) -> Outcome {
    let len = wanted.count * wanted.number.bytes();
    if let Some(other) = parts.iter().find(|part| part.len() != len) {
        let line = format!("ranks give {len} and {} bytes", other.len());
        return Err(refusal(INVALID_USAGE, line));
    }
    let result = match wanted.what {
        Collective::AllReduce(how) => wanted.number.reduce(how, parts),
        Collective::Reduce(how, root) if root == meeting.rank => wanted.number.reduce(how, parts),
        Collective::Reduce(..) => return Ok(()),
        Collective::Broadcast(root) => parts[root].clone(),
        Collective::AllGather => parts.concat(),
        Collective::ReduceScatter(how) => {
            let all = wanted.number.reduce(how, parts);
            let share = all.len() / meeting.world;
            all[meeting.rank * share..][..share].to_vec()
        }
    };
    memory().check("what is received", wanted.to, result.len())?;
    // SAFETY: inside one allocation.
    unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), wanted.to as *mut u8, result.len()) };
    Ok(())
}

fn root_of(root: c_int, communicator: usize) -> Outcome<usize> {
    let world = COMMUNICATORS.get(communicator, INVALID_ARGUMENT)?.meeting.world;
    let root = usize::try_from(root).ok().filter(|root| *root < world);
    root.ok_or_else(|| refusal(INVALID_ARGUMENT, format!("root of {world} ranks")))
}

entries! { call;
    fn ncclGetVersion(version: *mut c_int) { put(version, VERSION, INVALID_ARGUMENT) }
    fn ncclGetUniqueId(id: *mut UniqueId) {
        put(id, UniqueId(exchange::fresh_id()), INVALID_ARGUMENT)
    }
    fn ncclCommInitRank(to: *mut usize, world: c_int, id: UniqueId, rank: c_int) {
        join(to, id, rank, world, DEPTH.get() == 0)
    }
    fn ncclCommInitRankConfig(to: *mut usize, world: c_int, id: UniqueId, rank: c_int,
        _config: *mut c_void) {
        join(to, id, rank, world, DEPTH.get() == 0)
    }
    fn ncclCommInitAll(to: *mut usize, count: c_int, _devices: *const c_int) {
        let id = UniqueId(exchange::fresh_id());
        (0..count).try_for_each(|rank| join(to.wrapping_add(rank as usize), id, rank, count, false))
    }
    fn ncclCommDestroy(which: usize) {
        COMMUNICATORS.remove(which, INVALID_ARGUMENT)?.meeting.leave()
    }
    fn ncclCommAbort(which: usize) {
        COMMUNICATORS.remove(which, INVALID_ARGUMENT)?.meeting.leave()
    }
    fn ncclCommFinalize(which: usize) { COMMUNICATORS.get(which, INVALID_ARGUMENT).map(|_| ()) }
    fn ncclCommCount(which: usize, count: *mut c_int) {
        let world = COMMUNICATORS.get(which, INVALID_ARGUMENT)?.meeting.world;
        put(count, world as c_int, INVALID_ARGUMENT)
    }
    fn ncclCommUserRank(which: usize, rank: *mut c_int) {
        let own = COMMUNICATORS.get(which, INVALID_ARGUMENT)?.meeting.rank;
        put(rank, own as c_int, INVALID_ARGUMENT)
    }
    fn ncclCommCuDevice(which: usize, device: *mut c_int) {
        COMMUNICATORS.get(which, INVALID_ARGUMENT)?;
        put(device, 0, INVALID_ARGUMENT)
    }
    fn ncclCommGetAsyncError(which: usize, error: *mut u32) {
        COMMUNICATORS.get(which, INVALID_ARGUMENT)?;
        put(error, 0, INVALID_ARGUMENT)
    }
    fn ncclGroupStart() {
        DEPTH.set(DEPTH.get() + 1);
        Ok(())
    }
    fn ncclGroupEnd() {
        let depth = DEPTH.get().checked_sub(1);
        DEPTH.set(depth.ok_or_else(|| refusal(INVALID_USAGE, "no group was started"))?);
        if DEPTH.get() == 0 { run_group() } else { Ok(()) }
    }
    fn ncclAllReduce(from: usize, to: usize, count: usize, number: u32, how: u32,
        communicator: usize, stream: usize) {
        let what = Collective::AllReduce(Reduction::of(how)?);
        collect(Call { what, number: Number::of(number)?, count, from, to, communicator, stream })
    }
    fn ncclReduce(from: usize, to: usize, count: usize, number: u32, how: u32, root: c_int,
        communicator: usize, stream: usize) {
        let what = Collective::Reduce(Reduction::of(how)?, root_of(root, communicator)?);
        collect(Call { what, number: Number::of(number)?, count, from, to, communicator, stream })
    }
    fn ncclBroadcast(from: usize, to: usize, count: usize, number: u32, root: c_int,
        communicator: usize, stream: usize) {
        let root = root_of(root, communicator)?;
        let rank = COMMUNICATORS.get(communicator, INVALID_ARGUMENT)?.meeting.rank;
        // Only the root's source is read; the others give what they will overwrite.
        let from = if rank == root { from } else { to };
        let what = Collective::Broadcast(root);
        collect(Call { what, number: Number::of(number)?, count, from, to, communicator, stream })
    }
    fn ncclAllGather(from: usize, to: usize, count: usize, number: u32, communicator: usize,
        stream: usize) {
        let what = Collective::AllGather;
        collect(Call { what, number: Number::of(number)?, count, from, to, communicator, stream })
    }
    fn ncclReduceScatter(from: usize, to: usize, count: usize, number: u32, how: u32,
        communicator: usize, stream: usize) {
        let what = Collective::ReduceScatter(Reduction::of(how)?);
        let world = COMMUNICATORS.get(communicator, INVALID_ARGUMENT)?.meeting.world;
        let count = count * world;
        collect(Call { what, number: Number::of(number)?, count, from, to, communicator, stream })
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(code: u32) -> *const c_char {
    let text = match code {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        _ => c"internal error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: usize) -> *const c_char {
    c"see standard error".as_ptr()
}
