//! A cuDNN handle on the stream of a device, and the plans that were chosen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{Error, Result};

use super::descriptor::Failure;
use super::engines;
use super::graph::Graph;
use super::plan::Plan;
use super::timing::time;
use crate::conv::{Pointers, Problem, is_timed};
use crate::workspace::{Workspace, available, is_capturing};

/// Plans that are timed against each other. The first ones of a list are often one engine with other
/// tile sizes.
const CANDIDATES: usize = 12;

/// After so long no more plans are prepared for a problem that has one. Most engines are ready within
/// milliseconds, but some are compiled first, and a network has a hundred problems.
const PREPARATION: Duration = Duration::from_millis(500);

/// No plan may want more workspace.
const WORKSPACE_LIMIT: usize = 1 << 30;

/// Which configuration of the list was the fastest, by the device's ordinal and the problem, for all
/// sessions of the process.
static CHOICES: Mutex<Option<HashMap<(usize, Problem), usize>>> = Mutex::new(None);

/// What became of a convolution.
pub(crate) enum Outcome {
    Done,
    /// No engine may compute it, and why.
    Unsupported(String),
}

/// A plan, and how it was chosen.
#[derive(Debug)]
struct Chosen {
    // Fields are dropped in this order: the plan before the graph.
    plan: Plan,
    _graph: Graph,
    /// Milliseconds, if it was timed here.
    time: Option<f32>,
    /// How many plans it was chosen from; 1 if it was the first that would do.
    of: usize,
}

pub(crate) struct Session {
    handle: sys::cudnnHandle_t,
    /// The plan for each problem, or why there is none.
    plans: HashMap<Problem, std::result::Result<Chosen, String>>,
    reused: usize,
    stream: Arc<CudaStream>,
    ordinal: usize,
}

// SAFETY: a handle may be used by any thread, by one at a time; the owner's mutex sees to that.
unsafe impl Send for Session {}

impl Session {
    /// Opens cuDNN on the device's stream. The context of the device has to be the thread's.
    ///
    /// # Errors
    /// One line that says why there is no cuDNN.
    pub(crate) fn open(device: &CudaDevice) -> std::result::Result<Self, String> {
        let mut handle: sys::cudnnHandle_t = std::ptr::null_mut();
        // SAFETY: cuDNN writes one pointer. Where the library is missing, the call answers with a status
        // all the same (a build that links it does not start without it).
        let status = unsafe { sys::cudnnCreate(&raw mut handle) };
        // Nothing else may be called until this has succeeded, not even for the text of the status.
        if status != sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS || handle.is_null() {
            return Err(format!(
                "cuDNN does not open: status {} (is `libcudnn.so.9` where the loader looks?)",
                status as u32
            ));
        }
        let stream = device.cuda_stream();
        let ordinal = stream.context().ordinal();
        let session = Self { handle, plans: HashMap::new(), reused: 0, stream, ordinal };
        // SAFETY: the session keeps the stream, and drops the handle first. The two types of a stream are
        // the same pointer.
        unsafe {
            let status = sys::cudnnSetStream(session.handle, session.stream.cu_stream().cast());
            Failure::check("set cuDNN's stream", status).map_err(|failure| failure.to_string())?;
        }
        Ok(session)
    }

    /// As `9.10.2`.
    pub(crate) fn version(&self) -> String {
        // SAFETY: cuDNN is open. The number is major * 10000 + minor * 100 + patch since version 9.
        let version = unsafe { sys::cudnnGetVersion() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Problems that were asked for, and executions of a plan that was there.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.plans.len(), self.reused)
    }

    /// See [`crate::conv::report`].
    pub(crate) fn report(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .plans
            .iter()
            .map(|(problem, chosen)| match chosen {
                Ok(Chosen { plan, time, of, .. }) => {
                    let engine = plan.engine();
                    let time = time.map_or("not timed".to_owned(), |ms| {
                        let rate = problem.geometry.operations() / (f64::from(ms) * 1e9);
                        format!("{ms:.4} ms, {rate:.1} TFLOP/s")
                    });
                    format!(
                        "{problem}: engine {engine} of {of}, {time}, workspace {} bytes",
                        plan.workspace
                    )
                }
                Err(why) => format!("{problem}: im2col, since {why}"),
            })
            .collect();
        lines.sort();
        lines
    }

    /// Queues the convolution, with the plan for the problem, which is chosen now if there is none.
    ///
    /// # Safety
    /// As for [`crate::conv::run`]; the pointers fit the problem.
    pub(crate) unsafe fn run(
        &mut self,
        device: &CudaDevice,
        workspace: &mut Workspace,
        problem: &Problem,
        pointers: Pointers,
    ) -> Result<Outcome> {
        if self.plans.contains_key(problem) {
            self.reused += 1;
        } else {
            // SAFETY: passed on.
            let chosen = unsafe { self.choose(device, workspace, problem, pointers) }?;
            self.plans.insert(*problem, chosen);
        }
        match &self.plans[problem] {
            Ok(Chosen { plan, .. }) => {
                let scratch = workspace.get(device, plan.workspace)?;
                // SAFETY: the workspace is as large as the plan says; the rest is passed on.
                unsafe { plan.execute(self.handle, pointers, scratch) }
                    .map_err(|failure| error(problem, &failure))?;
                Ok(Outcome::Done)
            }
            Err(why) => Ok(Outcome::Unsupported(why.clone())),
        }
    }

