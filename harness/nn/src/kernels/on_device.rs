//! The kernels of classifiers on a GPU: shapes are channels-first, memory is channels-last.
//!
//! A result is a view of a channels-last tensor, as in PyTorch's memory format of that name, and finds
//! the next kernel contiguous in the order that it wants. Other operations take the views as they take
//! any other tensor, if more slowly.

use candle_core::{DType, Result, Tensor};

use super::Then;
use crate::maps::ops;

/// Channels are padded to a multiple of this for a convolution: 16 bytes.
fn multiple(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// `[batch, channels, height, width]` to `[batch, height, width, channels]`, as a view.
fn last(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 2, 3, 1))
}

/// `[batch, height, width, channels]` to `[batch, channels, height, width]`, as a view.
fn first(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 3, 1, 2))
}

/// See [`super::conv2d`].
pub(super) fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (c_out, c_in, kernel_h, kernel_w) = weight.dims4()?;
    if xs.dim(1)? != c_in {
        candle_core::bail!(
            "convolution of {:?} expected as many input channels, got {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    let dtype = xs.dtype();
    let padded = |channels: usize| channels.next_multiple_of(multiple(dtype));
    let images = if padded(c_in) == c_in {
        last(xs)?
    } else {
        ops::to_channels_last(xs, dtype, padded(c_in))?
    };
    let part = |weight: &Tensor| ops::pack_weight(weight, dtype, padded(c_out), padded(c_in));
    let mut ys = if kernel_h == kernel_w {
        ops::conv2d(&images, &part(weight)?, stride, padding)?
    } else {
        by_pixels(&images, weight, stride, padding, part)?
    };
    if padded(c_out) == c_out {
        if let Some(bias) = bias {
            ys = ops::add_bias(&ys, bias)?;
        }
        return first(&ys);
    }
    let ys = ops::to_channels_first(&ys, c_out)?.to_dtype(dtype)?;
    match bias {
        Some(bias) => first(&ops::add_bias(&last(&ys)?, bias)?),
        None => Ok(ys),
    }
}

/// A convolution whose kernel is not square: the sum of 1x1 convolutions, one for each pixel of it.
fn by_pixels(
    images: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    pack: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, _, kernel_h, kernel_w) = weight.dims4()?;
    if stride != 1 {
        candle_core::bail!("a kernel of {kernel_h}x{kernel_w} expected stride 1, got {stride}");
    }
    let images = images.pad_with_zeros(1, padding, padding)?.pad_with_zeros(2, padding, padding)?;
    let (_, height, width, _) = images.dims4()?;
    let (Some(out_h), Some(out_w)) =
        ((height + 1).checked_sub(kernel_h), (width + 1).checked_sub(kernel_w))
    else {
        candle_core::bail!("a kernel of {kernel_h}x{kernel_w} expected larger images");
    };
    let mut sum: Option<Tensor> = None;
    for y in 0..kernel_h {
        for x in 0..kernel_w {
            let shifted = images.narrow(1, y, out_h)?.narrow(2, x, out_w)?.contiguous()?;
            let weight = weight.narrow(2, y, 1)?.narrow(3, x, 1)?.contiguous()?;
            let part = ops::conv2d(&shifted, &pack(&weight)?, 1, 0)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &part, None)?,
                None => part,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::msg("a convolution expected a kernel, got none").bt())
}

/// See [`super::scale_shift`].
pub(super) fn scale_shift(
    xs: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    then: Then,
) -> Result<Tensor> {
    let (scale, shift) = (scale.detach(), shift.detach());
    first(&ops::scale_shift(&last(xs)?, &scale, &shift, then == Then::Relu)?)
}

/// See [`super::add`].
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    first(&ops::add(&last(a)?, &last(b)?, None)?)
}

/// See [`super::relu`].
pub(super) fn relu(xs: &Tensor) -> Result<Tensor> {
    first(&last(xs)?.contiguous()?.relu()?)
}

/// See [`super::cat_channels`].
pub(super) fn cat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    first(&ops::cat_channels(&last(a)?, &last(b)?)?)
}

/// See [`super::avg_pool_2x`].
pub(super) fn avg_pool_2x(xs: &Tensor) -> Result<Tensor> {
    first(&ops::avg_pool_2x(&last(xs)?)?)
}

