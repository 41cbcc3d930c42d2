//! Frozen batch normalisation, and the max pooling of ImageNet's ResNets.

use candle_core::{DType, Device, Result, Tensor, Var};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check, number_pair, values};
use crate::{assert_close, device, numbers};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
fn channels_are_scaled_and_shifted() -> Result<()> {
    let device = device();
    let sizes =
        [[1, 1, 1, 1], [3, 5, 7, 3], [2, 4, 6, 32], [1, 9, 3, 40], [2, 3, 3, 20], [2, 31, 33, 8]];
    for dtype in DTYPES {
        for dims in sizes {
            let (scale, here_scale) = number_pair(11, &dims[3..], DType::F32, &device);
            let (shift, here_shift) = number_pair(12, &dims[3..], DType::F32, &device);
            for relu in [false, true] {
                check(
                    &format!("scale_shift {dims:?} {dtype:?}, relu {relu}"),
                    Tolerance::EXACT,
                    &[(&dims, dtype)],
                    |args| ops::scale_shift(&args[0], &scale, &shift, relu),
                    |args| {
                        let ys = args[0].broadcast_mul(&here_scale)?.broadcast_add(&here_shift)?;
                        if relu { ys.relu() } else { Ok(ys) }
                    },
                );
            }
        }
    }
    Ok(())
}

#[test]
fn relu_keeps_what_is_no_number_and_frozen_rows_get_no_gradient() -> Result<()> {
    let device = device();
    for dtype in DTYPES {
        let xs = Tensor::new(&[[f32::NAN, -3.0, 2.0]], &Device::Cpu)?.reshape((1, 1, 1, 3))?;
        let xs = Var::from_tensor(&xs.to_dtype(dtype)?.to_device(&device)?)?;
        let scale = Var::new(&[1f32, 2.0, 2.0], &device)?;
        let shift = Var::new(&[0f32, 1.0, 1.0], &device)?;
        let ys = ops::scale_shift(&xs, &scale, &shift, true)?;
        let got = values(&ys);
        assert!(got[0].is_nan(), "{got:?}");
        assert_eq!(got[1..], [0.0, 5.0], "{dtype:?}");
        let grads = ys.sum_all()?.backward()?;
        assert!(grads.get(&scale).is_none() && grads.get(&shift).is_none());
        let got = grads.get(&xs).map(values).unwrap_or_default();
        assert_eq!(got[1..], [0.0, 2.0], "{dtype:?}");
    }
    Ok(())
}

#[test]
fn rows_of_another_length_or_dtype_are_refused() -> Result<()> {
    let device = device();
    let take = |dims: &[usize], dtype| number_pair(1, dims, dtype, &device).0;
    let (xs, row) = (take(&[1, 2, 2, 4], DType::BF16), take(&[4], DType::F32));
    let refused = |scale: &Tensor, shift: &Tensor| {
        ops::scale_shift(&xs, scale, shift, false).unwrap_err().to_string()
    };
    let error = refused(&row, &take(&[5], DType::F32));
    assert!(error.contains("expected shift [4] in f32, got [5] in F32"), "{error}");
    let error = refused(&take(&[4], DType::BF16), &row);
    assert!(error.contains("expected scale [4] in f32, got [4] in BF16"), "{error}");
    Ok(())
}

/// The greatest number of each window of `[batch, height, width, channels]`, and where it stood.
fn pooled(xs: &[f32], [batch, height, width, channels]: [usize; 4]) -> Vec<(f32, usize)> {
    let mut out = Vec::new();
    for image in 0..batch {
        for y in (0..height).step_by(2) {
            for x in (0..width).step_by(2) {
                for channel in 0..channels {
                    let mut window = Vec::new();
                    for row in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                        for column in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                            let pixel = (image * height + row) * width + column;
                            window.push(pixel * channels + channel);
                        }
                    }
                    let greatest = window.iter().map(|&at| xs[at]).fold(f32::MIN, f32::max);
                    let last_nan = window.iter().copied().rfind(|&at| xs[at].is_nan());
                    let first = || window.iter().copied().find(|&at| xs[at] == greatest);
                    let at = last_nan.or_else(first).unwrap();
                    out.push((xs[at], at));
                }
            }
        }
    }
    out
}

