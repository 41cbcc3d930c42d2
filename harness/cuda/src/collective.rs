//! Sums over several GPUs, one process for each, through NCCL.
//!
//! The processes agree on an id that one of them makes, and each joins under it with a rank of its
//! own. From then on all of them call the same functions in the same order with the same shapes: a
//! process that does not come is waited for without end, so whoever starts them has to watch them.
//! Every rank gets the same numbers, bit for bit.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start, result};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Storage, Tensor};

/// Bytes of an id.
pub const ID_BYTES: usize = 128;

/// Parts begin at multiples of so many numbers, so that they can be read 16 bytes at a time.
const ALIGNMENT: usize = 4;

/// A process among others. All work goes to the device's own stream.
pub struct Collective {
    // It is left before the device is given up.
    comm: Comm,
    device: CudaDevice,
}

/// A fresh id, for one group of processes.
///
/// # Errors
/// NCCL's, for instance without a network interface.
pub fn new_id() -> Result<[u8; ID_BYTES]> {
    let id = Id::new().map_err(|error| failed("make an id", &error))?;
    // `c_char` is a byte of either sign.
    Ok(id.internal().map(|byte| byte as u8))
}

impl Collective {
    /// Joins the group; returns when all `world` processes have come.
    ///
    /// # Errors
    /// A rank outside of the group, a device that is no CUDA device, or NCCL's.
    pub fn join(device: &Device, id: &[u8; ID_BYTES], rank: usize, world: usize) -> Result<Self> {
        if rank >= world || i32::try_from(world).is_err() {
            candle_core::bail!("rank expected below {world}, got {rank}");
        }
        let device = device.as_cuda_device()?.clone();
        let stream = device.cuda_stream();
        // NCCL takes the device that is current on this thread.
        stream.context().bind_to_thread().w()?;
        let id = Id::uninit(id.map(|byte| byte as std::ffi::c_char));
        let comm = Comm::from_rank(stream, rank, world, id)
            .map_err(|error| failed(&format!("join as rank {rank} of {world}"), &error))?;
        Ok(Self { comm, device })
    }

    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    pub fn world(&self) -> usize {
        self.comm.world_size()
    }

    /// The mean over all processes of each tensor, in one group of calls. The results lie in one piece
    /// of memory.
    ///
    /// # Shapes
    /// Any, but the same on every process; `f32`
    ///
    /// # Errors
    /// A tensor of another type or device, or NCCL's.
    pub fn mean(&self, tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut total = 0;
        for tensor in tensors {
            offsets.push(total);
            total += tensor.elem_count().next_multiple_of(ALIGNMENT);
        }
        let contiguous = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        // SAFETY: all of it is written but the gaps of up to three numbers behind a part, which no
        // result reads.
        let mut sums = unsafe { self.device.alloc::<f32>(total) }?;
        group_start().map_err(|error| failed("begin a group", &error))?;
        let called = contiguous
            .iter()
            .zip(&offsets)
            .try_for_each(|(tensor, &offset)| self.mean_of(tensor, &mut sums, offset));
        // The group has to be ended even if a call in it failed.
        let ended = group_end().map_err(|error| failed("average", &error));
        called?;
        ended?;
        let storage = CudaStorage::wrap_cuda_slice(sums, self.device.clone());
        let sums = Tensor::from_storage(Storage::Cuda(storage), total, BackpropOp::none(), false);
        let part = |(tensor, offset): (&&Tensor, usize)| {
            sums.narrow(0, offset, tensor.elem_count())?.reshape(tensor.shape())
        };
        tensors.iter().zip(offsets).map(part).collect()
    }

    fn mean_of(&self, tensor: &Tensor, sums: &mut CudaSlice<f32>, offset: usize) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!(
                "average expected a tensor on a CUDA device, got {:?}",
                tensor.device()
            );
        };
        if storage.device.id() != self.device.id() {
            candle_core::bail!("average expected {:?}, got {:?}", self.device, storage.device);
        }
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("average expected a contiguous tensor, got {layout:?}");
        };
        if start == end {
            return Ok(());
        }
        let source = storage.as_cuda_slice::<f32>()?.slice(start..end);
        let mut target = sums.slice_mut(offset..offset + source.len());
        self.comm
            .all_reduce(&source, &mut target, &ReduceOp::Avg)
            .map(drop)
            .map_err(|error| failed("average", &error))
    }

    /// Whether any process says so. Waits for all of them.
    ///
    /// # Errors
    /// NCCL's or the driver's.
    pub fn any(&self, says: bool) -> Result<bool> {
        let stream = self.device.cuda_stream();
        let mut flag = stream.clone_htod(&[u32::from(says)]).w()?;
        self.comm
            .all_reduce_in_place(&mut flag, &ReduceOp::Max)
            .map_err(|error| failed("agree", &error))?;
        let flags = stream.clone_dtoh(&flag).w()?;
        stream.synchronize().w()?;
        Ok(flags.iter().any(|flag| *flag != 0))
    }
}

fn failed(what: &str, error: &result::NcclError) -> candle_core::Error {
    candle_core::Error::msg(format!("NCCL failed to {what}: {:?}", error.0))
}
