//! Moved and averaged pixels, joined channels.

use candle_core::{DType, Result, Tensor};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];
const SIZES: [[usize; 4]; 5] =
    [[1, 2, 2, 1], [3, 5, 7, 3], [2, 4, 6, 32], [1, 9, 3, 40], [2, 8, 8, 20]];

#[test]
fn channels_of_two_images_are_joined() {
    for dtype in DTYPES {
        for (a, b) in [(1, 1), (3, 8), (32, 16), (8, 64), (40, 20)] {
            check(
                &format!("cat_channels {a} {b} {dtype:?}"),
                Tolerance::EXACT,
                &[(&[3, 5, 3, a], dtype), (&[3, 5, 3, b], dtype)],
                |args| ops::cat_channels(&args[0], &args[1]),
                |args| Tensor::cat(args, 3),
            );
        }
    }
}

/// Each pixel of `[batch, height, width, channels]` four times.
fn repeated(xs: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    xs.reshape((batch, height, 1, width, 1, channels))?
        .broadcast_as((batch, height, 2, width, 2, channels))?
        .reshape((batch, 2 * height, 2 * width, channels))
}

#[test]
fn pixels_are_repeated() {
    for dtype in DTYPES {
        for dims in SIZES {
            check(
                &format!("upsample_2x {dims:?} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, dtype)],
                |args| ops::upsample_2x(&args[0]),
                |args| repeated(&args[0]),
            );
        }
    }
}

fn averaged(xs: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (height, width) = (height / 2, width / 2);
    let even = xs.narrow(1, 0, 2 * height)?.narrow(2, 0, 2 * width)?.contiguous()?;
    let fours = even.reshape((batch, height, 2, width, 2, channels))?;
    fours.sum(4)?.sum(2)? * 0.25
}

#[test]
fn pixels_are_averaged_and_an_odd_rest_is_left_out() {
    for dtype in DTYPES {
        for dims in SIZES {
            check(
                &format!("avg_pool_2x {dims:?} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, dtype)],
                |args| ops::avg_pool_2x(&args[0]),
                |args| averaged(&args[0]),
            );
        }
    }
}

#[test]
fn zeros_are_put_below_and_to_the_right() {
    for dtype in DTYPES {
        for dims in SIZES {
            check(
                &format!("pad_end {dims:?} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, dtype)],
                |args| ops::pad_end(&args[0]),
                |args| args[0].pad_with_zeros(1, 0, 1)?.pad_with_zeros(2, 0, 1),
            );
        }
    }
}
