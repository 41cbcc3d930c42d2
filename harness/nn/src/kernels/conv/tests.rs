//! Convolution against candle's own, and against itself in other company.

use super::*;
use crate::kernels::testing::{assert_close, random, var};

/// Value and gradients against candle's own convolution, in `f64` so that its own rounding is not
/// taken for ours.
#[track_caller]
fn check(
    batch: usize,
    (c_in, c_out): (usize, usize),
    (height, width): (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
) {
    let xs = var("xs", &[batch, c_in, height, width]);
    let weight = var("weight", &[c_out, c_in, kernel, kernel]);
    for bias in [var("bias", &[c_out]), var("bias", &[batch, c_out])] {
        let ours = conv2d(&xs, &weight, Some(&bias), stride, padding).unwrap();
        let wide = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F64).unwrap();
        let of_bias = if bias.rank() == 1 {
            wide(&bias).reshape((1, c_out, 1, 1)).unwrap()
        } else {
            wide(&bias).reshape((batch, c_out, 1, 1)).unwrap()
        };
        let theirs = wide(&xs).conv2d(&wide(&weight), padding, stride, 1, 1).unwrap();
        let theirs = theirs.broadcast_add(&of_bias).unwrap();
        let narrow = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F32).unwrap();
        assert_close(&ours, &narrow(&theirs), 1e-5);
        let probe = random("probe", ours.dims());
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = theirs.mul(&wide(&probe)).unwrap().sum_all().unwrap().backward().unwrap();
        for v in [&xs, &weight, &bias] {
            assert_close(grads.get(v).unwrap(), &narrow(expected.get(v).unwrap()), 1e-5);
        }
    }
}

#[test]
fn agrees_with_candle() {
    check(2, (3, 5), (8, 8), 3, 1, 1);
    check(3, (4, 6), (9, 7), 3, 1, 0);
    check(1, (16, 8), (33, 20), 3, 1, 1);
    check(2, (4, 4), (8, 8), 1, 1, 0);
    check(5, (2, 3), (12, 12), 5, 1, 2);
    check(9, (8, 8), (16, 16), 3, 1, 1);
}

#[test]
fn agrees_with_candle_when_strided() {
    check(2, (3, 5), (8, 8), 3, 2, 1);
    check(2, (3, 5), (9, 9), 3, 2, 0);
    check(1, (6, 4), (8, 8), 1, 2, 0);
    check(1, (3, 8), (31, 31), 7, 2, 3);
}

#[test]
fn agrees_with_candle_on_the_smallest_images() {
    check(3, (5, 7), (1, 1), 1, 1, 0);
    check(2, (17, 13), (1, 1), 3, 1, 1);
    check(1, (16, 16), (2, 3), 3, 1, 1);
    check(2, (1, 3), (3, 4), 3, 1, 0);
    check(1, (4, 4), (2, 2), 1, 1, 3);
}

/// What Winograd's transforms are taken for, with tiles that stick out on every side.
#[test]
fn agrees_with_candle_when_tiled() {
    check(2, (16, 12), (8, 8), 3, 1, 1);
    check(3, (19, 13), (7, 9), 3, 1, 1);
    check(1, (16, 8), (10, 13), 3, 1, 0);
    check(1, (16, 25), (9, 6), 3, 1, 2);
    check(1, (17, 9), (5, 150), 3, 1, 1);
    check(40, (16, 8), (8, 8), 3, 1, 1);
}

#[test]
fn an_image_has_the_same_numbers_in_any_batch() {
    for (side, channels, kernel, stride) in
        [(8, 16, 3, 1), (16, 20, 3, 1), (4, 16, 3, 1), (8, 16, 1, 1), (9, 5, 3, 2)]
    {
        let xs = random("xs", &[5, channels, side, side]);
        let weight = random("weight", &[channels, channels, kernel, kernel]);
        let together = conv2d(&xs, &weight, None, stride, kernel / 2).unwrap();
        for image in 0..5 {
            let alone = xs.narrow(0, image, 1).unwrap();
            let alone = conv2d(&alone, &weight, None, stride, kernel / 2).unwrap();
            let expected = together.narrow(0, image, 1).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&alone), values(&expected), "side {side}, kernel {kernel}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut values = Vec::new();
            for (side, kernel, stride) in [(12, 3, 1), (4, 3, 1), (8, 1, 1), (8, 3, 2)] {
                let xs = var("xs", &[3, 24, side, side]);
                let weight = var("weight", &[40, 24, kernel, kernel]);
                let bias = var("bias", &[40]);
                let ys = conv2d(&xs, &weight, Some(&bias), stride, kernel / 2).unwrap();
                let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                for v in [&xs, &weight, &bias] {
                    let grad = grads.get(v).unwrap().flatten_all().unwrap();
                    values.extend(grad.to_vec1::<f32>().unwrap());
                }
            }
            values
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn an_empty_batch_gives_an_empty_batch() {
    let xs = random("xs", &[0, 3, 8, 8]);
    let weight = random("weight", &[4, 3, 3, 3]);
    assert_eq!(conv2d(&xs, &weight, None, 1, 1).unwrap().dims(), &[0, 4, 8, 8]);
}

#[test]
fn shapes_that_do_not_fit_are_an_error() {
    let xs = random("xs", &[1, 3, 8, 8]);
    let weight = random("weight", &[4, 2, 3, 3]);
    let err = conv2d(&xs, &weight, None, 1, 1).unwrap_err().to_string();
    assert!(err.contains("[1, 3, 8, 8]") && err.contains("[4, 2, 3, 3]"), "{err}");
    let (weight, bias) = (random("weight", &[4, 3, 3, 3]), random("bias", &[2, 4]));
    let err = conv2d(&xs, &weight, Some(&bias), 1, 1).unwrap_err().to_string();
    assert!(err.contains("[4] or [1, 4], got [2, 4]"), "{err}");
}
