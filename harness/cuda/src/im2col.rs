//! Convolutions as matrix products by cuBLAS: for builds and machines without cuDNN, and to check it.
//!
//! The windows of some images at a time become the rows of a matrix in the workspace. Gradients of
//! such a matrix are kept in `f32` and gathered without atomics, so every result is reproducible.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Error, Result};

use crate::conv::{Geometry, Pass, Pointers, Problem};
use crate::gemm::{Matrix, Sizes, gemm};
use crate::launch::{Arg, Module, blocks_of, launch, to_u32};
use crate::ptx;
use crate::workspace::Workspace;

const MODULE: Module = Module { name: "oodbench_im2col", ptx: ptx::IM2COL };

/// The matrix of windows takes at most this much, or one image's worth.
const COLUMNS_BYTES: usize = 256 << 20;

/// # Safety
/// `pointers` address tensors of the problem's shapes and dtype on `device`, contiguous and aligned to
/// 16 bytes, that live until the work on the device's stream has ended.
pub(crate) unsafe fn run(
    device: &CudaDevice,
    workspace: &mut Workspace,
    problem: &Problem,
    pointers: Pointers,
) -> Result<()> {
    let Problem { pass, geometry, dtype, .. } = *problem;
    // The gradient of the windows is kept in `f32`; the windows themselves are as they were.
    let columns_dtype = if pass == Pass::BackwardData { DType::F32 } else { dtype };
    let rows = geometry.out_pixels();
    let image = rows * geometry.window() * columns_dtype.size_in_bytes();
    let step = (COLUMNS_BYTES / image).clamp(1, geometry.batch);
    let columns_bytes = (step * image).next_multiple_of(256);
    let w_len = geometry.c_out * geometry.window();
    // Sums over several steps must not be rounded to bf16 between them.
    let sum_apart = pass == Pass::BackwardFilter && dtype == DType::BF16 && step < geometry.batch;
    let sum_bytes = if sum_apart { w_len * DType::F32.size_in_bytes() } else { 0 };
    let columns = workspace.get(device, columns_bytes + sum_bytes)?;
    let sum = columns + columns_bytes as u64;

    let size = dtype.size_in_bytes();
    let x_bytes = geometry.height * geometry.width * geometry.c_in * size;
    let y_bytes = rows * geometry.c_out * size;
    for first in (0..geometry.batch).step_by(step) {
        let images = step.min(geometry.batch - first);
        let x = pointers.x + (first * x_bytes) as u64;
        let y = pointers.y + (first * y_bytes) as u64;
        let windows = Matrix::new(columns, columns_dtype, geometry.window());
        let w = Matrix::new(pointers.w, dtype, geometry.window());
        let y = Matrix::new(y, dtype, geometry.c_out);
        let (m, n, k) = (images * rows, geometry.window(), geometry.c_out);
        // SAFETY: the caller vouches for the tensors, of which these are whole images, and the workspace
        // holds the windows of `step` images and, behind them, the sum.
        unsafe {
            match pass {
                Pass::Forward => {
                    take_windows(device, &geometry, images, dtype, x, columns)?;
                    let sizes = Sizes { m, n: k, k: n, batch: 1 };
                    gemm(device, sizes, 1.0, windows, w.transposed(), 0.0, y)?;
                }
                Pass::BackwardData => {
                    let sizes = Sizes { m, n, k, batch: 1 };
                    gemm(device, sizes, 1.0, y, w, 0.0, windows)?;
                    gather(device, &geometry, images, dtype, columns, x)?;
                }
                Pass::BackwardFilter => {
                    take_windows(device, &geometry, images, dtype, x, columns)?;
                    let result =
                        if sum_apart { Matrix::new(sum, DType::F32, geometry.window()) } else { w };
                    let beta = if first == 0 { 0.0 } else { 1.0 };
                    let sizes = Sizes { m: k, n, k: m, batch: 1 };
                    gemm(device, sizes, 1.0, y.transposed(), windows, beta, result)?;
                }
            }
        }
    }
    if sum_apart {
        // SAFETY: the sum has as many numbers as the weight.
        unsafe { round_bf16(device, sum, pointers.w, w_len) }?;
    }
    Ok(())
}