/// See [`super::max_pool_3x3_stride_2`].
pub(super) fn max_pool_3x3_stride_2(xs: &Tensor) -> Result<Tensor> {
    first(&ops::max_pool_3x3_stride_2(&last(xs)?)?)
}

/// On the CPU too, where the operations behind these are those of [`crate::maps::reference`].
#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::kernels::testing::{assert_close, random, var};
    use candle_core::Var;

    /// Values and gradients of two ways to compute the same.
    #[track_caller]
    fn check(vars: &[&Var], ours: Result<Tensor>, expected: Result<Tensor>) {
        let (ours, expected) = (ours.unwrap(), expected.unwrap());
        assert_close(&ours, &expected, 1e-5);
        let probe = random("probe", ours.dims());
        let grads = |ys: &Tensor| ys.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, expected) = (grads(&ours), grads(&expected));
        for var in vars {
            assert_close(ours.get(var).unwrap(), expected.get(var).unwrap(), 1e-5);
        }
    }

    #[test]
    fn convolutions_are_those_of_the_cpu() {
        for (c_in, c_out, kernel, stride, padding) in
            [(3, 8, 3, 1, 1), (8, 12, 3, 2, 1), (8, 5, 1, 1, 0), (6, 4, 1, 2, 0), (3, 8, 7, 2, 3)]
        {
            let (xs, weight) =
                (var("xs", &[2, c_in, 9, 8]), var("w", &[c_out, c_in, kernel, kernel]));
            let bias = var("bias", &[c_out]);
            check(
                &[&xs, &weight],
                conv2d(&xs, &weight, None, stride, padding),
                kernels::conv2d(&xs, &weight, None, stride, padding),
            );
            check(
                &[&xs, &weight, &bias],
                conv2d(&xs, &weight, Some(&bias), stride, padding),
                kernels::conv2d(&xs, &weight, Some(&bias), stride, padding),
            );
        }
        assert!(
            conv2d(&random("xs", &[1, 4, 8, 8]), &random("w", &[4, 8, 3, 3]), None, 1, 1).is_err()
        );
    }

    #[test]
    fn kernels_that_are_not_square_are_sums_over_their_pixels() {
        let xs = var("xs", &[2, 8, 9, 10]);
        for (height, width) in [(1, 7), (7, 1), (3, 2)] {
            let weight = var("w", &[6, 8, height, width]);
            check(
                &[&xs, &weight],
                conv2d(&xs, &weight, None, 1, 1),
                kernels::conv2d(&xs, &weight, None, 1, 1),
            );
        }
        assert!(conv2d(&xs, &random("w", &[6, 8, 1, 7]), None, 2, 0).is_err());
    }

    #[test]
    fn a_chain_is_that_of_the_cpu() {
        let (xs, weight) = (var("xs", &[2, 8, 7, 9]), var("w", &[8, 8, 3, 3]));
        let (scale, shift) = (random("scale", &[8]), random("shift", &[8]));
        for then in [Then::Nothing, Then::Relu] {
            let ours = || {
                let ys = conv2d(&xs, &weight, None, 1, 1)?;
                let ys = scale_shift(&ys, &scale, &shift, then)?;
                let ys = relu(&add(&ys, &xs)?)?;
                let ys = avg_pool_2x(&cat_channels(
                    &max_pool_3x3_stride_2(&ys)?,
                    &ys.narrow(2, 0, 4)?.narrow(3, 0, 5)?,
                )?)?;
                Ok(ys)
            };
            let expected = || {
                let ys = kernels::conv2d(&xs, &weight, None, 1, 1)?;
                let ys = kernels::scale_shift(&ys, &scale, &shift, then)?;
                let ys = kernels::relu(&kernels::add(&ys, &xs)?)?;
                let cut = ys.narrow(2, 0, 4)?.narrow(3, 0, 5)?;
                let ys = kernels::cat_channels(&kernels::max_pool_3x3_stride_2(&ys)?, &cut)?;
                kernels::avg_pool_2x(&ys)
            };
            check(&[&xs, &weight], ours(), expected());
        }
    }
}
