//! Matrix products by cuBLAS, and the switch that allows TF32 in products and convolutions.
//!
//! Everything here is row-major, as tensors are. cuBLAS is column-major: it reads a row-major
//! `[rows, columns]` matrix with `leading` elements from row to row as the transposed matrix with
//! the same leading dimension. So `C = A B` is asked for as `C' = B' A'`: the operands change
//! places, `m` and `n` too, and each keeps its own transposition flag.

use std::collections::HashMap;
use std::ffi::{c_int, c_longlong, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{DType, Error, Result, bail};

use crate::workspace::is_capturing;

/// What NVIDIA recommends to give cuBLAS on Hopper; other cards need less.
const WORKSPACE_BYTES: usize = 32 << 20;

static TF32: AtomicBool = AtomicBool::new(false);

/// Workspaces that were given to cuBLAS handles. They are never taken back: a captured graph may
/// use them as long as the process lives.
static WORKSPACES: Mutex<Option<HashMap<DeviceId, CudaSlice<u8>>>> = Mutex::new(None);

/// Whether products and convolutions in `f32` may round their inputs to TF32 (10 bits of mantissa).
/// It holds for the process, and is off at first. It does not concern `bf16`.
pub fn set_tf32(allowed: bool) {
    TF32.store(allowed, Ordering::Relaxed);
}

/// What [`set_tf32`] said last.
#[must_use]
pub fn tf32() -> bool {
    TF32.load(Ordering::Relaxed)
}

/// A row-major matrix in device memory, or one for each product of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// The first element.
    pub pointer: CUdeviceptr,
    /// `F32` or `BF16`.
    pub dtype: DType,
    /// Elements from one stored row to the next; at least the length of a stored row.
    pub leading: usize,
    /// Elements from the matrix of one product to that of the next; 0 where all share one.
    pub stride: usize,
    /// Whether the product takes the stored matrix transposed. The result cannot be.
    pub transposed: bool,
}

impl Matrix {
    /// A single matrix whose rows lie one behind the other.
    #[must_use]
    pub fn new(pointer: CUdeviceptr, dtype: DType, leading: usize) -> Self {
        Self { pointer, dtype, leading, stride: 0, transposed: false }
    }

    /// The same matrix, taken transposed.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// One matrix for each product, `stride` elements apart.
    #[must_use]
    pub fn batched(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// `[rows, columns]` is what the product sees.
    fn check(&self, name: &str, rows: usize, columns: usize) -> Result<()> {
        let stored_row = if self.transposed { rows } else { columns };
        if self.leading < stored_row {
            bail!(
                "matrix `{name}` expected at least {stored_row} elements from row to row, got {}",
                self.leading
            );
        }
        Ok(())
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.transposed {
            sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            sys::cublasOperation_t::CUBLAS_OP_N
        }
    }
}

/// The sizes of a product: `[m, k]` times `[k, n]`, `batch` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
}

