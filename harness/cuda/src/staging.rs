//! Images on their way to the device, and results on their way back, while it computes.
//!
//! A copy from ordinary memory makes the host wait, and one on the device's stream makes the device
//! wait. Here bytes go through pinned memory on a stream of their own, two batches taking turns:
//! while the device computes with one, the host fills the other. Events keep the order:
//!
//! - a pinned piece is filled again after its last copy;
//! - a copy overwrites memory on the device after the last kernel that read it;
//! - a kernel reads that memory after the copy;
//! - a result is copied back after what computes it, and looked at after the copy.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Storage, Tensor, bail};

use crate::pinned::{Pinned, Use};
use crate::ptx;

/// Batches that take turns.
const SLOTS: usize = 2;

/// A way to a device and back. All work on the tensors goes to the device's own stream.
pub struct Staging {
    device: CudaDevice,
    up: Arc<CudaStream>,
    down: Arc<CudaStream>,
    slots: Vec<Slot>,
    next: usize,
    /// Pinned memory that nothing is copied to at the moment.
    spare: Vec<Pinned<f32>>,
}

/// One of the batches.
struct Slot {
    pinned: Pinned<u8>,
    memory: CudaSlice<u8>,
    /// After this the device does not read `memory` any more.
    read: Option<CudaEvent>,
}

/// A result that is being copied.
pub struct Fetched {
    /// Dropping it waits for the copy, and it is dropped first.
    pinned: Pinned<f32>,
    len: usize,
    /// What is copied must stay as long as it is.
    _tensor: Tensor,
}

impl Staging {
    /// For batches of at most so many bytes.
    ///
    /// # Errors
    /// A device that is no CUDA device, or memory that cannot be had on either side.
    pub fn new(device: &Device, most_bytes: usize) -> Result<Self> {
        let device = device.as_cuda_device()?.clone();
        let stream = device.cuda_stream();
        let context = stream.context();
        let slot = |_| -> Result<Slot> {
            let pinned = Pinned::new(context, most_bytes, Use::Write)?;
            // SAFETY: a kernel reads what a copy has written.
            let memory = unsafe { device.alloc::<u8>(most_bytes.max(1)) }?;
            Ok(Slot { pinned, memory, read: None })
        };
        let slots = (0..SLOTS).map(slot).collect::<Result<_>>()?;
        let (up, down) = (context.new_stream().w()?, context.new_stream().w()?);
        // The memory belongs to the device's stream; other streams may use it once it is there.
        stream.synchronize().w()?;
        Ok(Self { device, up, down, slots, next: 0, spare: Vec::new() })
    }

    /// Has `fill` write the bytes of `n` images, and starts their way to the device. There they
    /// become `(byte / 255 - mean) / std` of their channel.
    ///
    /// # Shapes
    /// - bytes: `[n, height, width, 3]`
    /// - result: `[n, 3, height, width]`, `f32`, there when the device comes to it
    ///
    /// # Errors
    /// More bytes than were announced, or what the driver says.
    pub fn images(
        &mut self,
        n: usize,
        (height, width): (usize, usize),
        (mean, std): ([f32; 3], [f32; 3]),
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Tensor> {
        let (plane, n_bytes) = (height * width, 3 * n * height * width);
        let stream = self.device.cuda_stream();
        let nth = self.next % SLOTS;
        self.next += 1;
        let slot = &mut self.slots[nth];
        if n_bytes > slot.memory.len() {
            bail!("staging expected at most {} bytes, got {n_bytes}", slot.memory.len())
        }
        // Waits for the copy of two batches before.
        fill(&mut slot.pinned.write()?[..n_bytes]);
        if let Some(read) = &slot.read {
            self.up.wait(read).w()?;
        }
        {
            let (target, _unmanaged) = slot.memory.device_ptr_mut(&self.up);
            // SAFETY: `target` has room, as was checked, and stays; no kernel reads it any more, for
            // which `up` has waited.
            unsafe { slot.pinned.send(n_bytes, target, &self.up) }?;
        }
        stream.wait(&self.up.record_event(None).w()?).w()?;
        let out = convert(&self.device, &slot.memory, n * plane, plane, mean, std)?;
        slot.read = Some(stream.record_event(None).w()?);
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, self.device.clone()));
        let shape = (n, 3, height, width);
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }

    /// Starts to copy a tensor of `f32` to the host, behind what the device has been told so far;
    /// what it is told afterwards need not wait.
    ///
    /// # Errors
    /// Another dtype or device, or what the driver says.
    pub fn fetch(&mut self, tensor: &Tensor) -> Result<Fetched> {
        let tensor = tensor.detach().contiguous()?;
        let len = tensor.elem_count();
        let mut pinned = self.pinned(len)?;
        if len == 0 {
            return Ok(Fetched { pinned, len, _tensor: tensor });
        }
        self.down.wait(&self.device.cuda_stream().record_event(None).w()?).w()?;
        {
            let (storage, layout) = tensor.storage_and_layout();
            let (Storage::Cuda(storage), Some(range)) = (&*storage, layout.contiguous_offsets())
            else {
                bail!("fetch expected a tensor on a CUDA device, got {:?}", tensor.device())
            };
            let source = storage.as_cuda_slice::<f32>()?.slice(range.0..range.1);
            let (source, _unmanaged) = source.device_ptr(&self.down);
            // SAFETY: the tensor has `len` elements and is kept until the copy was waited for.
            unsafe { pinned.fetch(len, source, &self.down) }?;
        }
        Ok(Fetched { pinned, len, _tensor: tensor })
    }

    /// Waits for a copy.
    ///
    /// # Errors
    /// What the driver says, also of the work that the result came from.
    pub fn take(&mut self, fetched: Fetched) -> Result<Vec<f32>> {
        let values = fetched.pinned.read()?[..fetched.len].to_vec();
        self.spare.push(fetched.pinned);
        Ok(values)
    }

    /// Pinned memory for so many numbers.
    fn pinned(&mut self, len: usize) -> Result<Pinned<f32>> {
        match self.spare.iter().position(|spare| spare.len() >= len) {
            Some(place) => Ok(self.spare.swap_remove(place)),
            None => Pinned::new(self.device.cuda_stream().context(), len, Use::Read),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory goes back on the device's stream, which knows nothing of the others.
        let stream = self.device.cuda_stream();
        stream.context().record_err(self.up.synchronize());
        stream.context().record_err(self.down.synchronize());
    }
}

/// Normalised numbers, channel by channel, of so many pixels.
fn convert(
    device: &CudaDevice,
    bytes: &CudaSlice<u8>,
    pixels: usize,
    plane: usize,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<CudaSlice<f32>> {
    const THREADS: u32 = 256;
    const MOST_BLOCKS: usize = 1 << 16;
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { device.alloc::<f32>(3 * pixels) }?;
    if pixels == 0 {
        return Ok(out);
    }
    let kernel = device.get_or_load_custom_func("pixels_f32", "oodbench_staging", ptx::STAGING)?;
    let blocks = pixels.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS) as u32;
    let config =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let mut launch = kernel.builder();
    launch.arg(bytes).arg(&mut out).arg(&pixels).arg(&plane);
    for number in mean.iter().chain(&std) {
        launch.arg(number);
    }
    // SAFETY: both have three elements for each pixel; the argument types are the kernel's: two
    // pointers, two of size_t, six floats.
    unsafe { launch.launch(config) }.w()?;
    Ok(out)
}
