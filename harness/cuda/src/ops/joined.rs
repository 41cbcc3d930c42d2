//! What follows joined channels, without joining them: where two images only go into a normalisation
//! and into a 1x1 convolution, the image of all their channels need never be written.

use candle_core::{Result, Tensor, bail};

use super::group_norm::{Fixed, Norm};
use super::{cat_channels, conv2d, group_norm};
use crate::gemm::{Matrix, Sizes, gemm};
use crate::launch;
use crate::op;

/// [`group_norm()`] of the channels of `a`, then those of `b`.
///
/// Moves the bytes of both in and out. Where a gradient may be asked for, the channels are joined first.
///
/// # Shapes
/// - `a`, `b`: `[batch, height, width, c_a]`, `[batch, height, width, c_b]`, both `f32` or both `bf16`
/// - result, parameters: as those of [`group_norm()`] of `c_a + c_b` channels
///
/// # Errors
/// Other shapes or dtypes, groups that do not divide the channels, or the device's.
pub fn group_norm_joined(
    a: &Tensor,
    b: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    shift: Option<&Tensor>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let dims = joined_dims(a, b)?;
    let parts: Vec<&Tensor> = [Some(weight), Some(bias), shift].into_iter().flatten().collect();
    if [a, b].iter().chain(&parts).any(|tensor| tensor.track_op()) {
        return group_norm(&cat_channels(a, b)?, weight, bias, shift, groups, eps, silu);
    }
    let norm = Fixed::new(Norm::new(dims, weight, bias, shift, groups, eps, silu)?, &parts)?;
    let out = op::with_views([a, b], |[a, b]| norm.run(a, Some(b)))?;
    Ok(op::tensor(out, dims))
}

/// A 1x1 convolution without bias of the channels of `a`, then those of `b`, as the sum of two products.
///
/// Moves the bytes of both in, of the result out twice and in once. In `bf16` the first product is rounded
/// before the second is added. Where a gradient may be asked for, the channels are joined first.
///
/// # Shapes
/// - `a`, `b`: `[batch, height, width, c_a]`, `[batch, height, width, c_b]`, both `f32` or both `bf16`
/// - `weight`: `[c_out, 1, 1, c_a + c_b]`, of the same dtype
/// - result: `[batch, height, width, c_out]`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn project_joined(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = joined_dims(a, b)?;
    let (c_out, kernel_height, kernel_width, c_in) = weight.dims4()?;
    if (kernel_height, kernel_width, c_in) != (1, 1, channels) || weight.dtype() != a.dtype() {
        bail!(
            "project_joined expected a weight [c_out, 1, 1, {channels}] in {:?}, got {weight:?}",
            a.dtype()
        );
    }
    if [a, b, weight].iter().any(|tensor| tensor.track_op()) {
        return conv2d(&cat_channels(a, b)?, weight, 1, 0);
    }
    let rows = batch * height * width;
    let out = op::with_views([a, b, weight], |[a, b, weight]| {
        let (device, dtype) = (a.device(), a.dtype());
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, rows * c_out)?;
        let (c_a, c_b) = (a.dims()[3], b.dims()[3]);
        let (a, b) = (a.pointer(&stream)?, b.pointer(&stream)?);
        let weight = weight.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let to = Matrix::new(to.address, dtype, c_out);
            let add = |xs: u64, c: usize, before: usize, beta: f32| {
                let offset = (before * dtype.size_in_bytes()) as u64;
                let weight = Matrix::new(weight.address + offset, dtype, channels).transposed();
                let sizes = Sizes { m: rows, n: c_out, k: c, batch: 1 };
                // SAFETY: rows of `c` channels, and those columns of the weight's rows.
                unsafe { gemm(device, sizes, 1.0, Matrix::new(xs, dtype, c), weight, beta, to) }
            };
            add(a.address, c_a, 0, 0.0)?;
            add(b.address, c_b, c_a, 1.0)?;
        }
        Ok(out)
    })?;
    Ok(op::tensor(out, (batch, height, width, c_out)))
}

/// The sizes of the image that has the channels of both.
fn joined_dims(a: &Tensor, b: &Tensor) -> Result<(usize, usize, usize, usize)> {
    let (batch, height, width, channels) = a.dims4()?;
    let (_, _, _, beside) = b.dims4()?;
    if a.dims()[..3] != b.dims()[..3] || a.dtype() != b.dtype() {
        bail!(
            "joined channels expected two images of one size, got {:?} in {:?} and {:?} in {:?}",
            a.dims(),
            a.dtype(),
            b.dims(),
            b.dtype()
        );
    }
    Ok((batch, height, width, channels + beside))
}
