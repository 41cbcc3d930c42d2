//! Numbers from a name: streams that any language reproduces without a weight file.
//!
//! A stream's state starts at the FNV-1a hash (64 bit) of its name and goes on by SplitMix64;
//! its uniform numbers are the upper 53 bits. Tests on fixed weights and inputs use it, and so
//! can anybody who compares another implementation with this one.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

/// The stream of uniform numbers in `[0, 1)` that belongs to a name.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    pub fn new(name: &str) -> Self {
        let hash = name.bytes().fold(14_695_981_039_346_656_037_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
        });
        Self(hash)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Standard normal, from two uniform numbers (Box-Muller, cosine branch).
    pub fn next_normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next_f64()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.next_f64()).cos()
    }
}

/// `len` uniform numbers in `[low, high)` from the stream of `name`.
pub fn uniform(name: &str, len: usize, low: f64, high: f64) -> Vec<f32> {
    let mut stream = Stream::new(name);
    (0..len).map(|_| (low + (high - low) * stream.next_f64()) as f32).collect()
}

/// `len` normal numbers from the streams `name.u1` and `name.u2` (Box-Muller, cosine branch).
pub fn normal(name: &str, len: usize) -> Vec<f32> {
    let mut u1 = Stream::new(&format!("{name}.u1"));
    let mut u2 = Stream::new(&format!("{name}.u2"));
    (0..len)
        .map(|_| {
            let radius = (-2.0 * (1.0 - u1.next_f64()).ln()).sqrt();
            (radius * (2.0 * std::f64::consts::PI * u2.next_f64()).cos()) as f32
        })
        .collect()
}

/// The weight of a state-dict key: running means near 0, running variances in `[0.5, 1.5)`,
/// scales near 1, biases near 0, and matrices with variance 1 / fan-in.
pub fn weight(key: &str, shape: &[usize]) -> Vec<f32> {
    let len = shape.iter().product();
    let last = key.rsplit('.').next().unwrap_or(key);
    let mut stream = Stream::new(key);
    let mut draw = |f: &dyn Fn(f64) -> f64| -> Vec<f32> {
        (0..len).map(|_| f(stream.next_f64()) as f32).collect()
    };
    match (last, shape.len()) {
        ("running_mean", _) => draw(&|u| 0.1 * (2.0 * u - 1.0)),
        ("running_var", _) => draw(&|u| 0.5 + u),
        ("num_batches_tracked", _) => vec![0.0; len],
        ("weight", 1) => draw(&|u| 1.0 + 0.1 * (2.0 * u - 1.0)),
        (_, 0 | 1) => draw(&|u| 0.05 * (2.0 * u - 1.0)),
        _ => {
            let fan_in = shape[1..].iter().product::<usize>() as f64;
            draw(&|u| (2.0 * u - 1.0) * (3.0 / fan_in).sqrt())
        }
    }
}

/// A variable builder whose every tensor is [`weight`] of its key, except `replaced`.
pub fn var_builder(replaced: HashMap<String, Tensor>) -> VarBuilder<'static> {
    let backend: Box<dyn SimpleBackend> = Box::new(FormulaBackend { replaced });
    VarBuilder::from_backend(backend, DType::F32, Device::Cpu)
}

struct FormulaBackend {
    replaced: HashMap<String, Tensor>,
}

impl SimpleBackend for FormulaBackend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        match self.replaced.get(name) {
            Some(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            None => Tensor::from_vec(weight(name, shape.dims()), shape, device)?.to_dtype(dtype),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.replaced.get(name) {
            Some(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            None => candle_core::bail!("formula weight `{name}` needs a shape"),
        }
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_documented_one() {
        assert_eq!(Stream::new("conv1.weight").0, 7_611_815_837_976_482_388);
        let u: Vec<f32> = uniform("conv1.weight", 3, 0.0, 1.0);
        assert_eq!(u, [0.545_075, 0.745_161_8, 0.022_921_737]);
        let u: Vec<f32> = uniform("input", 3, 0.0, 1.0);
        assert_eq!(u, [0.097_818_345, 0.652_360_44, 0.203_624_28]);
    }
}
