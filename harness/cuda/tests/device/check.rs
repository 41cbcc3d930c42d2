//! An operation on the device against a formula in `f64` on the CPU: values, gradients, and that a
//! second run gives the same bits.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::{device, difference, numbers};

/// An argument: its sizes and the dtype that it has on the device.
pub(crate) type Arg<'a> = (&'a [usize], DType);

/// What is allowed, in standard deviations of what is compared.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) value: f64,
    pub(crate) gradient: f64,
}

impl Tolerance {
    /// For operations that only move numbers or add up a few.
    pub(crate) const EXACT: Self = Self { value: 1e-6, gradient: 1e-5 };
}

/// Compares `ours` with `formula`, and the gradients of all arguments.
pub(crate) fn check(
    what: &str,
    tolerance: Tolerance,
    args: &[Arg<'_>],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    formula: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let device = device();
    let mut on_device = Vec::new();
    let mut on_cpu = Vec::new();
    for (nth, (dims, dtype)) in args.iter().enumerate() {
        let (there, here) = number_pair(nth as u64 + 1, dims, *dtype, &device);
        on_device.push(Var::from_tensor(&there).unwrap());
        on_cpu.push(Var::from_tensor(&here).unwrap());
    }
    let (got, got_grads) = run(&on_device, &device, &ours);
    let (want, want_grads) = run(&on_cpu, &device, &formula);
    assert_eq!(got.dims(), want.dims(), "{what}");
    compare(what, &got, &want, tolerance.value);
    for (nth, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
        compare(&format!("{what}: gradient {nth}"), got, want, tolerance.gradient);
    }
    let (again, again_grads) = run(&on_device, &device, &ours);
    assert_eq!(bits(&got), bits(&again), "{what}: a second run differs");
    for (nth, (first, second)) in got_grads.iter().zip(&again_grads).enumerate() {
        assert_eq!(bits(first), bits(second), "{what}: gradient {nth} of a second run differs");
    }
}

/// The same numbers on the device in `dtype` and on the CPU in `f64`.
pub(crate) fn number_pair(
    seed: u64,
    dims: &[usize],
    dtype: DType,
    device: &Device,
) -> (Tensor, Tensor) {
    let count = dims.iter().product();
    let rounded = Tensor::from_vec(numbers(seed, count), dims, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap();
    (rounded.to_device(device).unwrap(), rounded.to_dtype(DType::F64).unwrap())
}

/// The value, and the gradients of its product with numbers that are the same on both sides.
fn run(
    vars: &[Var],
    device: &Device,
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let args: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = operation(&args).unwrap();
    // Rounded to bf16 on both sides, so that both take the same.
    let (there, here) = number_pair(99, out.dims(), DType::BF16, device);
    let weights = if out.device().is_cpu() { here } else { there.to_dtype(out.dtype()).unwrap() };
    let grads = (&out * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars
        .iter()
        .enumerate()
        .map(|(nth, var)| grads.get(var).unwrap_or_else(|| panic!("no gradient {nth}")).clone());
    (out.detach(), grads.collect())
}

fn compare(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let want: Vec<f64> = want.flatten_all().unwrap().to_vec1().unwrap();
    let difference = difference(&values(got), &want, got.dtype(), tolerance);
    assert!(difference.is_none(), "{what}: {}", difference.unwrap_or_default());
}

/// All numbers of a tensor, in `f32` on the CPU.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}
