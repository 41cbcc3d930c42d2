//! Sums and biases.

use candle_core::{DType, Tensor};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check, number_pair, values};
use crate::device;

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// `[channels]` or `[batch, channels]` to what an image can be added to.
fn spread(bias: &Tensor) -> candle_core::Result<Tensor> {
    let channels = bias.dims()[bias.rank() - 1];
    bias.reshape(((), 1, 1, channels))
}

#[test]
fn images_and_a_bias_are_added() {
    for dtype in DTYPES {
        for dims in [[1, 1, 1, 1], [3, 5, 7, 3], [2, 4, 4, 32], [1, 9, 3, 40], [3, 16, 16, 24]] {
            let image = (&dims[..], dtype);
            check(
                &format!("add {dims:?} {dtype:?}"),
                Tolerance::EXACT,
                &[image, image],
                |args| ops::add(&args[0], &args[1], None),
                |args| &args[0] + &args[1],
            );
            check(
                &format!("add {dims:?} {dtype:?} with a bias"),
                Tolerance::EXACT,
                &[image, image, (&dims[3..], DType::F32)],
                |args| ops::add(&args[0], &args[1], Some(&args[2])),
                |args| (&args[0] + &args[1])?.broadcast_add(&spread(&args[2])?),
            );
        }
    }
}

#[test]
fn a_bias_is_added_to_all_images_or_to_each() {
    for dtype in DTYPES {
        for dims in [[3, 5, 7, 3], [2, 4, 4, 32], [3, 16, 16, 24]] {
            for bias in [vec![dims[3]], vec![dims[0], dims[3]]] {
                check(
                    &format!("add_bias {dims:?} {bias:?} {dtype:?}"),
                    Tolerance::EXACT,
                    &[(&dims, dtype), (&bias, DType::F32)],
                    |args| ops::add_bias(&args[0], &args[1]),
                    |args| args[0].broadcast_add(&spread(&args[1])?),
                );
            }
        }
    }
}

#[test]
fn a_bias_gets_the_sum_over_more_rows_than_one_block_adds() {
    for dtype in DTYPES {
        check(
            &format!("{dtype:?}"),
            Tolerance::EXACT,
            &[(&[9, 33, 32, 8], dtype), (&[8], DType::F32)],
            |args| ops::add_bias(&args[0], &args[1]),
            |args| args[0].broadcast_add(&spread(&args[1])?),
        );
    }
}

#[test]
fn parts_and_transposed_images_are_taken_as_they_are() {
    let device = device();
    for dtype in DTYPES {
        // The second image begins at an address that no pack can begin at, with 3 channels.
        for channels in [3, 32] {
            let (there, here) = number_pair(5, &[3, 5, 5, channels], dtype, &device);
            let part = there.narrow(0, 1, 2).unwrap();
            let turned = part.transpose(1, 2).unwrap();
            let sum = ops::add(&part, &turned, None).unwrap();
            let part = here.narrow(0, 1, 2).unwrap();
            let want = (&part + part.transpose(1, 2).unwrap()).unwrap();
            // One rounding: the sum of two numbers of `dtype`.
            let want = want.to_dtype(DType::F32).unwrap().to_dtype(dtype).unwrap();
            assert_eq!(values(&sum), values(&want), "{channels} {dtype:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &device).unwrap();
    let image = zeros(&[1, 2, 2, 4], DType::F32);
    let refused = |result: candle_core::Result<Tensor>, said: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    refused(ops::add(&image, &zeros(&[1, 2, 2, 5], DType::F32), None), "two images alike");
    refused(ops::add(&image, &zeros(&[1, 2, 2, 4], DType::BF16), None), "two images alike");
    refused(ops::add_bias(&image, &zeros(&[5], DType::F32)), "expected a bias [4]");
    refused(ops::add_bias(&image, &zeros(&[4], DType::BF16)), "in f32");
    let here = Tensor::zeros((1, 2, 2, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
    refused(ops::add(&here, &here, None), "on a CUDA device");
}
