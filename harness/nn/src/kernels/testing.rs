//! What the tests of the kernels share.

use candle_core::{Device, Tensor, Var};

use crate::formula::uniform;

/// Values in `[-1, 1)` from the stream of `name`.
pub(crate) fn random(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(uniform(name, shape.iter().product(), -1.0, 1.0), shape, &Device::Cpu).unwrap()
}

pub(crate) fn var(name: &str, shape: &[usize]) -> Var {
    Var::from_tensor(&random(name, shape)).unwrap()
}

/// Equal up to `tolerance` times the standard deviation of the expected values.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), expected.dims());
    let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let var = expected.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / expected.len() as f32;
    let scale = var.sqrt().max(1e-3);
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= tolerance * scale, "element {i}: expected {e}, got {g}");
    }
}
