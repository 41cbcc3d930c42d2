//! Scratch memory of the convolutions: one piece for each device, which grows and is kept.

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdeviceptr, CUmemPool_attribute, CUstreamCaptureStatus,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtrMut, result};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Result, bail};

use crate::memory;

/// Whether the device's stream is recording a CUDA graph.
pub(crate) fn is_capturing(device: &CudaDevice) -> bool {
    !matches!(
        device.cuda_stream().capture_status(),
        Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    )
}

/// What could be allocated on the device: what nobody has taken, and what this process has freed but
/// keeps for its next allocation.
///
/// # Errors
/// The device does not answer.
pub(crate) fn available(device: &CudaDevice) -> Result<usize> {
    let stream = device.cuda_stream();
    let (free, _) = stream.context().mem_get_info().w()?;
    let Some(pool) = memory::pool(device).w()? else {
        return Ok(free);
    };
    let bytes = |attribute| -> Result<usize> {
        let mut bytes = 0_u64;
        // SAFETY: the pool is the device's own, and both attributes are a `cuuint64_t`.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.w()?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    let reserved = bytes(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = bytes(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(free.saturating_add(reserved.saturating_sub(used)))
}

/// Memory on one device for whoever works on its stream at the moment.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    memory: Option<CudaSlice<u8>>,
    /// Whether a captured graph has seen `memory`.
    captured: bool,
    /// Pieces that were outgrown, but that a captured graph still writes to.
    retired: Vec<CudaSlice<u8>>,
    /// How often memory was allocated.
    allocations: usize,
}

impl Workspace {
    /// At least `bytes` of uninitialised memory, aligned to 256; a null pointer for 0 bytes. It holds
    /// until the next call, and all work on it has to go to the device's stream, in order.
    ///
    /// # Errors
    /// The memory cannot be had, or more is needed than before while a graph is captured.
    pub(crate) fn get(&mut self, device: &CudaDevice, bytes: usize) -> Result<CUdeviceptr> {
        if bytes == 0 {
            return Ok(0);
        }
        let capturing = is_capturing(device);
        let has = self.memory.as_ref().map_or(0, CudaSlice::len);
        if has < bytes {
            if capturing {
                bail!(
                    "grow the workspace while a graph is captured: expected at most {has} bytes, \
                     got {bytes}; run the same shapes once before"
                );
            }
            // The old piece goes first, so that both need not fit. Work on it that is still queued
            // is ahead of the release on the same stream.
            if let Some(old) = self.memory.take()
                && self.captured
            {
                self.retired.push(old);
            }
            self.captured = false;
            // SAFETY: nobody reads what he has not written.
            self.memory = Some(unsafe { device.alloc::<u8>(bytes) }?);
            self.allocations += 1;
        }
        self.captured |= capturing;
        let Some(memory) = self.memory.as_mut() else {
            bail!("workspace expected {bytes} bytes, got none");
        };
        let stream = device.cuda_stream();
        let (pointer, recorded) = memory.device_ptr_mut(&stream);
        // All work on the memory goes to this one stream, which orders it without the event.
        drop(recorded);
        Ok(pointer)
    }

    pub(crate) fn allocations(&self) -> usize {
        self.allocations
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, CudaSlice::len)
    }
}
