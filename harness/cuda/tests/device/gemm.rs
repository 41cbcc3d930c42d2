//! Matrix products of every orientation and dtype, in batches and with leading dimensions larger than
//! the rows, against sums in `f64`.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut};
use candle_core::{DType, Result};
use half::bf16;
use oodbench_cuda::gemm::{Matrix, Sizes, gemm};

use crate::{assert_close, device, numbers};

/// Elements in front of each matrix, which have to be left alone.
const OFFSET: usize = 16;
/// Elements behind each row.
const GAP: usize = 8;

struct Product {
    sizes: Sizes,
    transposed: (bool, bool),
    dtype: DType,
    result: DType,
    alpha: f32,
    beta: f32,
    /// Whether all products have the same `b`.
    shared: bool,
}

/// A matrix on the host, with its offset and its gaps.
struct Host {
    values: Vec<f32>,
    leading: usize,
    stride: usize,
    transposed: bool,
}

impl Host {
    fn new(seed: u64, rows: usize, columns: usize, batch: usize, transposed: bool) -> Self {
        let (stored, length) = if transposed { (columns, rows) } else { (rows, columns) };
        let leading = length + GAP;
        let stride = if batch == 1 { 0 } else { stored * leading };
        Self {
            values: numbers(seed, OFFSET + batch * stored * leading),
            leading,
            stride,
            transposed,
        }
    }

    fn rounded(mut self, dtype: DType) -> Self {
        if dtype == DType::BF16 {
            for value in &mut self.values {
                *value = bf16::from_f32(*value).to_f32();
            }
        }
        self
    }

    fn at(&self, product: usize, row: usize, column: usize) -> usize {
        let (row, column) = if self.transposed { (column, row) } else { (row, column) };
        OFFSET + product * self.stride + row * self.leading + column
    }

    fn matrix(&self, pointer: u64, dtype: DType) -> Matrix {
        let first = pointer + (OFFSET * dtype.size_in_bytes()) as u64;
        Matrix {
            pointer: first,
            dtype,
            leading: self.leading,
            stride: self.stride,
            transposed: self.transposed,
        }
    }
}

fn upload(device: &CudaDevice, host: &Host, dtype: DType) -> Result<Memory> {
    Ok(if dtype == DType::BF16 {
        let values: Vec<_> = host.values.iter().map(|&value| bf16::from_f32(value)).collect();
        Memory::Bf16(device.clone_htod(&values)?)
    } else {
        Memory::F32(device.clone_htod(&host.values)?)
    })
}

enum Memory {
    F32(candle_core::cuda_backend::cudarc::driver::CudaSlice<f32>),
    Bf16(candle_core::cuda_backend::cudarc::driver::CudaSlice<bf16>),
}

impl Memory {
    fn pointer(&mut self, device: &CudaDevice, written: bool) -> u64 {
        let stream = device.cuda_stream();
        match (self, written) {
            (Self::F32(slice), false) => slice.device_ptr(&stream).0,
            (Self::F32(slice), true) => slice.device_ptr_mut(&stream).0,
            (Self::Bf16(slice), false) => slice.device_ptr(&stream).0,
            (Self::Bf16(slice), true) => slice.device_ptr_mut(&stream).0,
        }
    }

    fn download(&self, device: &CudaDevice) -> Result<Vec<f32>> {
        Ok(match self {
            Self::F32(slice) => device.clone_dtoh(slice)?,
            Self::Bf16(slice) => device.clone_dtoh(slice)?.iter().map(|x| x.to_f32()).collect(),
        })
    }
}

