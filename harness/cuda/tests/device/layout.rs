//! Channels-first to channels-last and back, and the weights of convolutions.

use candle_core::{DType, Result, Tensor};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];
/// Batch, channels, height, width, and the channels with those that are added.
const SIZES: [[usize; 5]; 6] = [
    [1, 1, 1, 1, 1],
    [3, 3, 5, 7, 8],
    [2, 3, 32, 32, 8],
    [1, 33, 3, 43, 33],
    [2, 64, 4, 4, 72],
    [1, 20, 12, 11, 64],
];

fn last(xs: &Tensor, padded: usize) -> Result<Tensor> {
    xs.pad_with_zeros(1, 0, padded - xs.dims()[1])?.permute((0, 2, 3, 1))?.contiguous()
}

#[test]
fn channels_become_the_last_and_are_added_to() {
    for dtype in DTYPES {
        for [batch, channels, height, width, padded] in SIZES {
            let dims = [batch, channels, height, width];
            check(
                &format!("to_channels_last {dims:?} {padded} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, DType::F32)],
                |args| ops::to_channels_last(&args[0], dtype, padded),
                |args| last(&args[0], padded),
            );
        }
    }
}

#[test]
fn channels_become_the_first_and_some_are_left_out() {
    for dtype in DTYPES {
        for [batch, channels, height, width, padded] in SIZES {
            let dims = [batch, height, width, padded];
            check(
                &format!("to_channels_first {dims:?} {channels} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, dtype)],
                |args| ops::to_channels_first(&args[0], channels),
                |args| args[0].permute((0, 3, 1, 2))?.narrow(1, 0, channels)?.contiguous(),
            );
        }
    }
}

#[test]
fn weights_are_packed() {
    // Channels out and in, the kernel's side, and both with those that are added.
    let sizes = [
        [1, 1, 1, 1, 1],
        [5, 3, 3, 8, 8],
        [32, 16, 3, 32, 16],
        [3, 200, 3, 8, 200],
        [4, 130, 1, 4, 136],
        [2, 70, 7, 2, 72],
        [2, 3, 13, 3, 4],
    ];
    for dtype in DTYPES {
        for [c_out, c_in, side, padded_out, padded_in] in sizes {
            let dims = [c_out, c_in, side, side];
            check(
                &format!("pack_weight {dims:?} {padded_out} {padded_in} {dtype:?}"),
                Tolerance::EXACT,
                &[(&dims, DType::F32)],
                |args| ops::pack_weight(&args[0], dtype, padded_out, padded_in),
                |args| last(&args[0].pad_with_zeros(0, 0, padded_out - c_out)?, padded_in),
            );
        }
    }
}
