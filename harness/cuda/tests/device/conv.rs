//! Convolutions and their gradients, by every method, against their definition in `f64`.

use candle_core::{DType, Device, Result, Tensor, Var};
use half::bf16;
use oodbench_cuda::conv::{self, Backend, Method};
use oodbench_cuda::graph::Replay;
use oodbench_cuda::ops::{conv2d, conv2d_by};

use crate::{assert_close, device, numbers};

/// Batch, height, width, channels in and out, kernel, stride, padding.
type Case = [usize; 8];

const CASES: [Case; 13] = [
    [2, 8, 8, 32, 48, 1, 1, 0],
    [4, 6, 6, 3, 8, 1, 2, 0],
    [1, 5, 5, 48, 3, 1, 1, 1],
    [1, 7, 5, 3, 8, 3, 1, 1],
    [2, 8, 8, 32, 32, 3, 1, 1],
    [5, 9, 6, 8, 3, 3, 2, 1],
    [3, 11, 11, 48, 32, 3, 1, 0],
    [2, 8, 8, 32, 48, 3, 2, 1],
    [2, 9, 9, 32, 32, 3, 2, 0],
    [2, 10, 9, 3, 32, 5, 1, 2],
    [4, 13, 12, 8, 8, 5, 2, 2],
    [2, 16, 15, 3, 48, 7, 2, 3],
    [3, 9, 9, 32, 8, 7, 1, 3],
];

/// Numbers that `dtype` holds exactly.
fn tensor(seed: u64, shape: [usize; 4], dtype: DType) -> Result<Tensor> {
    let mut values = numbers(seed, shape.iter().product());
    if dtype == DType::BF16 {
        for value in &mut values {
            *value = bf16::from_f32(*value).to_f32();
        }
    }
    Tensor::from_vec(values, &shape[..], &Device::Cpu)
}

/// What a convolution yields and passes back, in channels-last order.
struct Results {
    ys: Tensor,
    xs_gradient: Tensor,
    weight_gradient: Tensor,
}

struct Inputs {
    /// `[batch, height, width, c_in]`
    xs: Tensor,
    /// `[c_out, kernel, kernel, c_in]`
    weight: Tensor,
    /// `[batch, height', width', c_out]`
    gradient: Tensor,
}

fn inputs(case: Case, dtype: DType) -> Result<Inputs> {
    let [batch, height, width, c_in, c_out, kernel, stride, padding] = case;
    let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    Ok(Inputs {
        xs: tensor(1, [batch, height, width, c_in], dtype)?,
        weight: tensor(2, [c_out, kernel, kernel, c_in], dtype)?,
        gradient: tensor(3, [batch, out(height), out(width), c_out], dtype)?,
    })
}

/// By the sums that define a convolution and its gradients, in `f64`. candle's own backward pass takes
/// the image to be square where the stride is not 1; its forward pass is compared.
fn on_cpu(case: Case, inputs: &Inputs) -> Result<Results> {
    let [batch, height, width, c_in, c_out, kernel, stride, padding] = case;
    let values = |of: &Tensor| of.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (x, w, dy) = (values(&inputs.xs)?, values(&inputs.weight)?, values(&inputs.gradient)?);
    let (_, out_height, out_width, _) = inputs.gradient.dims4()?;
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    // The rows of the image that output row `i` sees, with the row of the kernel that each meets.
    let seen = |i: usize, size: usize| {
        (0..kernel).filter_map(move |r| {
            let at = (i * stride + r).checked_sub(padding)?;
            (at < size).then_some((r, at))
        })
    };
    for n in 0..batch {
        for i in 0..out_height {
            for j in 0..out_width {
                for (r, h) in seen(i, height) {
                    for (s, v) in seen(j, width) {
                        let pixel = ((n * height + h) * width + v) * c_in;
                        for k in 0..c_out {
                            let out = ((n * out_height + i) * out_width + j) * c_out + k;
                            let tap = ((k * kernel + r) * kernel + s) * c_in;
                            for c in 0..c_in {
                                y[out] += x[pixel + c] * w[tap + c];
                                dx[pixel + c] += dy[out] * w[tap + c];
                                dw[tap + c] += dy[out] * x[pixel + c];
                            }
                        }
                    }
                }
            }
        }
    }
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    let results = Results {
        ys: tensor(y, &inputs.gradient)?,
        xs_gradient: tensor(dx, &inputs.xs)?,
        weight_gradient: tensor(dw, &inputs.weight)?,
    };
    let first = |xs: &Tensor| xs.to_dtype(DType::F64)?.permute((0, 3, 1, 2))?.contiguous();
    let ys = first(&inputs.xs)?.conv2d(&first(&inputs.weight)?, padding, stride, 1, 1)?;
    let difference = (ys.permute((0, 2, 3, 1))? - &results.ys)?.abs()?.max_all()?;
    assert!(difference.to_scalar::<f64>()? < 1e-9, "{case:?}: {difference}");
    Ok(results)
}

