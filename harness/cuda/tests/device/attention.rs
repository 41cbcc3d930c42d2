//! Self-attention: heads, lengths on every path of the softmax, and gradients.

use candle_core::{D, DType, Result, Tensor};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check, values};
use crate::device;

fn formula(qkv: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (batch, positions, width) = qkv.dims3()?;
    let channels = width / (3 * heads);
    let parts = qkv.reshape((batch, positions, heads, 3, channels))?;
    // [batch, heads, positions, channels]
    let part = |nth| parts.narrow(3, nth, 1)?.squeeze(3)?.transpose(1, 2)?.contiguous();
    let (q, k, v): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
    let exps = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)?;
    let out = probabilities.matmul(&v)?.transpose(1, 2)?;
    out.contiguous()?.reshape((batch, positions, heads * channels))
}

#[test]
fn values_and_gradients_agree() {
    // Batch, positions, heads, channels of a head.
    let sizes = [
        [1, 1, 1, 4],
        [3, 5, 2, 3],
        [2, 64, 1, 32],
        [2, 64, 4, 8],
        [1, 256, 1, 16],
        [1, 260, 2, 8],
        [1, 321, 1, 8],
        [1, 1028, 1, 4],
    ];
    for dtype in [DType::F32, DType::BF16] {
        for [batch, positions, heads, channels] in sizes {
            let tolerance = match dtype {
                DType::F32 => Tolerance { value: 1e-5, gradient: 2e-5 },
                // Probabilities and the scores' gradients are rounded to 9 bits before they are added up.
                _ => Tolerance { value: 1e-2, gradient: 2e-2 },
            };
            let scale = (channels as f64).powf(-0.5);
            check(
                &format!("{batch} {positions} {heads} {channels} {dtype:?}"),
                tolerance,
                &[(&[batch, positions, heads * 3 * channels], dtype)],
                |args| ops::attention(&args[0], heads, scale),
                |args| formula(&args[0], heads, scale),
            );
        }
    }
}

#[test]
fn scores_of_any_size_overflow_nothing() {
    let device = device();
    for dtype in [DType::F32, DType::BF16] {
        // Each position looks at itself only: its own score is 10^4 above the others.
        let positions = 8;
        let eye = (Tensor::eye(positions, DType::F32, &device).unwrap() * 100.0).unwrap();
        let values_at = Tensor::arange(0f32, 64.0, &device).unwrap().reshape((8, 8)).unwrap();
        let qkv = Tensor::cat(&[&eye, &eye, &values_at], 1).unwrap().unsqueeze(0).unwrap();
        let out = ops::attention(&qkv.to_dtype(dtype).unwrap(), 1, 1.0).unwrap();
        assert_eq!(values(&out), values(&values_at), "{dtype:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let qkv = Tensor::zeros((1, 4, 10), DType::F32, &device()).unwrap();
    let error = ops::attention(&qkv, 1, 1.0).unwrap_err().to_string();
    assert!(error.contains("queries, keys and values of 1 heads, got 10"), "{error}");
}
