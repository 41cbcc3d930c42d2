//! Dropout whose mask is a function of a key and of an element's place, and is never stored: the
//! backward pass computes it again.
//!
//! A generator that gives one number after the other would cost more than the addition that follows
//! it, and would have to run on one thread. Here the n-th pair of elements is decided by the n-th
//! number of a SplitMix64 sequence, which any thread can compute.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements that one task works on.
const CHUNK: usize = 1 << 14;

/// Zeroes each element with probability `p` and multiplies the others by `1 / (1 - p)`.
///
/// The same `key`, `p` and number of elements give the same mask, whatever the number of threads.
///
/// # Shapes
/// `xs`: any; `f32`
///
/// # Errors
/// A probability outside of `[0, 1)`, or what candle says.
pub fn dropout(xs: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        candle_core::bail!("dropout expected a probability from 0 to below 1, got {p}");
    }
    if p == 0.0 {
        return Ok(xs.clone());
    }
    let mask = Mask::new(p, key);
    if matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32 {
        return xs.contiguous()?.apply_op1(mask);
    }
    let mut values = vec![1f32; xs.elem_count()];
    mask.apply(&mut values);
    xs * Tensor::from_vec(values, xs.shape(), xs.device())?.to_dtype(xs.dtype())?
}

/// The key whose mask is that of `key` from the element `first` on, so that a part of a batch loses
/// what it loses in the whole. None for an odd `first`: elements are decided in pairs.
pub fn key_from(key: u64, first: usize) -> Option<u64> {
    // The n-th number of the sequence depends on the key and n through this sum alone.
    let skipped = (first as u64 / 2).wrapping_mul(GAMMA);
    first.is_multiple_of(2).then(|| key.wrapping_add(skipped))
}

/// The step of the SplitMix64 sequence.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Clone, Copy)]
struct Mask {
    key: u64,
    /// An element goes when its 32 random bits are below this.
    threshold: u32,
    scale: f32,
}

impl Mask {
    fn new(p: f64, key: u64) -> Self {
        let threshold = (p * 2f64.powi(32)).round().min(f64::from(u32::MAX)) as u32;
        Self { key, threshold, scale: (1.0 / (1.0 - p)) as f32 }
    }

    fn apply(&self, values: &mut [f32]) {
        let arch = pulp::Arch::new();
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(nth, chunk)| {
            // Compiled for the vectors that the machine has: a 64-bit product is slow without.
            arch.dispatch(|| self.apply_to((nth * CHUNK / 2) as u64, chunk));
        });
    }

    /// `first` is the number of the chunk's first pair.
    #[inline(always)]
    fn apply_to(&self, first: u64, chunk: &mut [f32]) {
        let factor = |bits: u32| if bits < self.threshold { 0.0 } else { self.scale };
        let (pairs, rest) = chunk.as_chunks_mut::<2>();
        let last = first + pairs.len() as u64;
        for (pair, number) in pairs.iter_mut().zip(first..) {
            let bits = splitmix(self.key, number);
            pair[0] *= factor(bits as u32);
            pair[1] *= factor((bits >> 32) as u32);
        }
        if let [value] = rest {
            *value *= factor(splitmix(self.key, last) as u32);
        }
    }
}

/// The n-th number of the SplitMix64 sequence that starts at `key`.
#[inline(always)]
fn splitmix(key: u64, n: u64) -> u64 {
    let mut z = key.wrapping_add(n.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("dropout expected contiguous f32, got {layout:?}");
        };
        let mut values = data[start..end].to_vec();
        self.apply(&mut values);
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        grad_res.contiguous()?.apply_op1_no_bwd(self).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_share_of_zeros_is_the_probability_and_the_mean_stays() {
        let ones = Tensor::ones(200_001, DType::F32, &Device::Cpu).unwrap();
        for p in [0.1, 0.3, 0.9] {
            let dropped = values(&dropout(&ones, p, 7).unwrap());
            let zeros = dropped.iter().filter(|v| **v == 0.0).count() as f64 / 200_001.0;
            assert!((zeros - p).abs() < 0.005, "{p}: {zeros}");
            let mean = dropped.iter().map(|v| f64::from(*v)).sum::<f64>() / 200_001.0;
            assert!((mean - 1.0).abs() < 0.03, "{p}: {mean}");
        }
    }

    #[test]
    fn neighbours_and_keys_are_independent() {
        let ones = Tensor::ones(100_000, DType::F32, &Device::Cpu).unwrap();
        let of = |key| values(&dropout(&ones, 0.5, key).unwrap());
        let agree = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
        };
        let first = of(1);
        for distance in 1..6 {
            let share = agree(&first, &first[distance..]);
            assert!((share - 0.5).abs() < 0.01, "{distance}: {share}");
        }
        assert!((agree(&first, &of(2)) - 0.5).abs() < 0.01);
        assert_eq!(first, of(1));
    }

    #[test]
    fn the_gradient_passes_where_the_value_passed() {
        let xs = Var::from_tensor(&Tensor::ones((3, 1001), DType::F32, &Device::Cpu).unwrap());
        let xs = xs.unwrap();
        let dropped = dropout(&xs, 0.25, 3).unwrap();
        let grads = dropped.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&xs).unwrap()), values(&dropped));
    }

    #[test]
    fn a_part_loses_what_it_loses_in_the_whole() {
        let ones = |n| Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
        let whole = values(&dropout(&ones(1001), 0.3, 9).unwrap());
        for first in [0, 2, 500, 1000] {
            let key = key_from(9, first).unwrap();
            let part = values(&dropout(&ones(1001 - first), 0.3, key).unwrap());
            assert_eq!(part, whole[first..]);
        }
        assert_eq!(key_from(9, 3), None);
    }

    #[test]
    fn no_probability_changes_nothing_and_one_is_refused() {
        let xs = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        assert_eq!(values(&dropout(&xs, 0.0, 1).unwrap()), [1.0, 2.0]);
        assert!(dropout(&xs, 1.0, 1).is_err());
    }
}