fn on_device(
    device: &Device,
    method: Method,
    case: Case,
    inputs: &Inputs,
    dtype: DType,
) -> Result<Results> {
    let [.., stride, padding] = case;
    let there = |xs: &Tensor| xs.to_device(device)?.to_dtype(dtype);
    let xs = Var::from_tensor(&there(&inputs.xs)?)?;
    let weight = Var::from_tensor(&there(&inputs.weight)?)?;
    let ys = conv2d_by(method, &xs, &weight, stride, padding)?;
    assert_eq!(ys.dtype(), dtype);
    let gradients = (&ys * there(&inputs.gradient)?)?.sum_all()?.backward()?;
    let gradient = |of: &Var| gradients.get(of).expect("both are variables").clone();
    Ok(Results { ys, xs_gradient: gradient(&xs), weight_gradient: gradient(&weight) })
}

fn assert_equal(got: &Tensor, want: &Tensor, dtype: DType) -> Result<()> {
    assert_eq!(got.dims(), want.dims());
    let got = got.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let want = want.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    assert_close(&got, &want, dtype, 1e-5);
    Ok(())
}

fn check_all(method: Method, dtype: DType) -> Result<()> {
    let device = device();
    for case in CASES {
        let inputs = inputs(case, dtype)?;
        let want = on_cpu(case, &inputs)?;
        let got = on_device(&device, method, case, &inputs, dtype)?;
        assert_equal(&got.ys, &want.ys, dtype)?;
        assert_equal(&got.xs_gradient, &want.xs_gradient, dtype)?;
        assert_equal(&got.weight_gradient, &want.weight_gradient, dtype)?;
    }
    Ok(())
}

/// cuDNN need not have an exact engine for every gradient, and says so.
#[test]
fn f32_by_cudnn_is_that_of_the_cpu() -> Result<()> {
    let device = device();
    for case in CASES {
        let inputs = inputs(case, DType::F32)?;
        let want = on_cpu(case, &inputs)?;
        match on_device(&device, Method::Cudnn, case, &inputs, DType::F32) {
            Ok(got) => {
                assert_equal(&got.ys, &want.ys, DType::F32)?;
                assert_equal(&got.xs_gradient, &want.xs_gradient, DType::F32)?;
                assert_equal(&got.weight_gradient, &want.weight_gradient, DType::F32)?;
            }
            Err(error) => assert!(error.to_string().contains(" by cuDNN: "), "{error}"),
        }
    }
    let report = conv::report(device.as_cuda_device()?)?;
    let is_done = |line: &String| line.starts_with("forward") && line.contains("engine ");
    assert!(report.iter().any(is_done), "{report:#?}");
    Ok(())
}

#[test]
fn f32_by_im2col_is_that_of_the_cpu() -> Result<()> {
    check_all(Method::Im2col, DType::F32)
}

#[test]
fn f32_by_the_best_method_is_that_of_the_cpu() -> Result<()> {
    check_all(Method::Best, DType::F32)
}

#[test]
fn bf16_by_im2col_is_that_of_the_cpu_rounded() -> Result<()> {
    check_all(Method::Im2col, DType::BF16)
}

/// cuDNN need not have an engine for every number of channels; what it has none for has to be listed.
#[test]
fn bf16_by_the_best_method_is_that_of_the_cpu_rounded() -> Result<()> {
    check_all(Method::Best, DType::BF16)
}

