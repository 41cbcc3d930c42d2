//! The numbers that a network computes in.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// The numbers that a network computes in. Its weights, its input, its output and the statistics of
/// its normalisations are `f32` in each of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32` throughout.
    #[default]
    F32,
    /// `f32`, of which products keep 10 bits behind the point: NVIDIA's TF32. Whether products may do
    /// so is decided for a whole process; a network of this precision is one of [`Precision::F32`].
    Tf32,
    /// Activations, and the weights that they are multiplied with, in `bf16`; sums in `f32`.
    Bf16,
}

/// A precision that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrecisionError {
    #[error("precision expected `f32`, `tf32` or `bf16`, got `{0}`")]
    Unknown(String),
    #[error("precision on the CPU expected `f32`, got `{0}`")]
    OnCpu(Precision),
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// As it is written in options and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// The dtype of activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Whether a device has it.
    ///
    /// # Errors
    /// Anything but `f32` on the CPU.
    pub fn check(self, device: &Device) -> Result<(), PrecisionError> {
        if device.is_cpu() && self != Self::F32 {
            return Err(PrecisionError::OnCpu(self));
        }
        Ok(())
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(name: &str) -> Result<Self, PrecisionError> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| PrecisionError::Unknown(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            let json = serde_json::to_string(&precision).unwrap();
            assert_eq!(json, format!("\"{precision}\""));
            assert_eq!(serde_json::from_str::<Precision>(&json).unwrap(), precision);
        }
        let error = "fp16".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "precision expected `f32`, `tf32` or `bf16`, got `fp16`");
    }

    #[test]
    fn the_cpu_has_f32_alone() {
        assert_eq!(Precision::F32.check(&Device::Cpu), Ok(()));
        for precision in [Precision::Tf32, Precision::Bf16] {
            let error = precision.check(&Device::Cpu).unwrap_err().to_string();
            assert_eq!(error, format!("precision on the CPU expected `f32`, got `{precision}`"));
        }
    }
}
