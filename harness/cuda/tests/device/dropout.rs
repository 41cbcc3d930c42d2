//! Dropout: the CPU's mask, forwards and backwards.

use candle_core::{DType, Tensor, Var};
use oodbench_cuda::ops;

use crate::check::{number_pair, values};
use crate::device;

/// The n-th number of the SplitMix64 sequence that starts at `key`.
fn splitmix(key: u64, n: u64) -> u64 {
    let mut z = key.wrapping_add((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What the elements of an image are multiplied by, in channels-last order.
fn mask([batch, height, width, channels]: [usize; 4], p: f64, key: u64) -> Vec<f32> {
    let threshold = (p * 2f64.powi(32)).round() as u32;
    let mut mask = Vec::new();
    for image in 0..batch {
        for pixel in 0..height * width {
            for channel in 0..channels {
                let number = (image * channels + channel) * height * width + pixel;
                let bits = splitmix(key, number as u64 / 2) >> (32 * (number % 2));
                let kept = bits as u32 >= threshold;
                mask.push(if kept { (1.0 / (1.0 - p)) as f32 } else { 0.0 });
            }
        }
    }
    mask
}

#[test]
fn the_mask_is_that_of_the_cpu() {
    let device = device();
    let key = 0xFEDC_BA98_7654_3210;
    for dtype in [DType::F32, DType::BF16] {
        for dims in [[1, 1, 1, 1], [3, 3, 5, 7], [2, 4, 4, 16], [3, 5, 2, 6], [2, 5, 5, 32]] {
            for p in [0.1, 0.5] {
                let what = format!("{dims:?} {p} {dtype:?}");
                let (xs, here) = number_pair(1, &dims, dtype, &device);
                let xs = Var::from_tensor(&xs).unwrap();
                let mask = mask(dims, p, key);
                let product: Vec<f32> =
                    values(&here).iter().zip(&mask).map(|(x, mask)| x * mask).collect();
                let rounded = |numbers: &[f32]| {
                    let numbers = Tensor::new(numbers, &candle_core::Device::Cpu).unwrap();
                    values(&numbers.to_dtype(dtype).unwrap())
                };
                let ys = ops::dropout(&xs, p, key).unwrap();
                assert_eq!(values(&ys), rounded(&product), "{what}");
                let grads = ys.sum_all().unwrap().backward().unwrap();
                assert_eq!(values(grads.get(&xs).unwrap()), rounded(&mask), "{what}");
            }
        }
    }
}

#[test]
fn no_probability_changes_nothing_and_one_is_refused() {
    let xs = Tensor::ones((1, 2, 2, 4), DType::F32, &device()).unwrap();
    assert_eq!(values(&ops::dropout(&xs, 0.0, 1).unwrap()), vec![1.0; 16]);
    let error = ops::dropout(&xs, 1.0, 1).unwrap_err().to_string();
    assert!(error.contains("from 0 to below 1, got 1"), "{error}");
}
