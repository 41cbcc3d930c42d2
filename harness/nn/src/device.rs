//! Where networks run: what a name stands for, whether it can be had, and what is known of it.
//!
//! A process has one candle device for each GPU, with one stream: tensors of two devices do not go
//! together, and a second one would compile every kernel again.

mod error;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::precision::{Precision, PrecisionError};

pub use error::{DeviceError, is_out_of_memory};

/// The name that stands for a GPU if one answers, and for the CPU otherwise.
pub const AUTO: &str = "auto";

/// A GPU, as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// For example `NVIDIA H200`.
    pub name: String,
    /// `9.0` for Hopper.
    pub capability: String,
    /// The newest CUDA that the driver knows, for example `13.0`.
    pub driver: String,
    /// All of its memory.
    pub bytes: u64,
}

/// What a name has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// `cpu`, or `cuda:0` and so on.
    pub name: String,
    /// Absent for the CPU.
    pub gpu: Option<Gpu>,
    /// Why `auto` is no GPU.
    pub passed_over: Option<String>,
}

impl Chosen {
    /// One line: what was taken, and what it is or why.
    pub fn line(&self) -> String {
        let Self { name, gpu, passed_over } = self;
        match (gpu, passed_over) {
            (Some(Gpu { name: card, capability, driver, bytes }), _) => {
                let gib = *bytes as f64 / f64::from(1 << 30);
                format!(
                    "device {name}: {card}, {gib:.1} GiB, capability {capability}, CUDA {driver}"
                )
            }
            (None, Some(reason)) => format!("device {name}: {reason}"),
            (None, None) => format!("device {name}"),
        }
    }
}

/// Whether this build can run on a GPU at all.
pub const fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// What this build's networks run on: `CPU`, or `CPU and CUDA 13.0 (sm_90a)`.
pub fn built_for() -> String {
    #[cfg(feature = "cuda")]
    return format!(
        "CPU and CUDA {} ({})",
        oodbench_cuda::probe::BUILT_WITH,
        oodbench_cuda::probe::built_for()
    );
    #[cfg(not(feature = "cuda"))]
    "CPU".to_owned()
}

/// Finds out what a name stands for here: `cpu`, `cuda`, `cuda:N`, or `auto`, which is the first
/// GPU if it can be opened, and the CPU otherwise.
///
/// # Errors
/// See [`DeviceError`]. A device that was asked for by name is never replaced by another.
pub fn choose(name: &str) -> Result<Chosen, DeviceError> {
    let cpu = |passed_over| Chosen { name: "cpu".to_owned(), gpu: None, passed_over };
    if name == "cpu" {
        return Ok(cpu(None));
    }
    if name == AUTO {
        let chosen = probe("cuda:0", 0).and_then(|chosen| device(&chosen.name).map(|_| chosen));
        return Ok(chosen.unwrap_or_else(|error| cpu(Some(error.reason()))));
    }
    probe(name, ordinal(name)?)
}

/// The device of a name, as [`choose`] understands it; the same one for every call.
///
/// # Errors
/// See [`DeviceError`].
pub fn device(name: &str) -> Result<Device, DeviceError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        AUTO => device(&choose(AUTO)?.name),
        _ => open(name, ordinal(name)?),
    }
}

fn ordinal(name: &str) -> Result<usize, DeviceError> {
    let ordinal = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
        None => None,
    };
    ordinal.ok_or_else(|| DeviceError::Unknown(name.to_owned()))
}

#[cfg(not(feature = "cuda"))]
fn probe(name: &str, _: usize) -> Result<Chosen, DeviceError> {
    Err(DeviceError::NotBuilt(name.to_owned()))
}

#[cfg(not(feature = "cuda"))]
fn open(name: &str, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(name.to_owned()))
}

