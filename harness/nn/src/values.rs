//! The numbers of a tensor where they lie, without the copy that candle's accessors make.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};

/// Whether [`with_values`] can read it: contiguous `f32` on the CPU.
pub(crate) fn is_readable(xs: &Tensor) -> bool {
    matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32 && xs.is_contiguous()
}

/// Calls `f` with the numbers of a contiguous `f32` tensor on the CPU.
///
/// # Errors
/// Any other tensor.
pub(crate) fn with_values<R>(xs: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = xs.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => Ok(f(&data[start..end])),
        _ => candle_core::bail!("expected contiguous f32 on the CPU, got {layout:?}"),
    }
}