#[test]
fn bf16_by_cudnn_has_engines_for_channels_in_eights() -> Result<()> {
    let device = device();
    let usual =
        |case: &Case| case[3].is_multiple_of(8) && case[4].is_multiple_of(8) && case[5] <= 3;
    for case in CASES.into_iter().filter(usual) {
        let inputs = inputs(case, DType::BF16)?;
        let want = on_cpu(case, &inputs)?;
        let got = on_device(&device, Method::Cudnn, case, &inputs, DType::BF16)?;
        assert_equal(&got.ys, &want.ys, DType::BF16)?;
        assert_equal(&got.xs_gradient, &want.xs_gradient, DType::BF16)?;
        assert_equal(&got.weight_gradient, &want.weight_gradient, DType::BF16)?;
    }
    let report = conv::report(device.as_cuda_device()?)?;
    assert!(report.iter().all(|line| line.contains("engine ")), "{report:#?}");
    Ok(())
}

/// More windows than fit the matrix at once: the gradient of the weight is then a sum of sums.
#[test]
fn im2col_in_several_steps_is_one_sum() -> Result<()> {
    let device = device();
    // 24 x 24 windows of 9 x 512 numbers are 10 MiB in f32 and 5 MiB in bf16.
    let case = [60, 24, 24, 512, 2, 3, 1, 1];
    for dtype in [DType::F32, DType::BF16] {
        let Inputs { xs, weight, gradient } = inputs(case, dtype)?;
        let there = |xs: &Tensor| xs.to_device(&device)?.to_dtype(dtype);
        let (xs, gradient) = (there(&xs)?, there(&gradient)?);
        let of = |first: usize, count: usize| -> Result<Tensor> {
            let weight = Var::from_tensor(&there(&weight)?)?;
            let ys = conv2d_by(Method::Im2col, &xs.narrow(0, first, count)?, &weight, 1, 1)?;
            let ys = (ys * gradient.narrow(0, first, count)?)?;
            let gradients = ys.to_dtype(DType::F32)?.sum_all()?.backward()?;
            gradients
                .get(&weight)
                .expect("a variable")
                .to_dtype(DType::F64)?
                .to_device(&Device::Cpu)
        };
        // Each part fits the matrix.
        let parts = (of(0, 20)? + of(20, 20)?)?.add(&of(40, 20)?)?;
        let got = of(0, 60)?.to_dtype(DType::F32)?;
        let got = got.flatten_all()?.to_vec1::<f32>()?;
        // Sums of 34560 products in f32, one after the other at worst; in bf16 each part was rounded.
        let tolerance = if dtype == DType::BF16 { 3e-2 } else { 1e-4 };
        assert_close(&got, &parts.flatten_all()?.to_vec1::<f64>()?, dtype, tolerance);
    }
    Ok(())
}

#[test]
fn views_that_start_anywhere_are_taken_as_they_are() -> Result<()> {
    let device = device();
    let case = [2, 6, 6, 8, 8, 3, 1, 1];
    let Inputs { xs, weight, .. } = inputs(case, DType::F32)?;
    let (xs, weight) = (xs.to_device(&device)?, weight.to_device(&device)?);
    let want = conv2d(&xs, &weight, 1, 1)?;
    // The second image only; the channels of both as the second half of twice as many; one number
    // behind the start of the memory.
    let second = conv2d(&xs.narrow(0, 1, 1)?, &weight, 1, 1)?;
    let half = Tensor::cat(&[&weight, &weight.zeros_like()?], 3)?;
    let half = conv2d(&xs, &half.narrow(3, 0, 8)?, 1, 1)?;
    let flat = Tensor::cat(&[&xs.flatten_all()?.narrow(0, 0, 1)?, &xs.flatten_all()?], 0)?;
    let shifted = flat.narrow(0, 1, xs.elem_count())?.reshape(xs.shape())?;
    let shifted = conv2d(&shifted, &weight, 1, 1)?;
    let as_f64 = |xs: &Tensor| xs.to_dtype(DType::F64);
    assert_equal(&second, &as_f64(&want.narrow(0, 1, 1)?)?, DType::F32)?;
    assert_equal(&half, &as_f64(&want)?, DType::F32)?;
    assert_equal(&shifted, &as_f64(&want)?, DType::F32)
}

