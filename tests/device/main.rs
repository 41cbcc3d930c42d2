//! Networks on a GPU against the same networks on the CPU, in the same run.
//!
//! `OODBENCH_DEVICE` names the device, `cuda:0` where it is not set. A device that cannot be had is a
//! failure: whoever builds these tests wants them run. Weights and inputs are formulas; with the
//! feature `golden` too, the reference's own numbers are compared.
//!
//! In `f32` without TF32 a device must agree with the CPU within 1e-4, because both round each product
//! and sum to 24 bits and differ in the order of sums alone. TF32 keeps 11 bits of each factor and
//! `bf16` 8 bits of everything; what a network of some twenty layers makes of that is bounded here by
//! [`TF32`] and [`BF16`].

mod classifiers;
mod detectors;
#[cfg(feature = "golden")]
mod goldens;
mod graph;
mod heads;
mod inception;
mod memory;
mod running;
mod staging;
mod steps;
mod training;
mod unets;
mod variants;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use oodbench_nn::device::device;
use oodbench_nn::precision::Precision;

/// The worst number, in standard deviations of the expected ones.
const F32: f64 = 1e-4;
const TF32: f64 = 1e-2;
const BF16: f64 = 1e-1;
/// How much nearer the root mean square of all differences has to be than the worst.
const MEAN: f64 = 0.25;

/// The device, for one test at a time: whether products are rounded to TF32 is a switch of the process.
struct Gpu {
    device: Device,
    _alone: MutexGuard<'static, ()>,
}

impl Gpu {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = std::env::var("OODBENCH_DEVICE").unwrap_or_else(|_| "cuda:0".to_owned());
        let device = device(&name).unwrap_or_else(|error| panic!("{error}"));
        assert!(!device.is_cpu(), "OODBENCH_DEVICE expected a GPU, got `{name}`");
        oodbench_cuda::set_tf32(false);
        Self { device, _alone: alone }
    }

    /// Lets products be rounded as a precision says, until the next test.
    fn rounding(&self, precision: Precision) {
        oodbench_cuda::set_tf32(precision == Precision::Tf32);
    }

    fn tensor(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(&self.device).expect("a tensor on the device")
    }
}

/// How far numbers may be from those of the CPU.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => F32,
        Precision::Tf32 => TF32,
        Precision::Bf16 => BF16,
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F64));
    tensor.and_then(|t| t.flatten_all()?.to_vec1()).expect("numbers")
}

/// Equal up to `tolerance` times the standard deviation of the expected values, or times `least` where
/// that is more.
#[track_caller]
fn assert_near(what: &str, ours: &Tensor, expected: &Tensor, tolerance: f64, least: f64) {
    assert_eq!(ours.dims(), expected.dims(), "{what}: shape");
    let (ours, expected) = (values(ours), values(expected));
    let n = expected.len() as f64;
    let mean = expected.iter().sum::<f64>() / n;
    let std = (expected.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let scale = std.max(least);
    assert!(scale > 0.0, "{what}: all expected values are equal");
    assert!(ours.iter().all(|value| value.is_finite()), "{what}: a value is not finite");
    let off = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale);
    let (worst, squares) =
        off.fold((0f64, 0.0), |(worst, sum), off| (worst.max(off), sum + off * off));
    let mean = (squares / n).sqrt();
    println!("{what}: off by {worst:.1e} of {tolerance:.0e}, {mean:.1e} in the mean");
    assert!(worst <= tolerance, "{what}: off by {worst:.2e}, at most {tolerance:.0e} allowed");
    let allowed = MEAN * tolerance;
    assert!(
        mean <= allowed,
        "{what}: off by {mean:.2e} in the mean, at most {allowed:.1e} allowed"
    );
}

/// [`assert_near`] for numbers that are not all equal.
#[track_caller]
fn assert_close(what: &str, ours: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_near(what, ours, expected, tolerance, 0.0);
}
