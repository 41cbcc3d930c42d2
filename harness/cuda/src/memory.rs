//! What is to be known about a device's memory: that freed memory is kept for the next call, that
//! it can be given back, and how much there is.
//!
//! candle frees with `cuMemFreeAsync`. Unless told otherwise, the driver gives freed memory back to
//! the system whenever somebody waits for the device, and has to ask for it again at the next call.

use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result};

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What nobody has taken, neither this process nor another.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// How much memory a device has.
///
/// # Errors
/// A device that is no CUDA device, or does not answer.
pub fn memory(device: &Device) -> Result<Memory> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let (free, total) = stream.context().mem_get_info().w()?;
    Ok(Memory { free: free as u64, total: total as u64 })
}

/// Keeps freed memory for the next call, as long as nobody calls [`give_back`]. Once for each
/// device.
///
/// # Errors
/// A device that does not answer.
pub(crate) fn keep(device: &CudaDevice) -> Result<()> {
    let Some(pool) = pool(device).w()? else { return Ok(()) };
    let mut threshold = u64::MAX;
    // SAFETY: the pool is the device's own, and this attribute is a `cuuint64_t`.
    unsafe {
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
    .w()
}

/// How much freed memory a device keeps for the next call; `u64::MAX` is all of it, as [`crate::open`]
/// asks for. 0 for one that has no pool.
///
/// # Errors
/// A device that is no CUDA device, or does not answer.
pub fn kept(device: &Device) -> Result<u64> {
    let Some(pool) = pool(device.as_cuda_device()?).w()? else { return Ok(0) };
    let mut threshold = 0u64;
    // SAFETY: the pool is the device's own, and this attribute is a `cuuint64_t`.
    unsafe {
        result::mem_pool::get_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
    .w()?;
    Ok(threshold)
}

/// Waits for the device and gives back what this process has freed, so that others can have it: a
/// worker on the same device, or a smaller batch after one that did not fit.
///
/// # Errors
/// A device that is no CUDA device, or does not answer.
pub fn give_back(device: &Device) -> Result<()> {
    let device = device.as_cuda_device()?;
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    if let Some(pool) = pool(device).w()? {
        // SAFETY: the pool is the device's own.
        unsafe { result::mem_pool::trim_to(pool, 0) }.w()?;
    }
    // What CUDA graphs have taken is kept apart.
    // SAFETY: the device is that of the context, and stays valid as long as the driver is loaded.
    unsafe { sys::cuDeviceGraphMemTrim(stream.context().cu_device()) }.result().w()
}

/// The pool that the device allocates from, where it has one.
pub(crate) fn pool(
    device: &CudaDevice,
) -> std::result::Result<Option<sys::CUmemoryPool>, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread()?;
    // SAFETY: the device is that of a living context.
    unsafe { result::device::get_mem_pool(context.cu_device()) }.map(Some)
}