#[cfg(feature = "cuda")]
fn probe(name: &str, ordinal: usize) -> Result<Chosen, DeviceError> {
    use oodbench_cuda::probe::{Absent, BUILT_WITH, built_for, probe};
    let name = || name.to_owned();
    let dotted = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    match probe(ordinal) {
        Ok(gpu) => Ok(Chosen {
            name: format!("cuda:{ordinal}"),
            gpu: Some(Gpu {
                name: gpu.name,
                capability: dotted(gpu.capability),
                driver: gpu.driver.to_string(),
                bytes: gpu.bytes,
            }),
            passed_over: None,
        }),
        Err(Absent::Driver) => Err(DeviceError::NoDriver(name())),
        Err(Absent::Init(said)) => Err(DeviceError::Driver { name: name(), said }),
        Err(Absent::OldDriver(got)) => {
            let (expected, got) = (BUILT_WITH.to_string(), got.to_string());
            Err(DeviceError::OldDriver { name: name(), expected, got })
        }
        Err(Absent::Device) => Err(DeviceError::NoDevice(name())),
        Err(Absent::Ordinal(count)) => Err(DeviceError::Ordinal { name: name(), count }),
        Err(Absent::Capability { name: card, capability }) => Err(DeviceError::OtherGpu {
            name: name(),
            built_for: built_for().to_owned(),
            gpu: format!("{card} of capability {}", dotted(capability)),
        }),
    }
}

#[cfg(feature = "cuda")]
fn open(name: &str, ordinal: usize) -> Result<Device, DeviceError> {
    use std::sync::{Mutex, PoisonError};
    static OPEN: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    let mut devices = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = devices.iter().find(|(of, _)| *of == ordinal) {
        return Ok(device.clone());
    }
    probe(name, ordinal)?;
    let device = oodbench_cuda::open(ordinal)
        .map_err(|source| DeviceError::Unusable { name: name.to_owned(), source })?;
    devices.push((ordinal, device.clone()));
    Ok(device)
}

/// Gives what was freed on a device back to the system, for other processes and for what did not fit.
/// The CPU has nothing to give.
///
/// # Errors
/// A device that does not answer.
pub fn give_back(device: &Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return oodbench_cuda::memory::give_back(device);
    }
    let _ = device;
    Ok(())
}

/// Makes products in `f32` round as a precision says, for the whole process: TF32 is no property of
/// a tensor. A pack is a library of its own, and decides for itself.
///
/// # Errors
/// A precision that the device does not have.
pub fn set_precision(precision: Precision, device: &Device) -> Result<(), PrecisionError> {
    precision.check(device)?;
    #[cfg(feature = "cuda")]
    {
        let tf32 = precision == Precision::Tf32;
        oodbench_cuda::set_tf32(tf32);
        candle_core::cuda::set_gemm_reduced_precision_f32(tf32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_had_is_an_error() {
        assert!(device("cpu").is_ok());
        for name in ["tpu", "cuda:x", "cuda0", "cuda:-1", ""] {
            assert!(matches!(device(name), Err(DeviceError::Unknown(_))), "{name}");
            assert!(matches!(choose(name), Err(DeviceError::Unknown(_))), "{name}");
        }
        #[cfg(not(feature = "cuda"))]
        assert!(matches!(device("cuda:0"), Err(DeviceError::NotBuilt(_))));
    }

    #[test]
    fn auto_is_always_something_and_says_why() {
        let chosen = choose(AUTO).unwrap();
        assert!(device(AUTO).is_ok());
        match &chosen.gpu {
            Some(_) => assert_eq!(chosen.name, "cuda:0"),
            None => {
                assert_eq!(chosen.name, "cpu");
                let reason = chosen.passed_over.clone().unwrap();
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
                assert_eq!(chosen.line(), format!("device cpu: {reason}"));
            }
        }
        #[cfg(not(feature = "cuda"))]
        assert_eq!(chosen.line(), "device cpu: this build has no CUDA");
    }

    #[test]
    fn the_cpu_has_one_precision() {
        assert!(set_precision(Precision::F32, &Device::Cpu).is_ok());
        assert!(set_precision(Precision::Tf32, &Device::Cpu).is_err());
    }
}
