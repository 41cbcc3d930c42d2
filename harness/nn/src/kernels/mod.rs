//! Fast kernels behind candle's custom-operation interface, forward and backward.
//!
//! Each function here takes and returns ordinary tensors. On the CPU and in `f32` it runs a kernel of ours;
//! what a classifier needs runs one of `oodbench-cuda` on a GPU; all else says the same thing with candle's
//! own operations, which the tests hold the kernels against. A gradient does not depend on the number of threads: work is
//! split by shape alone and partial sums are added in a fixed order.

mod activation;
mod arrange;
mod attention;
mod conv;
mod group_norm;
mod micro;
mod on_device;
mod pool;
mod scratch;
mod shared;
mod simd;
#[cfg(test)]
pub(crate) mod testing;

pub use activation::{Then, relu, scale_shift, silu};
pub use arrange::{add, cat_channels, upsample_2x};
pub use attention::attention;
pub use conv::conv2d;
pub use group_norm::{Activation, group_norm};
pub use pool::{avg_pool_2x, max_pool_3x3_stride_2};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor};

/// Whether a kernel of ours can take this tensor.
fn is_cpu_f32(xs: &Tensor) -> bool {
    matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32
}

/// Whether a kernel of [`on_device`] can take this tensor.
fn is_on_gpu(xs: &Tensor) -> bool {
    xs.device().is_cuda() && matches!(xs.dtype(), DType::F32 | DType::BF16)
}

/// The contiguous `f32` slice behind a storage and its layout.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        candle_core::bail!("kernel expected f32, got {:?}", storage_dtype(storage));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => candle_core::bail!("kernel expected a contiguous tensor, got {layout:?}"),
    }
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