fn check(product: &Product) -> Result<()> {
    let device = device();
    let device = device.as_cuda_device()?;
    let Sizes { m, n, k, batch } = product.sizes;
    let a = Host::new(1, m, k, batch, product.transposed.0).rounded(product.dtype);
    let b_batch = if product.shared { 1 } else { batch };
    let b = Host::new(2, k, n, b_batch, product.transposed.1).rounded(product.dtype);
    let c = Host::new(3, m, n, batch, false).rounded(product.result);

    let mut want: Vec<f64> = c.values.iter().map(|&value| f64::from(value)).collect();
    for i in 0..batch {
        for row in 0..m {
            for column in 0..n {
                let sum: f64 = (0..k)
                    .map(|inner| {
                        let left = f64::from(a.values[a.at(i, row, inner)]);
                        left * f64::from(b.values[b.at(i, inner, column)])
                    })
                    .sum();
                let at = c.at(i, row, column);
                want[at] = f64::from(product.alpha) * sum + f64::from(product.beta) * want[at];
            }
        }
    }

    let mut on_device = [
        upload(device, &a, product.dtype)?,
        upload(device, &b, product.dtype)?,
        upload(device, &c, product.result)?,
    ];
    let [a_memory, b_memory, c_memory] = &mut on_device;
    let left = a.matrix(a_memory.pointer(device, false), product.dtype);
    let right = b.matrix(b_memory.pointer(device, false), product.dtype);
    let result = c.matrix(c_memory.pointer(device, true), product.result);
    // SAFETY: the three matrices are on the device, apart, and live until the download has waited.
    unsafe { gemm(device, product.sizes, product.alpha, left, right, product.beta, result) }?;
    let got = c_memory.download(device)?;
    // The offset and the gaps are compared as well: they must be as they were.
    assert_close(&got, &want, product.result, 1e-5);
    Ok(())
}

#[test]
fn every_orientation_and_dtype_gives_the_product() -> Result<()> {
    let dtypes = [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)];
    for (dtype, result) in dtypes {
        for transposed in [(false, false), (true, false), (false, true), (true, true)] {
            let sizes = Sizes { m: 33, n: 17, k: 48, batch: 3 };
            check(&Product {
                sizes,
                transposed,
                dtype,
                result,
                alpha: 1.0,
                beta: 0.0,
                shared: false,
            })?;
        }
    }
    Ok(())
}

#[test]
fn scales_are_applied_and_b_can_be_shared() -> Result<()> {
    for shared in [false, true] {
        check(&Product {
            sizes: Sizes { m: 5, n: 64, k: 7, batch: 4 },
            transposed: (false, true),
            dtype: DType::F32,
            result: DType::F32,
            alpha: 0.5,
            beta: -2.0,
            shared,
        })?;
    }
    Ok(())
}

#[test]
fn single_rows_and_columns_are_products_too() -> Result<()> {
    for (m, n, k) in [(1, 1, 1), (1, 9, 300), (9, 1, 2), (256, 1, 64)] {
        check(&Product {
            sizes: Sizes { m, n, k, batch: 1 },
            transposed: (true, false),
            dtype: DType::F32,
            result: DType::F32,
            alpha: 1.0,
            beta: 1.0,
            shared: false,
        })?;
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_before_cublas_sees_it() -> Result<()> {
    let device = device();
    let device = device.as_cuda_device()?;
    let matrix = |leading| Matrix::new(256, DType::F32, leading);
    let sizes = Sizes { m: 4, n: 5, k: 6, batch: 1 };
    let attempts = [
        (Sizes { k: 0, ..sizes }, matrix(6), matrix(5), matrix(5), "at least 1"),
        (sizes, matrix(5), matrix(5), matrix(5), "matrix `a` expected at least 6"),
        (sizes, matrix(6), matrix(5).transposed(), matrix(5), "matrix `b` expected at least 6"),
        (sizes, matrix(6), matrix(5), matrix(4), "matrix `c` expected at least 5"),
        (sizes, matrix(6), matrix(5), matrix(5).transposed(), "as stored"),
        (sizes, matrix(6), Matrix { dtype: DType::BF16, ..matrix(5) }, matrix(5), "one dtype"),
        (Sizes { batch: 2, ..sizes }, matrix(6), matrix(5), matrix(5), "a result for each"),
    ];
    for (sizes, a, b, c, says) in attempts {
        // SAFETY: nothing reads the addresses, since the call is refused.
        let refused = unsafe { gemm(device, sizes, 1.0, a, b, 0.0, c) };
        let message = refused.expect_err(says).to_string();
        assert!(message.contains(says), "expected `{says}`, got `{message}`");
    }
    Ok(())
}
