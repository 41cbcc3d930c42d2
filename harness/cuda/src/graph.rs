//! CUDA graphs: what was launched once is recorded, and replayed as one launch.
//!
//! A network's forward pass is a few hundred launches of kernels that take microseconds each, so
//! that a small batch waits for the host. A graph has no such gaps.
//!
//! The rules for what is recorded: fixed shapes; it reads from and writes to tensors that were there
//! before; memory that it takes it gives back; nothing is copied between host and device but what
//! candle keeps from the runs before; nobody else uses the device's stream meanwhile, and the work
//! opens no device. Runs beforehand make plans, workspaces, packed weights and modules.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Error, Result};

use crate::memory;

/// Runs before the recording: one that makes what is kept, one that finds it made.
const RUNS_BEFORE: usize = 2;

/// Recorded work. It reads what candle keeps for the thread that recorded it, and is of no use once
/// that thread has ended.
pub struct Replay {
    graph: CudaGraph,
    device: CudaDevice,
}

// SAFETY: a graph belongs to no thread. CUDA asks that no two threads use it at a time, and every
// method that does takes `&mut self`, or owns it.
unsafe impl Send for Replay {}

impl Replay {
    /// Runs `work` twice, and records a third run, which computes nothing yet.
    ///
    /// # Errors
    /// What `work` says, and work that cannot be recorded. The device can be used as before.
    pub fn record(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let device = device.as_cuda_device()?.clone();
        // Small uploads of candle's own, as the strides of a view, are kept by their content.
        let _kept = device.enable_cuda_graph_htod_cache();
        for _ in 0..RUNS_BEFORE {
            work()?;
        }
        let stream = device.cuda_stream();
        let _alone = alone();
        // A graph has memory of its own: what the runs have freed is better used for that.
        memory::give_back(&Device::Cuda(device.clone()))?;
        // Relaxed: what another thread does with a stream of its own is its own affair.
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).w()?;
        let mut capture = Capture { stream: &stream, is_open: true };
        let worked = work();
        let graph = capture.end();
        let refused = match (worked, graph) {
            (Ok(()), Ok(Some(graph))) => return Ok(Self { graph, device }),
            (Err(error), _) => error,
            (Ok(()), Err(error)) => Error::wrap(error),
            (Ok(()), Ok(None)) => Error::msg("expected work on the device's stream, got none"),
        };
        // Tensors that were dropped on the way could not return what the driver said to that.
        let _ = stream.context().check_err();
        Err(refused)
    }

    /// Does the work again, behind what the stream has to do already.
    ///
    /// # Errors
    /// A launch that the driver refuses.
    pub fn launch(&mut self) -> Result<()> {
        self.graph.launch().w()
    }
}

/// To be held while a stream records, and by who waits for a whole context, as cudarc does when it opens
/// a device: CUDA refuses that while any stream of the context records, and the recording is lost.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that records.
struct Capture<'a> {
    stream: &'a Arc<CudaStream>,
    is_open: bool,
}

impl Capture<'_> {
    fn end(&mut self) -> std::result::Result<Option<CudaGraph>, DriverError> {
        self.is_open = false;
        // A tensor from outside that was dropped on the way could not be freed, and left an error. It
        // is taken first: while it stands, cudarc does not even end the recording.
        let dropped = self.stream.context().check_err();
        // No flags. With AUTO_FREE_ON_LAUNCH a tensor that was made in the recording and kept would
        // be freed under its owner's feet; without, the second launch refuses.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        dropped.and(graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // After a panic in the work: a stream that goes on recording is of no use to anybody.
        if self.is_open {
            drop(self.end());
            let _ = self.stream.context().check_err();
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // A launch that is still running needs the graph. An error stands in the context, and the
        // next call that can return one does.
        let stream = self.device.cuda_stream();
        stream.context().record_err(stream.synchronize());
    }
}
