//! Group normalisation: every way in which it is spread over blocks, with every kind of parameters.

use candle_core::{DType, Result, Tensor, Var};
use oodbench_cuda::ops;

use crate::check::{Tolerance, check, number_pair, values};
use crate::device;

const EPS: f64 = 1e-6;

/// What a case differs in.
#[derive(Clone, Copy, Debug)]
struct Case {
    dims: [usize; 4],
    groups: usize,
    dtype: DType,
    silu: bool,
    /// Whether weight, bias and shift differ between images; no shift where it is none.
    each: (bool, bool, Option<bool>),
}

/// `[channels]` or `[rows, channels]` to what an image can be added to.
fn spread(parameter: &Tensor) -> Result<Tensor> {
    let channels = parameter.dims()[parameter.rank() - 1];
    parameter.reshape(((), 1, 1, channels))
}

fn formula(args: &[Tensor], groups: usize, silu: bool) -> Result<Tensor> {
    let xs = match args.get(3) {
        Some(shift) => args[0].broadcast_add(&spread(shift)?)?,
        None => args[0].clone(),
    };
    let (batch, height, width, channels) = xs.dims4()?;
    let grouped = xs.reshape((batch, height * width, groups, channels / groups))?;
    let count = (height * width * channels / groups) as f64;
    let mean = (grouped.sum_keepdim((1, 3))? / count)?;
    let centred = grouped.broadcast_sub(&mean)?;
    let variance = (centred.sqr()?.sum_keepdim((1, 3))? / count)?;
    let normal = centred.broadcast_div(&(variance + EPS)?.sqrt()?)?;
    let normal = normal.reshape((batch, height, width, channels))?;
    let ys = normal.broadcast_mul(&spread(&args[1])?)?.broadcast_add(&spread(&args[2])?)?;
    if silu { ys.silu() } else { Ok(ys) }
}

fn run(case: Case) {
    let Case { dims, groups, dtype, silu, each } = case;
    let (batch, channels) = (dims[0], dims[3]);
    let sizes = |each: bool| if each { vec![batch, channels] } else { vec![channels] };
    let (weight, bias) = (sizes(each.0), sizes(each.1));
    let shift = each.2.map(|each| vec![if each { batch } else { 1 }, channels]);
    let mut args = vec![(&dims[..], dtype), (&weight[..], DType::F32), (&bias[..], DType::F32)];
    args.extend(shift.iter().map(|shift| (&shift[..], DType::F32)));
    let tolerance = match dtype {
        // Gradients of a shift are what is left of larger sums.
        DType::F32 => Tolerance { value: 1e-5, gradient: 3e-5 },
        // What goes through SiLU backwards is rounded once more, to 9 bits.
        _ => Tolerance { value: 1e-4, gradient: 2e-2 },
    };
    check(
        &format!("{case:?}"),
        tolerance,
        &args,
        |args| ops::group_norm(&args[0], &args[1], &args[2], args.get(3), groups, EPS, silu),
        |args| formula(args, groups, silu),
    );
}

#[test]
fn sizes_of_every_kind_agree() {
    // The comments say which kernel is meant, in f32 and bf16.
    let sizes = [
        ([3, 1, 1, 64], 8),     // One pixel.
        ([1, 3, 5, 32], 8),     // Small and odd.
        ([3, 4, 4, 96], 32),    // Groups of 3 channels; a pack has parts of several.
        ([2, 8, 8, 384], 32),   // Groups of 12 channels: packs begin within a group.
        ([1, 16, 16, 64], 32),  // Several packs for each thread.
        ([1, 32, 32, 128], 32), // As in the networks.
        ([1, 33, 31, 48], 4),   // An odd number of many pixels.
        ([1, 40, 40, 160], 8),  // Groups of 20 channels: 16 packs in registers, or read again.
        ([1, 32, 32, 160], 2),  // Groups of 80 channels: read again.
        ([2, 7, 5, 6], 3),      // No packs.
        ([1, 40, 33, 9], 3),    // No packs, many pixels.
        ([2, 3, 3, 520], 1),    // One group of many channels.
    ];
    for (dims, groups) in sizes {
        for dtype in [DType::F32, DType::BF16] {
            run(Case { dims, groups, dtype, silu: true, each: (false, false, Some(true)) });
        }
    }
}

#[test]
fn parameters_of_every_kind_agree() {
    let (dims, groups) = ([3, 4, 5, 64], 16);
    for dtype in [DType::F32, DType::BF16] {
        for silu in [false, true] {
            for weight in [false, true] {
                for bias in [false, true] {
                    for shift in [None, Some(false), Some(true)] {
                        run(Case { dims, groups, dtype, silu, each: (weight, bias, shift) });
                    }
                }
            }
        }
    }
}

#[test]
fn fixed_parameters_give_the_same_values_and_the_same_gradient_of_the_image() {
    let device = device();
    for shift in [false, true] {
        let (xs, _) = number_pair(1, &[2, 6, 6, 32], DType::BF16, &device);
        let parameter = |seed| number_pair(seed, &[2, 32], DType::F32, &device).0;
        let parts = [parameter(2), parameter(3), parameter(4)];
        let learned: Vec<Var> = parts.iter().map(|part| Var::from_tensor(part).unwrap()).collect();
        let xs = Var::from_tensor(&xs).unwrap();
        let norm = |w: &Tensor, b: &Tensor, s: &Tensor| {
            ops::group_norm(&xs, w, b, shift.then_some(s), 8, EPS, true).unwrap()
        };
        let fixed = norm(&parts[0], &parts[1], &parts[2]);
        let learned = norm(&learned[0], &learned[1], &learned[2]);
        assert_eq!(values(&fixed), values(&learned));
        let gradient = |ys: &Tensor| {
            let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            values(grads.get(&xs).unwrap())
        };
        assert_eq!(gradient(&fixed), gradient(&learned));
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_digits_of_the_variance() {
    let device = device();
    let (xs, _) = number_pair(1, &[2, 8, 8, 32], DType::F32, &device);
    let (weight, bias) = (Tensor::ones(32, DType::F32, &device).unwrap(), xs.zeros_like().unwrap());
    let bias = bias.flatten_all().unwrap().narrow(0, 0, 32).unwrap();
    // 2^12 has the last bits of numbers near 1 at 2^-11: the numbers are rounded first.
    let far = (&xs + 4096.0).unwrap();
    let near = (&far - 4096.0).unwrap();
    let norm =
        |xs: &Tensor| values(&ops::group_norm(xs, &weight, &bias, None, 8, EPS, false).unwrap());
    for (far, near) in norm(&far).into_iter().zip(norm(&near)) {
        assert!((far - near).abs() < 1e-3, "{far} {near}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).unwrap();
    let (xs, weight) = (zeros(&[2, 2, 2, 12]), zeros(&[12]));
    let refused = |result: Result<Tensor>, said: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    let norm = |weight: &Tensor, shift: Option<&Tensor>, groups| {
        ops::group_norm(&xs, weight, &zeros(&[12]), shift, groups, EPS, false)
    };
    refused(norm(&weight, None, 5), "groups that divide 12 channels, got 5");
    refused(norm(&zeros(&[3, 12]), None, 4), "a weight [12] or [2, 12]");
    refused(norm(&weight, Some(&zeros(&[2, 6])), 4), "a shift [12] or [2, 12]");
}
