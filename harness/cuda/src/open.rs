//! A device with what the rest of this crate relies on.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Device, Result};

use crate::{graph, memory};

/// Opens a device with a stream of its own, on which everything is done: candle's default stream is
/// another one for each thread. Every call makes another device, whose tensors do not go together
/// with those of the first.
///
/// # Errors
/// A device that cannot be had; see [`crate::probe::probe`] for a better message.
pub fn open(ordinal: usize) -> Result<Device> {
    let _alone = graph::alone();
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: all tensors of the device are allocated, used and freed on its one stream, which keeps
    // them in order by itself. The streams of `staging` and of the uploads touch memory that their
    // owners keep until events of their own have happened. Without this every tensor costs two
    // events, and a stream that is captured would wait for events from outside of the capture.
    unsafe { device.disable_event_tracking() };
    memory::keep(&device)?;
    // candle's own products use the same cuBLAS handle.
    crate::gemm::prepare(&device)?;
    Ok(Device::Cuda(device))
}
