//! Graphs: what a capture recorded, made ready, and run again and again.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Arc;

use super::codes::*;
use super::device::in_context;
use super::memory::Kind;
use super::{call, entries, memory};
use crate::api::{Handles, Outcome, lock, put, refusal};
use crate::work::{self, Capture, Job};

const AUTO_FREE: u64 = 1;
const UPLOAD: u64 = 2;
const DEVICE_LAUNCH: u64 = 4;
const NODE_PRIORITY: u64 = 8;

struct Graph {
    jobs: Vec<Job>,
    allocations: Vec<usize>,
}

struct Ready {
    graph: Arc<Graph>,
    auto_free: bool,
}

static GRAPHS: Handles<Graph> = Handles::new("graph");
static READY: Handles<Ready> = Handles::new("executable graph");

fn from_capture(capture: &Capture) -> Graph {
    Graph { jobs: lock(&capture.jobs).clone(), allocations: lock(&capture.allocations).clone() }
}

impl Ready {
    fn run(&self) -> Outcome {
        if self.auto_free {
            let live = |at: &&usize| memory().kind_at(**at) == Some(Kind::Graph);
            let left: Vec<usize> = self.graph.allocations.iter().filter(live).copied().collect();
            left.into_iter().try_for_each(|at| memory().free(at))?;
        }
        for (position, job) in self.graph.jobs.iter().enumerate() {
            (job.run)().map_err(|mut refusal| {
                refusal.line = format!("node {position}, {}: {}", job.name, refusal.line);
                refusal
            })?;
        }
        Ok(())
    }
}

fn instantiate(to: *mut usize, graph: usize, flags: u64) -> Outcome {
    in_context()?;
    let graph = GRAPHS.get(graph, INVALID_VALUE)?;
    let known = AUTO_FREE | UPLOAD | DEVICE_LAUNCH | NODE_PRIORITY;
    if flags & !known != 0 || (flags & AUTO_FREE != 0 && flags & DEVICE_LAUNCH != 0) {
        return Err(refusal(INVALID_VALUE, format!("flags {flags:#x} do not go together")));
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(refusal(NOT_SUPPORTED, "launching graphs from the device"));
    }
    let ready = Ready { graph, auto_free: flags & AUTO_FREE != 0 };
    put(to, READY.insert(ready), INVALID_VALUE)
}

entries! { call;
    fn cuStreamEndCapture(stream: usize, graph: *mut usize) {
        in_context()?;
        let ended = work::end_capture(stream);
        if ended.is_err() {
            put(graph, 0, INVALID_VALUE)?;
        }
        put(graph, GRAPHS.insert(from_capture(&*ended?)), INVALID_VALUE)
    }
    fn cuGraphInstantiateWithFlags(ready: *mut usize, graph: usize, flags: c_ulonglong) {
        instantiate(ready, graph, flags)
    }
    fn cuGraphDestroy(graph: usize) { GRAPHS.remove(graph, INVALID_VALUE).map(|_| ()) }
    fn cuGraphExecDestroy(ready: usize) { READY.remove(ready, INVALID_VALUE).map(|_| ()) }
    fn cuGraphUpload(ready: usize, stream: usize) {
        in_context()?;
        READY.get(ready, INVALID_VALUE)?;
        work::stream(stream).map(|_| ())
    }
    fn cuGraphLaunch(ready: usize, stream: usize) {
        in_context()?;
        let ready = READY.get(ready, INVALID_VALUE)?;
        let count = ready.graph.jobs.len();
        work::submit(stream, format!("graph of {count} nodes"), move || ready.run())
    }
    fn cuGraphGetNodes(graph: usize, nodes: *mut usize, count: *mut usize) {
        let graph = GRAPHS.get(graph, INVALID_VALUE)?;
        if !nodes.is_null() {
            return Err(refusal(NOT_SUPPORTED, "handles of single nodes"));
        }
        put(count, graph.jobs.len(), INVALID_VALUE)
    }
    fn cuGraphDebugDotPrint(graph: usize, _path: *const i8, _flags: c_uint) {
        GRAPHS.get(graph, INVALID_VALUE)?;
        Err(refusal(NOT_SUPPORTED, "printing graphs"))
    }
}
