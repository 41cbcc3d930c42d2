//! Launching kernels: memory for results, pointers, arguments and grids.

use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result, Shape, bail};
use half::bf16;

/// One file of kernels, as the driver loads it.
pub(crate) struct Module {
    /// What the device remembers it by.
    pub(crate) name: &'static str,
    pub(crate) ptx: &'static str,
}

/// An argument of a kernel. Its size has to be that of the kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

/// A contiguous tensor on a device.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) storage: &'a CudaStorage,
    pub(crate) layout: &'a Layout,
}

impl<'a> View<'a> {
    pub(crate) fn device(&self) -> &'a CudaDevice {
        &self.storage.device
    }

    pub(crate) fn dims(&self) -> &'a [usize] {
        self.layout.dims()
    }

    pub(crate) fn shape(&self) -> &'a Shape {
        self.layout.shape()
    }

    pub(crate) fn dtype(&self) -> DType {
        match self.storage.slice {
            CudaStorageSlice::F32(_) => DType::F32,
            CudaStorageSlice::BF16(_) => DType::BF16,
            _ => candle_core::backend::BackendStorage::dtype(self.storage),
        }
    }

    /// The address of the first element, for kernels on `stream`; to be held until the last of them is
    /// launched.
    pub(crate) fn pointer<'s>(&self, stream: &'s CudaStream) -> Result<Pointer<'s>>
    where
        'a: 's,
    {
        if !self.layout.is_contiguous() {
            bail!("kernel expected contiguous numbers, got {:?}", self.layout);
        }
        let (pointer, used) = match &self.storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
            CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
            CudaStorageSlice::U8(slice) => slice.device_ptr(stream),
            CudaStorageSlice::U32(slice) => slice.device_ptr(stream),
            _ => bail!("kernel expected f32, bf16, u8 or u32, got {:?}", self.dtype()),
        };
        let offset = self.layout.start_offset() * self.dtype().size_in_bytes();
        Ok(Pointer { address: pointer + offset as u64, _used: used })
    }
}

/// An address, and the note of its use that other streams wait for.
pub(crate) struct Pointer<'a> {
    pub(crate) address: u64,
    _used: SyncOnDrop<'a>,
}

impl Pointer<'_> {
    pub(crate) fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }
}

/// Uninitialised memory for `count` numbers of `dtype`; the kernel that it is for writes all of them.
pub(crate) fn alloc(device: &CudaDevice, dtype: DType, count: usize) -> Result<CudaStorage> {
    if count == 0 {
        bail!("kernel expected a result of at least one number, got none");
    }
    let slice = match dtype {
        // SAFETY: every element is written before any is read.
        DType::F32 => CudaStorageSlice::F32(unsafe { device.alloc::<f32>(count) }?),
        // SAFETY: as above.
        DType::BF16 => CudaStorageSlice::BF16(unsafe { device.alloc::<bf16>(count) }?),
        other => bail!("kernel expected f32 or bf16, got {other:?}"),
    };
    Ok(CudaStorage { slice, device: device.clone() })
}

/// The address of memory that a kernel on `stream` writes.
pub(crate) fn pointer_mut<'s>(
    storage: &'s mut CudaStorage,
    stream: &'s CudaStream,
) -> Result<Pointer<'s>> {
    let (address, used) = match &mut storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr_mut(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr_mut(stream),
        _ => bail!("kernel expected f32 or bf16"),
    };
    Ok(Pointer { address, _used: used })
}

/// How a kernel's name ends: its dtype.
pub(crate) fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        other => bail!("kernel expected f32 or bf16, got {other:?}"),
    }
}

/// How many channels a thread takes at once: 16 bytes of them, or one where the numbers of channels or
/// the addresses do not allow it.
pub(crate) fn pack(dtype: DType, channels: &[usize], pointers: &[&Pointer<'_>]) -> usize {
    let wide = 16 / dtype.size_in_bytes();
    let fits = channels.iter().all(|channels| channels.is_multiple_of(wide))
        && pointers.iter().all(|pointer| pointer.address.is_multiple_of(16));
    if fits { wide } else { 1 }
}

/// # Errors
/// `size` does not fit 32 bits.
pub(crate) fn to_u32(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| {
        candle_core::Error::msg(format!("kernel expected sizes below 2^32, got {size}"))
    })
}

/// Blocks of 256 for one thread for each of `count`.
///
/// # Errors
/// The grid would have 2^32 threads or more.
pub(crate) fn grid(count: usize) -> Result<LaunchConfig> {
    const THREADS: u32 = 256;
    let blocks = to_u32(count)?.div_ceil(THREADS);
    to_u32(blocks as usize * THREADS as usize)?;
    Ok(blocks_of(blocks, THREADS, 0))
}

/// `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory.
pub(crate) fn blocks_of(blocks: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared }
}

/// Shared memory that a block has without asking for more.
const SHARED_BYTES: u32 = 48 << 10;

/// Puts a kernel in line on the device's stream.
///
/// # Safety
/// `args` are those of the kernel's parameters, in order and of their sizes; the memory that the kernel
/// touches with them is there until it has run.
pub(crate) unsafe fn launch(
    device: &CudaDevice,
    module: &Module,
    function: &str,
    config: LaunchConfig,
    args: &[Arg],
) -> Result<()> {
    let function = device.get_or_load_custom_func(function, module.name, module.ptx)?;
    if config.shared_mem_bytes > SHARED_BYTES {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = device.cuda_stream().context().attribute(attribute).w()?;
        let bytes = i32::try_from(config.shared_mem_bytes).unwrap_or(i32::MAX);
        if bytes > most {
            bail!("kernel expected at most {most} bytes of shared memory for a block, got {bytes}");
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, bytes).w()?;
    }
    let mut builder = function.builder();
    for arg in args {
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
        match arg {
            Arg::Pointer(value) | Arg::U64(value) => builder.arg(value),
            Arg::U32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
        };
    }
    // SAFETY: the caller vouches for it.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