    /// The fastest of the first few plans that will do. While a graph is captured nothing can be timed,
    /// and the first of them is taken.
    ///
    /// The inner error says why no engine may compute the problem.
    ///
    /// # Safety
    /// As for [`Session::run`].
    unsafe fn choose(
        &self,
        device: &CudaDevice,
        workspace: &mut Workspace,
        problem: &Problem,
        pointers: Pointers,
    ) -> Result<std::result::Result<Chosen, String>> {
        let graph = match Graph::new(self.handle, problem) {
            Ok(graph) => graph,
            Err(failure) if is_unsupported(&failure) => return Ok(Err(failure.to_string())),
            Err(failure) => return Err(error(problem, &failure)),
        };
        let listed = match engines::list(self.handle, &graph) {
            Ok(listed) => listed,
            Err(failure) if is_unsupported(&failure) => return Ok(Err(failure.to_string())),
            Err(failure) => return Err(error(problem, &failure)),
        };
        let capturing = is_capturing(device);
        let limit = if capturing {
            workspace.bytes()
        } else {
            WORKSPACE_LIMIT.min(available(device)?.saturating_add(workspace.bytes()))
        };
        let known = self.known(problem);
        let wanted = if capturing || known.is_some() || !is_timed() { 1 } else { CANDIDATES };
        let (count, mut unsuitable, mut last) = (listed.len(), 0, None);
        let mut listed: Vec<_> = listed.into_iter().enumerate().collect();
        if let Some(known) = known.filter(|&known| known < count) {
            listed[..=known].rotate_right(1);
        }
        let (mut plans, begun) = (Vec::new(), Instant::now());
        for (position, configuration) in listed {
            if !configuration.suits(problem) {
                unsuitable += 1;
                continue;
            }
            match Plan::new(self.handle, configuration) {
                Ok(plan) if plan.workspace <= limit => plans.push((position, plan)),
                Ok(plan) => {
                    last = Some(format!("one wants {} bytes of workspace", plan.workspace));
                }
                Err(failure) => last = Some(failure.to_string()),
            }
            let is_late = !plans.is_empty() && begun.elapsed() > PREPARATION;
            if plans.len() == wanted || is_late {
                break;
            }
        }
        let of = plans.len();
        if of < 2 {
            let last = last.map_or(String::new(), |last| format!("; the last: {last}"));
            let why = format!(
                "none of cuDNN's {count} engines will do, {unsuitable} for their arithmetic{last}"
            );
            if plans.is_empty() && capturing {
                // Not an answer to be kept: outside of a capture the workspace could have grown.
                return Err(Error::msg(format!(
                    "convolve {problem}: expected to have run once before a graph is captured: {why}"
                )));
            }
            let plan = plans.pop().map(|(_, plan)| plan);
            return Ok(plan.map(|plan| Chosen { plan, _graph: graph, time: None, of }).ok_or(why));
        }
        let most = plans.iter().map(|(_, plan)| plan.workspace).max().unwrap_or(0);
        let scratch = workspace.get(device, most)?;
        let mut best: Option<(usize, Plan, f32)> = None;
        for (position, plan) in plans {
            // SAFETY: the workspace is as large as the largest plan says; the rest is passed on. Each
            // execution writes the same result to the same place.
            let run = || unsafe { plan.execute(self.handle, pointers, scratch) };
            let least = best.as_ref().map_or(f32::INFINITY, |(.., least)| *least);
            if let Some(ms) = time(&self.stream, least, run)?
                && ms < least
            {
                best = Some((position, plan, ms));
            }
        }
        let Some((position, plan, ms)) = best else {
            return Ok(Err(format!("none of {of} prepared engines runs")));
        };
        let mut choices = CHOICES.lock().unwrap_or_else(PoisonError::into_inner);
        choices.get_or_insert_default().insert((self.ordinal, *problem), position);
        Ok(Ok(Chosen { plan, _graph: graph, time: Some(ms), of }))
    }

    /// The position of the configuration that another session found to be the fastest.
    fn known(&self, problem: &Problem) -> Option<usize> {
        let choices = CHOICES.lock().unwrap_or_else(PoisonError::into_inner);
        choices.as_ref()?.get(&(self.ordinal, *problem)).copied()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Plans refer to the handle.
        self.plans.clear();
        // SAFETY: created by cuDNN, and destroyed here only. There is nobody to tell of a failure.
        let _ = unsafe { sys::cudnnDestroy(self.handle) };
    }
}

/// cuDNN answers with numbers from 3000 to 3999 to what it cannot do, as opposed to what is wrong.
fn is_unsupported(failure: &Failure) -> bool {
    (3000..4000).contains(&failure.status)
}

fn error(problem: &Problem, failure: &Failure) -> Error {
    Error::msg(format!("convolve {problem}: cuDNN fails to {failure}"))
}
