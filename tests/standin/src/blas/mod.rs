//! `libcublas.so.13`: handles and products of matrices, in column-major order.

mod gemm;
mod product;
#[cfg(test)]
mod tests;

use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use crate::api::{Handles, Outcome, answer, lock, peek, put, refusal};
use crate::driver::{entries, memory};
use crate::work;
use gemm::{Gemm, Matrix, Number, Where};
pub(crate) use product::product_f32;

pub(crate) const NOT_INITIALIZED: u32 = 1;
pub(crate) const INVALID_VALUE: u32 = 7;
pub(crate) const EXECUTION_FAILED: u32 = 13;
pub(crate) const NOT_SUPPORTED: u32 = 15;

/// `CUBLAS_TF32_TENSOR_OP_MATH`.
const TF32: u32 = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    stream: usize,
    math_mode: u32,
    device_scalars: bool,
}

struct Handle {
    settings: Mutex<Settings>,
}

static HANDLES: Handles<Handle> = Handles::new("cuBLAS handle");

fn call(entry: &str, body: impl FnOnce() -> Outcome) -> u32 {
    answer(entry, EXECUTION_FAILED, body)
}

fn settings(handle: usize) -> Outcome<Settings> {
    let handle = HANDLES.get(handle, NOT_INITIALIZED)?;
    let settings = *lock(&handle.settings);
    Ok(settings)
}

fn change(handle: usize, change: impl FnOnce(&mut Settings)) -> Outcome {
    change(&mut lock(&HANDLES.get(handle, NOT_INITIALIZED)?.settings));
    Ok(())
}

entries! { call;
    fn cublasCreate_v2(handle: *mut usize) {
        work::forbid_during_capture("cublasCreate")?;
        put(handle, HANDLES.insert(Handle { settings: Mutex::default() }), INVALID_VALUE)
    }
    fn cublasDestroy_v2(handle: usize) {
        work::forbid_during_capture("cublasDestroy")?;
        HANDLES.remove(handle, NOT_INITIALIZED).map(|_| ())
    }
    fn cublasGetVersion_v2(handle: usize, version: *mut c_int) {
        settings(handle)?;
        put(version, 130_000, INVALID_VALUE)
    }
    fn cublasSetStream_v2(handle: usize, stream: usize) {
        work::stream(stream)?;
        change(handle, |settings| settings.stream = stream)
    }
    fn cublasGetStream_v2(handle: usize, stream: *mut usize) {
        put(stream, settings(handle)?.stream, INVALID_VALUE)
    }
    fn cublasSetWorkspace_v2(handle: usize, start: *mut c_void, len: usize) {
        settings(handle)?;
        if !(start as usize).is_multiple_of(256) {
            return Err(refusal(INVALID_VALUE, format!("workspace at {start:p}, aligned to 256")));
        }
        if len > 0 && memory().find(start as usize, len).is_none() {
            let known = memory().explain(start as usize);
            return Err(refusal(INVALID_VALUE, format!("workspace of {len} bytes: {known}")));
        }
        Ok(())
    }
    fn cublasSetMathMode(handle: usize, mode: u32) {
        if ![0, 1, 2, TF32].contains(&(mode & 15)) {
            return Err(refusal(INVALID_VALUE, format!("math mode {mode} is none")));
        }
        change(handle, |settings| settings.math_mode = mode)
    }
    fn cublasGetMathMode(handle: usize, mode: *mut u32) {
        put(mode, settings(handle)?.math_mode, INVALID_VALUE)
    }
    fn cublasSetPointerMode_v2(handle: usize, mode: u32) {
        if mode > 1 {
            return Err(refusal(INVALID_VALUE, format!("pointer mode {mode} is none")));
        }
        change(handle, |settings| settings.device_scalars = mode == 1)
    }
    fn cublasGetPointerMode_v2(handle: usize, mode: *mut u32) {
        put(mode, u32::from(settings(handle)?.device_scalars), INVALID_VALUE)
    }
    fn cublasSetAtomicsMode(handle: usize, _mode: u32) { settings(handle).map(|_| ()) }

    fn cublasGemmEx(handle: usize, ta: u32, tb: u32, m: c_int, n: c_int, k: c_int,
        alpha: *const c_void, a: usize, a_type: u32, lda: c_int,
        b: usize, b_type: u32, ldb: c_int, beta: *const c_void,
        c: usize, c_type: u32, ldc: c_int, compute: u32, algorithm: c_int) {
        let settings = settings(handle)?;
        let gemm = Gemm::new([ta, tb], [m, n, k], 1, compute, settings.math_mode == TF32)?
            .matrices([
                Matrix::new(Where::Strided(a, 0), a_type, lda)?,
                Matrix::new(Where::Strided(b, 0), b_type, ldb)?,
                Matrix::new(Where::Strided(c, 0), c_type, ldc)?,
            ])?
            .scalars(alpha, beta, settings.device_scalars)?;
        gemm::known_algorithm(algorithm)?;
        gemm.submit(settings.stream)
    }
    fn cublasGemmStridedBatchedEx(handle: usize, ta: u32, tb: u32, m: c_int, n: c_int, k: c_int,
        alpha: *const c_void, a: usize, a_type: u32, lda: c_int, a_stride: i64,
        b: usize, b_type: u32, ldb: c_int, b_stride: i64, beta: *const c_void,
        c: usize, c_type: u32, ldc: c_int, c_stride: i64, batch: c_int, compute: u32,
        algorithm: c_int) {
        let settings = settings(handle)?;
        let gemm = Gemm::new([ta, tb], [m, n, k], batch, compute, settings.math_mode == TF32)?
            .matrices([
                Matrix::new(Where::Strided(a, a_stride), a_type, lda)?,
                Matrix::new(Where::Strided(b, b_stride), b_type, ldb)?,
                Matrix::new(Where::Strided(c, c_stride), c_type, ldc)?,
            ])?
            .scalars(alpha, beta, settings.device_scalars)?;
        gemm::known_algorithm(algorithm)?;
        gemm.submit(settings.stream)
    }
    fn cublasGemmBatchedEx(handle: usize, ta: u32, tb: u32, m: c_int, n: c_int, k: c_int,
        alpha: *const c_void, a: usize, a_type: u32, lda: c_int,
        b: usize, b_type: u32, ldb: c_int, beta: *const c_void,
        c: usize, c_type: u32, ldc: c_int, batch: c_int, compute: u32, algorithm: c_int) {
        let settings = settings(handle)?;
        let gemm = Gemm::new([ta, tb], [m, n, k], batch, compute, settings.math_mode == TF32)?
            .matrices([
                Matrix::new(Where::Listed(a), a_type, lda)?,
                Matrix::new(Where::Listed(b), b_type, ldb)?,
                Matrix::new(Where::Listed(c), c_type, ldc)?,
            ])?
            .scalars(alpha, beta, settings.device_scalars)?;
        gemm::known_algorithm(algorithm)?;
        gemm.submit(settings.stream)
    }
}