/// A convolution with a 1x1 kernel is a product of the tensors as they lie.
///
/// # Safety
/// As for [`run`].
pub(crate) unsafe fn run_pointwise(
    device: &CudaDevice,
    problem: &Problem,
    pointers: Pointers,
) -> Result<()> {
    let Problem { pass, geometry, dtype, .. } = *problem;
    let pixels = geometry.batch * geometry.out_pixels();
    let x = Matrix::new(pointers.x, dtype, geometry.c_in);
    let w = Matrix::new(pointers.w, dtype, geometry.c_in);
    let y = Matrix::new(pointers.y, dtype, geometry.c_out);
    let (c_in, c_out, batch) = (geometry.c_in, geometry.c_out, 1);
    // SAFETY: the caller vouches for the tensors.
    unsafe {
        match pass {
            Pass::Forward => {
                let sizes = Sizes { m: pixels, n: c_out, k: c_in, batch };
                gemm(device, sizes, 1.0, x, w.transposed(), 0.0, y)
            }
            Pass::BackwardData => {
                let sizes = Sizes { m: pixels, n: c_in, k: c_out, batch };
                gemm(device, sizes, 1.0, y, w, 0.0, x)
            }
            Pass::BackwardFilter => {
                let sizes = Sizes { m: c_out, n: c_in, k: pixels, batch };
                gemm(device, sizes, 1.0, y.transposed(), x, 0.0, w)
            }
        }
    }
}

/// `columns = windows of x`.
///
/// # Safety
/// `x` has `images` images, `columns` room for their windows.
unsafe fn take_windows(
    device: &CudaDevice,
    geometry: &Geometry,
    images: usize,
    dtype: DType,
    x: u64,
    columns: u64,
) -> Result<()> {
    let pixel_bytes = geometry.c_in * dtype.size_in_bytes();
    let (name, unit) = match pixel_bytes {
        bytes if bytes % 16 == 0 => ("windows_16", 16),
        bytes if bytes % 4 == 0 => ("windows_4", 4),
        _ => ("windows_2", 2),
    };
    let units = pixel_bytes / unit;
    // SAFETY: this kernel takes the pointers in this order and moves `units` of `unit` bytes a pixel.
    unsafe {
        launch_blocks(
            device,
            name,
            images * geometry.out_pixels(),
            geometry.kernel * geometry.kernel * units,
            [x, columns],
            geometry,
            units,
        )
    }
}

/// `x = sums over columns`.
///
/// # Safety
/// As for [`take_windows`]; `columns` are `f32`.
unsafe fn gather(
    device: &CudaDevice,
    geometry: &Geometry,
    images: usize,
    dtype: DType,
    columns: u64,
    x: u64,
) -> Result<()> {
    let name = if dtype == DType::BF16 { "gather_bf16" } else { "gather_f32" };
    let pixels = images * geometry.height * geometry.width;
    // SAFETY: this kernel takes the pointers in this order and sums over `c_in` channels a pixel.
    unsafe {
        launch_blocks(device, name, pixels, geometry.c_in, [columns, x], geometry, geometry.c_in)
    }
}

/// # Safety
/// `name` is a kernel of this signature, and its memory is as the sizes say.
unsafe fn launch_blocks(
    device: &CudaDevice,
    name: &str,
    blocks: usize,
    work: usize,
    [from, to]: [u64; 2],
    geometry: &Geometry,
    units: usize,
) -> Result<()> {
    // A grid has at most 2^31 - 1 blocks in its first dimension.
    let blocks = u32::try_from(blocks)
        .ok()
        .filter(|&blocks| blocks < 1 << 31)
        .ok_or_else(|| too_large(geometry))?;
    to_u32(work)?;
    let threads = work.next_multiple_of(32).clamp(32, 256) as u32;
    let mut args = vec![Arg::Pointer(from), Arg::Pointer(to)];
    for size in [
        geometry.height,
        geometry.width,
        units,
        geometry.out_height(),
        geometry.out_width(),
        geometry.kernel,
        geometry.stride,
        geometry.padding,
    ] {
        args.push(Arg::U32(to_u32(size)?));
    }
    // SAFETY: two pointers and eight `uint32_t`, as the kernels are declared; the caller vouches for the
    // memory.
    unsafe { launch(device, &MODULE, name, blocks_of(blocks, threads, 0), &args) }
}

/// # Safety
/// `from` holds `n` numbers of `f32` and `to` has room for as many of `bf16`.
unsafe fn round_bf16(device: &CudaDevice, from: u64, to: u64, n: usize) -> Result<()> {
    let blocks = n.div_ceil(256).min(4096) as u32;
    let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::U64(n as u64)];
    // SAFETY: two pointers and a `uint64_t`, as the kernel is declared; the caller vouches for the memory.
    unsafe { launch(device, &MODULE, "round_bf16", blocks_of(blocks, 256, 0), &args) }
}

fn too_large(geometry: &Geometry) -> Error {
    Error::msg(format!("convolve expected sizes of 31 bits, got {geometry:?}"))
}
