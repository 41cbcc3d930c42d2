//! Tensors of four dimensions over strides.

use super::{BAD_PARAM, MISALIGNED, NOT_SUPPORTED};
use crate::api::{Outcome, refusal};
use crate::driver::memory;
use crate::half::{from_bf16, from_f16, to_bf16, to_f16};

/// The types of tensors, with the numbers that `cudnnDataType_t` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    F32 = 0,
    F64 = 1,
    F16 = 2,
    Bf16 = 9,
}

impl Number {
    pub(super) fn of(data_type: u32) -> Outcome<Self> {
        [Self::F32, Self::F64, Self::F16, Self::Bf16]
            .into_iter()
            .find(|number| *number as u32 == data_type)
            .ok_or_else(|| refusal(NOT_SUPPORTED, format!("tensors of data type {data_type}")))
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// `[N, C, H, W]`, or for filters `[K, C, R, S]`, wherever the numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) number: Number,
    pub(super) dims: [usize; 4],
    pub(super) strides: [usize; 4],
    /// What the address is a multiple of.
    pub(super) alignment: usize,
}

impl Tensor {
    /// # Errors
    /// Not four dimensions, or one that is not positive.
    pub(super) fn new(number: Number, dims: &[i64], strides: &[i64]) -> Outcome<Self> {
        let four = |name: &str, values: &[i64]| -> Outcome<[usize; 4]> {
            let positive = values.iter().all(|value| *value > 0);
            match <[i64; 4]>::try_from(values) {
                Ok(all) if positive => Ok(all.map(|value| value as usize)),
                Ok(_) => {
                    Err(refusal(BAD_PARAM, format!("{name} expected above 0, got {values:?}")))
                }
                Err(_) => {
                    Err(refusal(NOT_SUPPORTED, format!("{name} expected four, got {values:?}")))
                }
            }
        };
        let (dims, strides) = (four("dimensions", dims)?, four("strides", strides)?);
        Ok(Self { number, dims, strides, alignment: number.bytes() })
    }

    /// Bytes from the first number to the end of the last.
    pub(super) fn span(&self) -> usize {
        let last: usize =
            self.dims.iter().zip(self.strides).map(|(extent, stride)| (extent - 1) * stride).sum();
        (last + 1) * self.number.bytes()
    }

    /// # Errors
    /// The tensor is not wholly inside one allocation, or the address is not aligned.
    pub(super) fn check(&self, what: &str, start: usize) -> Outcome {
        if !start.is_multiple_of(self.alignment) {
            let line = format!("{what} at {start:#x}, declared aligned to {}", self.alignment);
            return Err(refusal(MISALIGNED, line));
        }
        memory().check(what, start, self.span())
    }

    /// One number of a tensor that was checked.
    #[inline]
    pub(super) fn read(&self, start: usize, at: usize) -> f32 {
        // SAFETY: `check` has found all numbers of the tensor inside one allocation, aligned.
        unsafe {
            match self.number {
                Number::F32 => (start as *const f32).add(at).read(),
                Number::F64 => (start as *const f64).add(at).read() as f32,
                Number::F16 => from_f16((start as *const u16).add(at).read()),
                Number::Bf16 => from_bf16((start as *const u16).add(at).read()),
            }
        }
    }

    /// Stores `alpha * value + beta * what was there`.
    #[inline]
    pub(super) fn blend(&self, start: usize, at: usize, value: f32, [alpha, beta]: [f32; 2]) {
        // With a beta of 0 what was there is not read: it may be NaN.
        let before = if beta == 0.0 { 0.0 } else { beta * self.read(start, at) };
        let value = alpha * value + before;
        // SAFETY: as in `read`.
        unsafe {
            match self.number {
                Number::F32 => (start as *mut f32).add(at).write(value),
                Number::F64 => (start as *mut f64).add(at).write(f64::from(value)),
                Number::F16 => (start as *mut u16).add(at).write(to_f16(value)),
                Number::Bf16 => (start as *mut u16).add(at).write(to_bf16(value)),
            }
        }
    }
}