/// The plain entries, whose matrices and scalars all have one type.
macro_rules! plain {
    ($($one:ident, $strided:ident, $type:expr, $compute:expr;)*) => {
        entries! { call; $(
            fn $one(handle: usize, ta: u32, tb: u32, m: c_int, n: c_int, k: c_int,
                alpha: *const c_void, a: usize, lda: c_int, b: usize, ldb: c_int,
                beta: *const c_void, c: usize, ldc: c_int) {
                let settings = settings(handle)?;
                Gemm::new([ta, tb], [m, n, k], 1, $compute, settings.math_mode == TF32)?
                    .matrices([
                        Matrix::new(Where::Strided(a, 0), $type, lda)?,
                        Matrix::new(Where::Strided(b, 0), $type, ldb)?,
                        Matrix::new(Where::Strided(c, 0), $type, ldc)?,
                    ])?
                    .scalars(alpha, beta, settings.device_scalars)?
                    .submit(settings.stream)
            }
            fn $strided(handle: usize, ta: u32, tb: u32, m: c_int, n: c_int, k: c_int,
                alpha: *const c_void, a: usize, lda: c_int, a_stride: i64,
                b: usize, ldb: c_int, b_stride: i64, beta: *const c_void,
                c: usize, ldc: c_int, c_stride: i64, batch: c_int) {
                let settings = settings(handle)?;
                Gemm::new([ta, tb], [m, n, k], batch, $compute, settings.math_mode == TF32)?
                    .matrices([
                        Matrix::new(Where::Strided(a, a_stride), $type, lda)?,
                        Matrix::new(Where::Strided(b, b_stride), $type, ldb)?,
                        Matrix::new(Where::Strided(c, c_stride), $type, ldc)?,
                    ])?
                    .scalars(alpha, beta, settings.device_scalars)?
                    .submit(settings.stream)
            }
        )* }
    };
}

plain! {
    cublasSgemm_v2, cublasSgemmStridedBatched, Number::F32 as u32, gemm::COMPUTE_32F;
    cublasDgemm_v2, cublasDgemmStridedBatched, Number::F64 as u32, gemm::COMPUTE_64F;
    cublasHgemm, cublasHgemmStridedBatched, Number::F16 as u32, gemm::COMPUTE_16F;
}

/// A scalar of the caller, which is on the host unless the handle says otherwise.
fn scalar(from: *const c_void, number: Number, on_device: bool) -> Outcome<f64> {
    if on_device && memory().find(from as usize, number.bytes()).is_none() {
        let known = memory().explain(from as usize);
        return Err(refusal(INVALID_VALUE, format!("a scalar on the device: {known}")));
    }
    Ok(match number {
        Number::F64 => peek(from.cast::<f64>(), INVALID_VALUE)?,
        Number::F32 => f64::from(peek(from.cast::<f32>(), INVALID_VALUE)?),
        Number::F16 => f64::from(crate::half::from_f16(peek(from.cast(), INVALID_VALUE)?)),
        Number::Bf16 => f64::from(crate::half::from_bf16(peek(from.cast(), INVALID_VALUE)?)),
    })
}
