//! The channels-last operations in candle's own, on any device and in any dtype: what the kernels for
//! a GPU are held against, and what lets a test on the CPU run a network in that order.

use candle_core::{DType, Result, Tensor};

use crate::kernels;

/// A convolution without bias, computed in `f32`.
///
/// # Shapes
/// - `xs`: `[batch, height, width, c_in]`
/// - `weight`: `[c_out, kernel, kernel, c_in]`, of the same dtype
/// - result: `[batch, height', width', c_out]`
///
/// # Errors
/// Shapes that do not fit together.
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let wide = |tensor: &Tensor| first(tensor)?.to_dtype(DType::F32);
    let ys = kernels::conv2d(&wide(xs)?, &wide(weight)?, None, stride, padding)?;
    last(&ys)?.to_dtype(xs.dtype())
}

/// `[batch, height, width, channels]` to `[batch, channels, height, width]`.
fn first(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 3, 1, 2))?.contiguous()
}

/// `[batch, channels, height, width]` to `[batch, height, width, channels]`.
fn last(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 2, 3, 1))?.contiguous()
}

/// Brings images into channels-last order; channels behind the last one are zero.
///
/// # Shapes
/// `xs`: `[batch, channels, height, width]` to `[batch, height, width, padded]`, in `dtype`
///
/// # Errors
/// More channels than `padded`.
pub fn to_channels_last(xs: &Tensor, dtype: DType, padded: usize) -> Result<Tensor> {
    pad_to(&last(xs)?, 3, padded)?.to_dtype(dtype)
}

/// Zeros behind the elements of a dimension, up to a length.
fn pad_to(xs: &Tensor, dim: usize, len: usize) -> Result<Tensor> {
    match len.checked_sub(xs.dim(dim)?) {
        Some(0) => Ok(xs.clone()),
        Some(more) => xs.pad_with_zeros(dim, 0, more),
        None => candle_core::bail!("padding expected at least {}, got {len}", xs.dim(dim)?),
    }
}

/// Brings images back from channels-last order; channels behind the last one are left out.
///
/// # Shapes
/// `xs`: `[batch, height, width, padded]` to `[batch, channels, height, width]`, `f32`
///
/// # Errors
/// More channels than there are.
pub fn to_channels_first(xs: &Tensor, channels: usize) -> Result<Tensor> {
    first(&xs.narrow(3, 0, channels)?)?.to_dtype(DType::F32)
}

/// Brings a convolution's weight into channels-last order; what is added is zero.
///
/// # Shapes
/// `weight`: `[c_out, c_in, kernel, kernel]` to `[padded_out, kernel, kernel, padded_in]`, in `dtype`
///
/// # Errors
/// More channels than the padded numbers.
pub fn pack_weight(
    weight: &Tensor,
    dtype: DType,
    padded_out: usize,
    padded_in: usize,
) -> Result<Tensor> {
    pad_to(&pad_to(&last(weight)?, 3, padded_in)?, 0, padded_out)?.to_dtype(dtype)
}

/// `act(normal(xs + shift) * weight + bias)`, where `normal` gives each group of channels of each
/// image zero mean and unit variance, and `act` is SiLU or nothing; computed in `f32`.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`
/// - `weight`, `bias`: `[channels]` or `[batch, channels]`, `f32`
/// - `shift`: `[1, channels]` or `[batch, channels]`, `f32`
///
/// # Errors
/// Channels that do not divide into groups.
pub fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    shift: Option<&Tensor>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("group norm expected channels divisible by {groups}, got {channels}");
    }
    let mut ys = xs.to_dtype(DType::F32)?;
    if let Some(shift) = shift {
        ys = ys.broadcast_add(&pixel(shift)?)?;
    }
    let ys = ys.reshape((batch, height * width, groups, channels / groups))?;
    let centred = ys.broadcast_sub(&ys.mean_keepdim((1, 3))?)?;
    let variance = centred.sqr()?.mean_keepdim((1, 3))?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let ys = normal
        .reshape((batch, height, width, channels))?
        .broadcast_mul(&pixel(weight)?)?
        .broadcast_add(&pixel(bias)?)?;
    let ys = if silu { ys.silu()? } else { ys };
    ys.to_dtype(xs.dtype())
}

/// A row of channels, or one for each image, as an image of one pixel: `[1 or batch, 1, 1, channels]`.
fn pixel(rows: &Tensor) -> Result<Tensor> {
    let channels = rows.dims()[rows.rank() - 1];
    rows.reshape(((), 1, 1, channels))
}

/// [`group_norm`] of the channels of `a`, then those of `b`.
///
/// # Shapes
/// - `a`, `b`: `[batch, height, width, c_a]`, `[batch, height, width, c_b]`
/// - result, parameters: as those of [`group_norm`] of `c_a + c_b` channels
///
/// # Errors
/// Sizes other than the channels that differ, or channels that do not divide into groups.
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
    group_norm(&cat_channels(a, b)?, weight, bias, shift, groups, eps, silu)
}

/// A 1x1 convolution without bias of the channels of `a`, then those of `b`, computed in `f32`.
///
/// # Shapes
/// - `a`, `b`: `[batch, height, width, c_a]`, `[batch, height, width, c_b]`
/// - `weight`: `[c_out, 1, 1, c_a + c_b]`, of the same dtype
/// - result: `[batch, height, width, c_out]`
///
/// # Errors
/// Shapes that do not fit together.
pub fn project_joined(a: &Tensor, b: &Tensor, weight: &Tensor) -> Result<Tensor> {
    conv2d(&cat_channels(a, b)?, weight, 1, 0)
}