/// `c = alpha a b + beta c` for each product of a batch, on the device's stream. Sums are taken in
/// `f32`; `f32` inputs are rounded to TF32 only if [`tf32`] says so. With `beta` zero `c` is not read.
///
/// # Shapes
/// - `a`: `[m, k]`, or stored as `[k, m]` where it is transposed
/// - `b`: `[k, n]`, or stored as `[n, k]` where it is transposed
/// - `c`: `[m, n]`
///
/// `a` and `b` have the same dtype, `F32` or `BF16`; `c` has it too, or is `F32`.
///
/// # Errors
/// A size is zero or does not fit 31 bits, a row is longer than its leading dimension, the dtypes
/// do not go together, or cuBLAS refuses.
///
/// # Safety
/// The pointers address memory on `device` that holds the matrices as described and that is neither
/// freed nor used otherwise before the product on the device's stream has ended; `c` overlaps neither
/// `a` nor `b`.
pub unsafe fn gemm(
    device: &CudaDevice,
    sizes: Sizes,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    beta: f32,
    c: Matrix,
) -> Result<()> {
    let Sizes { m, n, k, batch } = sizes;
    if m == 0 || n == 0 || k == 0 || batch == 0 {
        bail!("product expected sizes of at least 1, got {sizes:?}");
    }
    a.check("a", m, k)?;
    b.check("b", k, n)?;
    c.check("c", m, n)?;
    if c.transposed || (batch > 1 && c.stride == 0) {
        bail!("product expected a result for each product as stored, got {c:?}");
    }
    if a.dtype != b.dtype || (c.dtype != a.dtype && c.dtype != DType::F32) {
        bail!(
            "product expected one dtype and a result in it or in f32, got {:?} {:?} to {:?}",
            a.dtype,
            b.dtype,
            c.dtype
        );
    }
    let compute = if a.dtype == DType::F32 && tf32() {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
    };
    prepare(device)?;
    let blas = device.cublas_handle();
    // SAFETY: the caller vouches for the matrices; `alpha` and `beta` are `f32`, as this compute type
    // wants them, and live until the call returns, which is when cuBLAS has read them.
    unsafe {
        result::gemm_strided_batched_ex(
            *blas.handle(),
            b.operation(),
            a.operation(),
            int(n)?,
            int(m)?,
            int(k)?,
            (&raw const alpha).cast::<c_void>(),
            b.pointer as *const c_void,
            cuda_type(b.dtype)?,
            int(b.leading)?,
            b.stride as c_longlong,
            a.pointer as *const c_void,
            cuda_type(a.dtype)?,
            int(a.leading)?,
            a.stride as c_longlong,
            (&raw const beta).cast::<c_void>(),
            c.pointer as *mut c_void,
            cuda_type(c.dtype)?,
            int(c.leading)?,
            c.stride as c_longlong,
            int(batch)?,
            compute,
            // Tensor cores are chosen by the compute type since CUDA 11; the algorithms named after them may
            // also round `f32` to half precision.
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|error| {
        Error::msg(format!("multiply {sizes:?} in {:?}: cuBLAS says {:?}", a.dtype, error.0))
    })
}

/// Gives the device's cuBLAS handle a workspace of its own, once, and has it sum in `f32` only. Without
/// the workspace cuBLAS may allocate during the first products, which a graph would capture. [`gemm`]
/// does it too; who multiplies by candle only, calls it before the first capture.
///
/// # Errors
/// The memory cannot be had, or the device's stream is capturing a graph and this is the first call.
pub fn prepare(device: &CudaDevice) -> Result<()> {
    let mut workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    let workspaces = workspaces.get_or_insert_default();
    if workspaces.contains_key(&device.id()) {
        return Ok(());
    }
    if is_capturing(device) {
        bail!("give cuBLAS its workspace: expected the first product before a graph is captured");
    }
    // SAFETY: cuBLAS treats the workspace as uninitialised.
    let workspace = unsafe { device.alloc::<u8>(WORKSPACE_BYTES) }?;
    let stream = device.cuda_stream();
    let blas = device.cublas_handle();
    let (pointer, recorded) = workspace.device_ptr(&stream);
    let pointer = pointer as *mut c_void;
    let says =
        |error: result::CublasError| Error::msg(format!("prepare cuBLAS: it says {:?}", error.0));
    // Otherwise the parts of a sum that is split among blocks may be added in bf16.
    let mode = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is the device's, and the memory is kept for as long as the process lives.
    unsafe {
        sys::cublasSetWorkspace_v2(*blas.handle(), pointer, WORKSPACE_BYTES)
            .result()
            .map_err(says)?;
        sys::cublasSetMathMode(*blas.handle(), mode).result().map_err(says)?;
    }
    drop(recorded);
    workspaces.insert(device.id(), workspace);
    Ok(())
}

fn int(size: usize) -> Result<c_int> {
    c_int::try_from(size)
        .map_err(|_| Error::msg(format!("product expected sizes of 31 bits, got {size}")))
}

fn cuda_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => bail!("product expected f32 or bf16, got {}", other.as_str()),
    }
}
