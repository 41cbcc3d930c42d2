//! cuBLAS's entries, called as a program calls them.

use std::ffi::{c_int, c_void};

use super::gemm::{COMPUTE_16F, COMPUTE_32F};
use super::{INVALID_VALUE, NOT_INITIALIZED, NOT_SUPPORTED};
use crate::driver::{Kind, memory};
use crate::half::{from_bf16, to_bf16};

unsafe extern "C" {
    fn cublasCreate_v2(handle: *mut usize) -> u32;
    fn cublasDestroy_v2(handle: usize) -> u32;
    fn cublasSetPointerMode_v2(handle: usize, mode: u32) -> u32;
    fn cublasGemmStridedBatchedEx(
        handle: usize,
        ta: u32,
        tb: u32,
        m: c_int,
        n: c_int,
        k: c_int,
        alpha: *const c_void,
        a: usize,
        a_type: u32,
        lda: c_int,
        a_stride: i64,
        b: usize,
        b_type: u32,
        ldb: c_int,
        b_stride: i64,
        beta: *const c_void,
        c: usize,
        c_type: u32,
        ldc: c_int,
        c_stride: i64,
        batch: c_int,
        compute: u32,
        algorithm: c_int,
    ) -> u32;
}

const F32: u32 = 0;
const BF16: u32 = 14;

/// Numbers on the "device", of 4 or 2 bytes.
fn place(values: &[f32], data_type: u32) -> usize {
    let bytes: Vec<u8> = match data_type {
        F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| to_bf16(*value).to_le_bytes()).collect(),
    };
    let start = memory().allocate(bytes.len(), Kind::Device).unwrap();
    // SAFETY: just allocated with this length.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, bytes.len()) };
    start
}

fn read(start: usize, count: usize, data_type: u32) -> Vec<f32> {
    // SAFETY: the tests ask for what they have placed.
    unsafe {
        match data_type {
            F32 => std::slice::from_raw_parts(start as *const f32, count).to_vec(),
            _ => std::slice::from_raw_parts(start as *const u16, count)
                .iter()
                .map(|bits| from_bf16(*bits))
                .collect(),
        }
    }
}

fn create() -> usize {
    let mut handle = 0;
    // SAFETY: room for one handle.
    assert_eq!(unsafe { cublasCreate_v2(&raw mut handle) }, 0);
    handle
}

/// A product of 3 x 2 by depth 4, batch 2, with room between columns; answers code and result.
fn product(
    transposed: [u32; 2],
    data_type: u32,
    leading: [c_int; 3],
    compute: u32,
) -> (u32, Vec<f32>) {
    let handle = create();
    let number = |at: usize| (at * 7 % 11) as f32 / 4.0 - 1.0;
    let values: Vec<f32> = (0..64).map(number).collect();
    let (a, b) = (place(&values, data_type), place(&values, data_type));
    let c = place(&[1.0; 24], data_type);
    let (alpha, beta) = (2.0_f32, 3.0_f32);
    // SAFETY: the scalars live; everything else is checked.
    let code = unsafe {
        cublasGemmStridedBatchedEx(
            handle,
            transposed[0],
            transposed[1],
            3,
            2,
            4,
            (&raw const alpha).cast(),
            a,
            data_type,
            leading[0],
            32,
            b,
            data_type,
            leading[1],
            32,
            (&raw const beta).cast(),
            c,
            data_type,
            leading[2],
            12,
            2,
            compute,
            -1,
        )
    };
    (code, read(c, 24, data_type))
}

#[test]
fn every_orientation_is_column_major_with_its_leading_dimension() {
    let number = |at: usize| (at * 7 % 11) as f32 / 4.0 - 1.0;
    for data_type in [F32, BF16] {
        for (ta, tb) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let leading = [if ta == 0 { 3 } else { 5 }, if tb == 0 { 4 } else { 6 }, 5];
            let (code, found) = product([ta, tb], data_type, leading, COMPUTE_32F);
            assert_eq!(code, 0);
            for (at, found) in found.into_iter().enumerate() {
                let (matrix, column, row) = (at / 12, at % 12 / 5, at % 12 % 5);
                let at = |t: u32, r: usize, c: usize, leading: c_int| {
                    32 * matrix
                        + if t == 0 { r + c * leading as usize } else { c + r * leading as usize }
                };
                let sum: f32 = (0..4)
                    .map(|p| {
                        number(at(ta, row, p, leading[0])) * number(at(tb, p, column, leading[1]))
                    })
                    .sum();
                // Rows and columns behind the matrix are left alone.
                let expected = if row < 3 && column < 2 { 2.0 * sum + 3.0 } else { 1.0 };
                assert!((found - expected).abs() <= expected.abs() / 128.0, "{found} {expected}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    assert_eq!(product([0, 0], F32, [2, 4, 3], COMPUTE_32F).0, INVALID_VALUE, "a too short");
    assert_eq!(product([0, 0], F32, [3, 3, 3], COMPUTE_32F).0, INVALID_VALUE, "b too short");
    assert_eq!(product([0, 0], F32, [3, 4, 2], COMPUTE_32F).0, INVALID_VALUE, "c too short");
    assert_eq!(product([3, 0], F32, [3, 4, 3], COMPUTE_32F).0, INVALID_VALUE, "no operation");
    assert_eq!(product([0, 0], BF16, [3, 4, 3], COMPUTE_16F).0, NOT_SUPPORTED, "types");
    assert_eq!(product([0, 0], 3, [3, 4, 3], COMPUTE_32F).0, NOT_SUPPORTED, "bytes");
    let handle = create();
    // SAFETY: plain values.
    unsafe {
        assert_eq!(cublasSetPointerMode_v2(handle, 2), INVALID_VALUE);
        assert_eq!(cublasDestroy_v2(handle), 0);
        assert_eq!(cublasDestroy_v2(handle), NOT_INITIALIZED);
    }
}