/// `a + b`, plus a number for each channel; computed in `f32`.
///
/// # Shapes
/// - `a`, `b`, result: `[batch, height, width, channels]`
/// - `bias`: `[channels]`, `f32`
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut sum = (a.to_dtype(DType::F32)? + b.to_dtype(DType::F32)?)?;
    if let Some(bias) = bias {
        sum = sum.broadcast_add(bias)?;
    }
    sum.to_dtype(a.dtype())
}

/// `xs` plus a number for each channel, or for each image and channel; computed in `f32`.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`
/// - `bias`: `[channels]` or `[batch, channels]`, `f32`
///
/// # Errors
/// Shapes that do not fit.
pub fn add_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    xs.to_dtype(DType::F32)?.broadcast_add(&pixel(bias)?)?.to_dtype(xs.dtype())
}

/// The channels of `a`, then those of `b`.
///
/// # Shapes
/// `[batch, height, width, c_a]`, `[batch, height, width, c_b]` to `[batch, height, width, c_a + c_b]`
///
/// # Errors
/// Sizes other than the channels that differ.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[a, b], 3)
}

/// Every pixel four times.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, 2 height, 2 width, channels]`
///
/// # Errors
/// Another shape.
pub fn upsample_2x(xs: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    xs.reshape((batch, height, 1, width, 1, channels))?
        .broadcast_as((batch, height, 2, width, 2, channels))?
        .contiguous()?
        .reshape((batch, 2 * height, 2 * width, channels))
}

/// The mean of every 2x2 pixels, computed in `f32`; an odd last row or column is left out.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, height / 2, width / 2, channels]`
///
/// # Errors
/// Another shape.
pub fn avg_pool_2x(xs: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (height, width) = (height / 2, width / 2);
    xs.narrow(1, 0, 2 * height)?
        .narrow(2, 0, 2 * width)?
        .contiguous()?
        .to_dtype(DType::F32)?
        .reshape((batch, height, 2, width, 2 * channels))?
        .sum(2)?
        .reshape((batch, height, width, 2, channels))?
        .sum(3)?
        .affine(0.25, 0.0)?
        .to_dtype(xs.dtype())
}

/// A row and a column of zeros below and to the right.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, height + 1, width + 1, channels]`
///
/// # Errors
/// Another shape.
pub fn pad_end(xs: &Tensor) -> Result<Tensor> {
    xs.pad_with_zeros(1, 0, 1)?.pad_with_zeros(2, 0, 1)
}

/// `softmax(scale q k') v` for each head, computed in `f32`.
///
/// # Shapes
/// - `qkv`: `[batch, positions, heads * 3 * c]`; each head has its queries, keys and values side by
///   side
/// - result: `[batch, positions, heads * c]`
///
/// # Errors
/// Channels that are no multiple of three times the heads.
pub fn attention(qkv: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, positions, channels) = qkv.dims3()?;
    if heads == 0 || !channels.is_multiple_of(3 * heads) {
        candle_core::bail!("attention expected channels divisible by 3 x {heads}, got {channels}");
    }
    let width = channels / (3 * heads);
    let parts = qkv
        .to_dtype(DType::F32)?
        .reshape((batch, positions, heads, 3, width))?
        .permute((3, 0, 2, 1, 4))?
        .contiguous()?; // [3, B, heads, positions, width]
    let part = |index: usize| parts.get(index)?.contiguous();
    let scores = (part(0)?.matmul(&part(1)?.transpose(2, 3)?.contiguous()?)? * scale)?;
    let weights = candle_nn::ops::softmax(&scores, 3)?; // [B, heads, queries, keys]
    weights
        .matmul(&part(2)?)? // [B, heads, positions, width]
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch, positions, heads * width))?
        .to_dtype(qkv.dtype())
}

/// Zeroes each element with probability `p` and multiplies the others by `1 / (1 - p)`, by the mask
/// that the same key draws in channels-first order.
///
/// # Shapes
/// `xs`, result: `[batch, height, width, channels]`
///
/// # Errors
/// A probability outside of `[0, 1)`.
pub fn dropout(xs: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    last(&crate::dropout::dropout(&first(xs)?, p, key)?)
}

/// `xs * scale + shift` for each channel, then ReLU if asked. The gradient is taken with respect to
/// `xs` alone.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`
/// - `scale`, `shift`: `[channels]`, `f32`
///
/// # Errors
/// Shapes that do not fit.
pub fn scale_shift(xs: &Tensor, scale: &Tensor, shift: &Tensor, relu: bool) -> Result<Tensor> {
    let ys = xs
        .to_dtype(DType::F32)?
        .broadcast_mul(&pixel(&scale.detach())?)?
        .broadcast_add(&pixel(&shift.detach())?)?;
    let ys = if relu { ys.relu()? } else { ys };
    ys.to_dtype(xs.dtype())
}

/// Max pooling over 3x3 windows, two apart, with a border of one.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, ceil(height / 2), ceil(width / 2), channels]`
///
/// # Errors
/// Another shape.
pub fn max_pool_3x3_stride_2(xs: &Tensor) -> Result<Tensor> {
    let ys = kernels::max_pool_3x3_stride_2(&first(xs)?.to_dtype(DType::F32)?)?;
    last(&ys)?.to_dtype(xs.dtype())
}