#[test]
fn a_plan_is_made_once_and_the_workspace_kept() -> Result<()> {
    let device = device();
    let cuda = device.as_cuda_device()?;
    assert!(matches!(conv::backend(cuda)?, Backend::Cudnn(_)), "{}", conv::backend(cuda)?);
    let case = [2, 8, 8, 32, 32, 3, 1, 1];
    let inputs = inputs(case, DType::F32)?;
    on_device(&device, Method::Best, case, &inputs, DType::F32)?;
    let first = conv::counts(cuda)?;
    assert_eq!((first.plans, first.reused), (3, 0));
    on_device(&device, Method::Best, case, &inputs, DType::F32)?;
    let second = conv::counts(cuda)?;
    assert_eq!((second.plans, second.reused), (3, 3));
    assert_eq!(second.allocations, first.allocations);
    assert_eq!(conv::report(cuda)?.len(), 3);
    Ok(())
}

#[test]
fn a_constant_has_no_gradient_and_costs_none() -> Result<()> {
    let device = device();
    let case = [2, 8, 8, 32, 32, 3, 1, 1];
    let Inputs { xs, weight, .. } = inputs(case, DType::F32)?;
    let weight = Var::from_tensor(&weight.to_device(&device)?)?;
    let xs = xs.to_device(&device)?;
    let gradients = conv2d(&xs, &weight, 1, 1)?.sum_all()?.backward()?;
    assert!(gradients.get(&weight).is_some());
    assert!(gradients.get(&xs).is_none());
    // Forward, and backward to the filter.
    assert_eq!(conv::counts(device.as_cuda_device()?)?.plans, 2);
    Ok(())
}

#[test]
fn a_graph_repeats_a_convolution_on_new_numbers() -> Result<()> {
    let device = device();
    let case = [2, 8, 8, 32, 48, 3, 1, 1];
    for method in [Method::Best, Method::Im2col] {
        let Inputs { xs, weight, .. } = inputs(case, DType::F32)?;
        let weight = weight.to_device(&device)?;
        let xs = Var::from_tensor(&xs.to_device(&device)?)?;
        let out = Var::zeros((2, 8, 8, 48), DType::F32, &device)?;
        let mut replay = Replay::record(&device, || {
            let ys = conv2d_by(method, &xs.as_detached_tensor(), &weight, 1, 1)?;
            out.set(&ys)
        })?;
        let other = xs.as_tensor().affine(-0.5, 1.0)?;
        let want = conv2d_by(method, &other, &weight, 1, 1)?;
        xs.set(&other)?;
        out.zero_set()?;
        replay.launch()?;
        assert_equal(out.as_tensor(), &want.to_dtype(DType::F64)?, DType::F32)?;
    }
    Ok(())
}

#[test]
fn a_wrong_shape_is_refused_in_one_line() -> Result<()> {
    let device = device();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device);
    let says = |xs: &[usize], weight: &[usize], stride| -> Result<String> {
        let refused = conv2d(&zeros(xs)?, &zeros(weight)?, stride, 0);
        Ok(refused.expect_err("the shapes do not fit").to_string())
    };
    assert!(
        says(&[1, 4, 4, 8], &[8, 3, 3, 4], 1)?
            .contains("expected a weight [c_out, kernel, kernel, 8]")
    );
    assert!(says(&[1, 4, 4, 8], &[8, 3, 2, 8], 1)?.contains("expected a weight"));
    assert!(
        says(&[1, 2, 4, 8], &[8, 3, 3, 8], 1)?.contains("expected a kernel inside of the image")
    );
    assert!(says(&[1, 4, 4, 8], &[8, 3, 3, 8], 0)?.contains("at least 1"));
    let mixed = conv2d(&zeros(&[1, 4, 4, 8])?, &zeros(&[8, 3, 3, 8])?.to_dtype(DType::BF16)?, 1, 0);
    assert!(
        mixed.expect_err("two dtypes").to_string().contains("both tensors in f32 or both in bf16")
    );
    Ok(())
}
