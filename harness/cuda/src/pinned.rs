//! Memory of the host that the device copies from and to by itself, and when it has done so.
//!
//! cudarc's pinned memory has an event too, but records it only where events are tracked, which
//! [`crate::open()`] switches off: waiting for it would then be waiting for nothing.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CU_MEMHOSTALLOC_WRITECOMBINED, CUdeviceptr};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
};

/// What the host does with pinned memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It writes and never reads, past its caches.
    Write,
    Read,
}

/// Pinned memory. The host waits for the last copy before it touches or frees it.
pub(crate) struct Pinned<T> {
    /// After this nothing is copied any more.
    copied: CudaEvent,
    memory: PinnedHostSlice<T>,
}

impl<T: DeviceRepr + ValidAsZeroBits> Pinned<T> {
    /// Room for `len` numbers, whose bits are whatever they are.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize, purpose: Use) -> Result<Self> {
        let flags = match purpose {
            Use::Write => CU_MEMHOSTALLOC_WRITECOMBINED,
            Use::Read => 0,
        };
        // SAFETY: any bits are a number, as the bound on plain numbers says.
        let memory = unsafe { context.alloc_pinned_with_flags::<T>(len.max(1), flags) }.w()?;
        Ok(Self { copied: context.new_event(None).w()?, memory })
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Waits for the last copy.
    ///
    /// # Errors
    /// What the driver says, also of work that was queued before the copy.
    pub(crate) fn read(&self) -> Result<&[T]> {
        self.copied.synchronize().w()?;
        self.memory.as_slice().w()
    }

    /// Waits for the last copy.
    ///
    /// # Errors
    /// As [`Pinned::read`].
    pub(crate) fn write(&mut self) -> Result<&mut [T]> {
        self.copied.synchronize().w()?;
        self.memory.as_mut_slice().w()
    }

    /// Queues a copy of the first `len` numbers to the device.
    ///
    /// # Errors
    /// Fewer numbers than `len`, or what the driver says.
    ///
    /// # Safety
    /// `target` has room for them, and is neither freed nor used otherwise before `stream` has come
    /// to the end of the copy.
    pub(crate) unsafe fn send(
        &mut self,
        len: usize,
        target: CUdeviceptr,
        stream: &CudaStream,
    ) -> Result<()> {
        let numbers = self.write()?;
        let Some(numbers) = numbers.get(..len) else {
            candle_core::bail!("pinned memory expected at most {} numbers, got {len}", self.len());
        };
        // SAFETY: the caller vouches for the target. The numbers stay as they are until `copied` has
        // happened, for which everybody waits who touches or frees them.
        unsafe { result::memcpy_htod_async(target, numbers, stream.cu_stream()) }.w()?;
        self.copied.record(stream).w()
    }

    /// Queues a copy of `len` numbers from the device.
    ///
    /// # Errors
    /// As [`Pinned::send`].
    ///
    /// # Safety
    /// `source` has so many numbers, and is neither freed nor written before `stream` has come to
    /// the end of the copy.
    pub(crate) unsafe fn fetch(
        &mut self,
        len: usize,
        source: CUdeviceptr,
        stream: &CudaStream,
    ) -> Result<()> {
        let most = self.len();
        let Some(numbers) = self.write()?.get_mut(..len) else {
            candle_core::bail!("pinned memory expected at most {most} numbers, got {len}");
        };
        // SAFETY: as in `send`.
        unsafe { result::memcpy_dtoh_async(numbers, source, stream.cu_stream()) }.w()?;
        self.copied.record(stream).w()
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let context = self.memory.context();
        context.record_err(self.copied.synchronize());
    }
}
