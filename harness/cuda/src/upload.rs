//! Numbers from the host that a device gets while it computes.
//!
//! A copy from ordinary memory may wait until the device has done all that it was told before. One
//! from pinned memory does not; but the memory must stay as it is until the copy is over, which is
//! when the device comes to it. Here three pieces take turns: filling one waits for the copy of three
//! uploads before, and the host runs that far ahead of the device, and no farther.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtrMut, DeviceRepr, ValidAsZeroBits,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Shape, Storage, Tensor};

use crate::pinned::{Pinned, Use};

/// Pieces that take turns.
const PIECES: usize = 3;

/// A way to a device for numbers of one type.
pub struct Upload<T> {
    device: CudaDevice,
    pieces: Vec<Pinned<T>>,
    next: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy> Upload<T> {
    /// # Errors
    /// A device that is no CUDA device.
    pub fn new(device: &Device) -> Result<Self> {
        let device = device.as_cuda_device()?.clone();
        Ok(Self { device, pieces: Vec::new(), next: 0 })
    }

    /// Copies `numbers`; the device has them when it comes to what is launched after this.
    ///
    /// # Errors
    /// Memory that cannot be had on either side.
    pub fn send(&mut self, numbers: &[T]) -> Result<CudaSlice<T>> {
        // SAFETY: the copy below writes all of it, before anything that is launched later reads it.
        let mut memory = unsafe { self.device.alloc::<T>(numbers.len()) }?;
        if numbers.is_empty() {
            return Ok(memory);
        }
        let stream = self.device.cuda_stream();
        let piece = self.piece(numbers.len())?;
        // Waits for the last copy out of this piece.
        piece.write()?[..numbers.len()].copy_from_slice(numbers);
        let (target, written) = memory.device_ptr_mut(&stream);
        // SAFETY: `target` has room for `numbers.len()` numbers, and belongs to `stream`, where it is
        // also freed.
        let sent = unsafe { piece.send(numbers.len(), target, &stream) };
        drop(written);
        sent?;
        Ok(memory)
    }

    /// The piece whose turn it is, with room for `len` numbers.
    fn piece(&mut self, len: usize) -> Result<&mut Pinned<T>> {
        let nth = self.next % PIECES;
        self.next += 1;
        if self.pieces.get(nth).is_none_or(|piece| piece.len() < len) {
            let fresh = Pinned::new(self.device.cuda_stream().context(), len, Use::Write)?;
            match self.pieces.get_mut(nth) {
                Some(piece) => *piece = fresh,
                None => self.pieces.push(fresh),
            }
        }
        Ok(&mut self.pieces[nth])
    }
}

impl<T: DeviceRepr + ValidAsZeroBits + CudaDType + Copy> Upload<T> {
    /// Copies `numbers` as [`Upload::send`] does; a tensor of them.
    ///
    /// # Errors
    /// As [`Upload::send`]; a shape of another number of elements.
    pub fn tensor(&mut self, numbers: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.elem_count() != numbers.len() {
            candle_core::bail!("upload expected {shape:?}, got {} numbers", numbers.len());
        }
        let memory = self.send(numbers)?;
        let storage = CudaStorage::wrap_cuda_slice(memory, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }
}
