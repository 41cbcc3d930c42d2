//! Operations on channels that are never joined, against those on joined channels.

use candle_core::{DType, Result, Tensor, Var};
use oodbench_cuda::ops;

use crate::check::{number_pair, values};
use crate::device;

const EPS: f64 = 1e-6;

#[test]
fn normalised_channels_need_not_be_joined() -> Result<()> {
    let device = device();
    // Height, width, the channels of both, groups: on each of the kernels, with groups and slabs that have
    // channels of both images.
    let cases = [
        [3, 2, 32, 64, 8],
        [3, 5, 3, 6, 3],
        [8, 8, 256, 128, 32],
        [16, 16, 40, 56, 8],
        [32, 32, 256, 128, 32],
        [40, 40, 64, 96, 8],
        [32, 32, 72, 88, 2],
        [30, 40, 5, 4, 3],
    ];
    for dtype in [DType::F32, DType::BF16] {
        for [height, width, c_a, c_b, groups] in cases {
            let take = |seed, dims: &[usize], dtype| number_pair(seed, dims, dtype, &device).0;
            let a = take(1, &[2, height, width, c_a], dtype);
            let b = take(2, &[2, height, width, c_b], dtype);
            let weight = take(3, &[c_a + c_b], DType::F32);
            let bias = take(4, &[2, c_a + c_b], DType::F32);
            let shift = take(5, &[1, c_a + c_b], DType::F32);
            for shift in [None, Some(&shift)] {
                let got = ops::group_norm_joined(&a, &b, &weight, &bias, shift, groups, EPS, true)?;
                let both = ops::cat_channels(&a, &b)?;
                let want = ops::group_norm(&both, &weight, &bias, shift, groups, EPS, true)?;
                assert_eq!(got.dims(), want.dims());
                // The same sums in the same order.
                assert_eq!(values(&got), values(&want), "{dtype:?} {height} {width} {c_a} {c_b}");
            }
        }
    }
    Ok(())
}

#[test]
fn projected_channels_need_not_be_joined() -> Result<()> {
    let device = device();
    for dtype in [DType::F32, DType::BF16] {
        for [c_a, c_b, c_out] in [[16, 8, 24], [3, 5, 7], [64, 32, 40]] {
            let pair = |seed, dims: &[usize]| number_pair(seed, dims, dtype, &device);
            let (a, here_a) = pair(1, &[2, 5, 3, c_a]);
            let (b, here_b) = pair(2, &[2, 5, 3, c_b]);
            let (weight, here_weight) = pair(3, &[c_out, 1, 1, c_a + c_b]);
            let got = ops::project_joined(&a, &b, &weight)?;
            assert_eq!(got.dims(), [2, 5, 3, c_out]);
            let both = Tensor::cat(&[here_a, here_b], 3)?.reshape((30, c_a + c_b))?;
            let want = both.matmul(&here_weight.reshape((c_out, c_a + c_b))?.t()?)?;
            let want: Vec<f64> = want.flatten_all()?.to_vec1()?;
            // In bf16 the first product has been rounded to 9 bits.
            let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
            crate::assert_close(&values(&got), &want, dtype, tolerance);
        }
    }
    Ok(())
}

#[test]
fn gradients_find_their_way() -> Result<()> {
    let device = device();
    let take =
        |seed, dims: &[usize]| Var::from_tensor(&number_pair(seed, dims, DType::F32, &device).0);
    let (a, b) = (take(1, &[2, 3, 3, 8])?, take(2, &[2, 3, 3, 4])?);
    let (norm, weight) = (take(3, &[12])?, take(4, &[8, 1, 1, 12])?);
    let gradients = |ys: Tensor| -> Result<Vec<Vec<f32>>> {
        let grads = ys.sqr()?.backward()?;
        let of = |var: &Var| grads.get(var).map(values).unwrap_or_default();
        Ok(vec![of(&a), of(&b), of(&norm), of(&weight)])
    };
    let both = ops::cat_channels(&a, &b)?;
    let hs = ops::group_norm(&both, &norm, &norm, None, 3, EPS, true)?;
    let want = gradients((hs.sum_all()? + ops::conv2d(&both, &weight, 1, 0)?.sum_all()?)?)?;
    let hs = ops::group_norm_joined(&a, &b, &norm, &norm, None, 3, EPS, true)?;
    let got = gradients((hs.sum_all()? + ops::project_joined(&a, &b, &weight)?.sum_all()?)?)?;
    assert!(want.iter().all(|grads| !grads.is_empty()));
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).unwrap();
    let refused = |result: Result<Tensor>, said: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    let (a, b, norm) = (zeros(&[1, 2, 2, 4]), zeros(&[1, 2, 3, 4]), zeros(&[8]));
    refused(
        ops::group_norm_joined(&a, &b, &norm, &norm, None, 2, EPS, true),
        "two images of one size",
    );
    refused(
        ops::group_norm_joined(&a, &a, &zeros(&[4]), &norm, None, 2, EPS, true),
        "a weight [8] or [1, 8]",
    );
    refused(ops::project_joined(&a, &a, &zeros(&[3, 1, 1, 4])), "a weight [c_out, 1, 1, 8]");
}
