//! What is kept for each device: the workspace, and cuDNN's handle and plans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{Result, bail};

use super::{Backend, Counts, Method, Pointers, Problem};
#[cfg(feature = "cudnn")]
use crate::cudnn::{Outcome, Session};
use crate::workspace::Workspace;

/// The handle of the stream that is another one in each thread.
const PER_THREAD_STREAM: usize = 2;

type Key = (DeviceId, Option<ThreadId>);

/// Kept for as long as the process lives: a captured graph may use what is in it.
static STATES: Mutex<Option<HashMap<Key, Arc<Mutex<State>>>>> = Mutex::new(None);

/// Calls `f` with what is kept for the device and the stream, and nobody else at the same time: the
/// order of the stream is then also the order in which the workspace is used.
pub(super) fn with<R>(device: &CudaDevice, f: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
    let stream = device.cuda_stream();
    // Libraries act on the context of the calling thread.
    stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
    let per_thread = stream.cu_stream() as usize == PER_THREAD_STREAM;
    let key = (device.id(), per_thread.then(|| std::thread::current().id()));
    let state = {
        let mut states = STATES.lock().unwrap_or_else(PoisonError::into_inner);
        states.get_or_insert_default().entry(key).or_default().clone()
    };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut state)
}

#[derive(Default)]
pub(super) struct State {
    workspace: Workspace,
    /// The session, or why there is none; absent until it is asked for.
    #[cfg(feature = "cudnn")]
    cudnn: Option<std::result::Result<Session, String>>,
}

#[cfg(feature = "cudnn")]
impl State {
    /// # Safety
    /// As for [`super::run`].
    pub(super) unsafe fn run(
        &mut self,
        device: &CudaDevice,
        method: Method,
        problem: &Problem,
        pointers: Pointers,
    ) -> Result<()> {
        if method == Method::Im2col {
            // SAFETY: passed on.
            return unsafe { crate::im2col::run(device, &mut self.workspace, problem, pointers) };
        }
        let why = match self.cudnn.get_or_insert_with(|| Session::open(device)) {
            Ok(session) => {
                // SAFETY: passed on.
                let outcome =
                    unsafe { session.run(device, &mut self.workspace, problem, pointers) }?;
                match outcome {
                    Outcome::Done => return Ok(()),
                    Outcome::Unsupported(why) => why,
                }
            }
            Err(why) => why.clone(),
        };
        if method == Method::Cudnn {
            bail!("convolve {problem} by cuDNN: {why}");
        }
        // SAFETY: passed on.
        unsafe { crate::im2col::run(device, &mut self.workspace, problem, pointers) }
    }

    pub(super) fn backend(&mut self, device: &CudaDevice) -> Backend {
        match self.cudnn.get_or_insert_with(|| Session::open(device)) {
            Ok(session) => Backend::Cudnn(session.version()),
            Err(why) => Backend::Im2col(why.clone()),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let (plans, reused) = match &self.cudnn {
            Some(Ok(session)) => session.counts(),
            _ => (0, 0),
        };
        Counts {
            plans,
            reused,
            allocations: self.workspace.allocations(),
            workspace_bytes: self.workspace.bytes(),
        }
    }

    pub(super) fn report(&self) -> Vec<String> {
        match &self.cudnn {
            Some(Ok(session)) => session.report(),
            _ => Vec::new(),
        }
    }
}

#[cfg(not(feature = "cudnn"))]
impl State {
    /// # Safety
    /// As for [`super::run`].
    pub(super) unsafe fn run(
        &mut self,
        device: &CudaDevice,
        method: Method,
        problem: &Problem,
        pointers: Pointers,
    ) -> Result<()> {
        if method == Method::Cudnn {
            bail!("convolve {problem} by cuDNN: this build has no cuDNN");
        }
        // SAFETY: passed on.
        unsafe { crate::im2col::run(device, &mut self.workspace, problem, pointers) }
    }

    pub(super) fn backend(&mut self, _device: &CudaDevice) -> Backend {
        Backend::Im2col("this build has no cuDNN".to_owned())
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            allocations: self.workspace.allocations(),
            workspace_bytes: self.workspace.bytes(),
            ..Counts::default()
        }
    }

    pub(super) fn report(&self) -> Vec<String> {
        Vec::new()
    }
}
