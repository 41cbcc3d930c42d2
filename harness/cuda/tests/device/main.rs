//! Every operation on a device against the same formula on the CPU.
//!
//! `cargo test -p oodbench-cuda --features device`; `OODBENCH_DEVICE` names the device, `cuda:0` where it is not
//! set. Where there is none every test fails.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod arrange;
mod attention;
mod augment;
mod check;
mod classifier;
mod conv;
mod dropout;
mod elementwise;
mod gemm;
mod group_norm;
mod joined;
mod layout;
mod optim;
mod recorded;

use candle_core::{DType, Device};

/// The device under test: another one for each test, as each runs on a thread of its own, so that none
/// records what another one does.
fn device() -> Device {
    thread_local!(static DEVICE: Device = open());
    DEVICE.with(Device::clone)
}

fn open() -> Device {
    let name = std::env::var("OODBENCH_DEVICE").unwrap_or_else(|_| "cuda:0".to_owned());
    let ordinal = name.strip_prefix("cuda:").unwrap_or(&name).parse().expect("a device `cuda:N`");
    oodbench_cuda::open(ordinal).unwrap_or_else(|error| panic!("open `{name}`: {error}"))
}

/// `count` numbers of a standard deviation near 1, the same each time: sums of four uniform ones of a
/// SplitMix64 sequence.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0xA076_1D64_78BD_642F);
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| 1.7 * (uniform() + uniform() + uniform() + uniform() - 2.0)).collect()
}

/// Each number within `tolerance` standard deviations of what it should be and, in `bf16`, within its
/// last bit.
fn assert_close(got: &[f32], want: &[f64], dtype: DType, tolerance: f64) {
    let difference = difference(got, want, dtype, tolerance);
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
}

/// The first number that is not close in that sense.
fn difference(got: &[f32], want: &[f64], dtype: DType, tolerance: f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("expected {} numbers, got {}", want.len(), got.len()));
    }
    let mean = want.iter().sum::<f64>() / want.len() as f64;
    let variance = want.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / want.len() as f64;
    let std = if want.len() > 1 { variance.sqrt() } else { mean.abs() };
    let last_bit = if dtype == DType::BF16 { 2_f64.powi(-8) } else { 0.0 };
    got.iter().zip(want).enumerate().find_map(|(i, (&got, &want))| {
        let allowed = tolerance * std + last_bit * want.abs();
        let error = (f64::from(got) - want).abs();
        // A NaN is not within anything.
        let close = error <= allowed;
        (!close).then(|| format!("number {i}: expected {want} within {allowed:e}, got {got}"))
    })
}