/// Values, gradients, and that a second run gives the same bits.
fn check_pool(what: &str, xs: &Tensor, dims: [usize; 4]) -> Result<()> {
    let dtype = xs.dtype();
    let var = Var::from_tensor(xs)?;
    let want = pooled(&values(xs), dims);
    let [batch, height, width, channels] = dims;
    let out_dims = [batch, height.div_ceil(2), width.div_ceil(2), channels];
    // Rounded to bf16, so that both sides take the same.
    let (slopes, here) = number_pair(99, &out_dims, DType::BF16, xs.device());
    let mut want_gradient = vec![0.0; xs.elem_count()];
    for ((_, at), slope) in want.iter().zip(here.flatten_all()?.to_vec1::<f64>()?) {
        want_gradient[*at] += slope;
    }
    let mut first: Option<Vec<u32>> = None;
    for _ in 0..2 {
        let ys = ops::max_pool_3x3_stride_2(&var)?;
        assert_eq!(ys.dims(), out_dims, "{what}");
        for (nth, (got, (want, _))) in values(&ys).iter().zip(&want).enumerate() {
            let same = got == want || (got.is_nan() && want.is_nan());
            assert!(same, "{what}: number {nth}: expected {want}, got {got}");
        }
        let grads = (ys * slopes.to_dtype(dtype)?)?.sum_all()?.backward()?;
        let gradient = grads.get(&var).map(values).unwrap_or_default();
        assert_close(&gradient, &want_gradient, dtype, 1e-6);
        let bits: Vec<u32> = gradient.into_iter().map(f32::to_bits).collect();
        assert_eq!(
            first.get_or_insert_with(|| bits.clone()),
            &bits,
            "{what}: a second run differs"
        );
    }
    Ok(())
}

#[test]
fn the_greatest_of_each_window_is_taken_and_has_the_gradient() -> Result<()> {
    let device = device();
    let sizes = [
        [1, 1, 1, 1],
        [2, 5, 7, 3],
        [1, 2, 2, 8],
        [3, 9, 4, 5],
        [1, 1, 6, 2],
        [2, 3, 1, 4],
        [2, 16, 17, 24],
    ];
    for dtype in DTYPES {
        for dims in sizes {
            let drawn = numbers(3, dims.iter().product());
            let of = |change: &dyn Fn(usize, f32) -> f32| {
                let changed = drawn.iter().enumerate().map(|(nth, &x)| change(nth, x)).collect();
                Tensor::from_vec::<_, f32>(changed, &dims, &Device::Cpu)?
                    .to_dtype(dtype)?
                    .to_device(&device)
            };
            let as_drawn = of(&|_, x| x)?;
            // No zero of the border may win.
            let below_zero = of(&|_, x| x - 10.0)?;
            let tied = of(&|_, x| x.round())?;
            let some_nan = of(&|nth, x| if nth % 7 == 3 { f32::NAN } else { x.round() })?;
            let all_nan = of(&|_, _| f32::NAN)?;
            for (name, xs) in [
                ("as drawn", as_drawn),
                ("below zero", below_zero),
                ("tied", tied),
                ("some NaN", some_nan),
                ("all NaN", all_nan),
            ] {
                check_pool(&format!("max_pool {dims:?} {dtype:?}, {name}"), &xs, dims)?;
            }
        }
    }
    Ok(())
}

#[test]
fn parts_and_transposed_images_are_pooled_as_they_are() -> Result<()> {
    let device = device();
    for dtype in DTYPES {
        let (xs, _) = number_pair(5, &[3, 5, 6, 3], dtype, &device);
        let turned = xs.narrow(0, 1, 2)?.transpose(1, 2)?;
        let got = ops::max_pool_3x3_stride_2(&turned)?;
        let want = pooled(&values(&turned), [2, 6, 5, 3]);
        let want: Vec<f32> = want.into_iter().map(|(greatest, _)| greatest).collect();
        assert_eq!(values(&got), want, "{dtype:?}");
    }
    Ok(())
}
