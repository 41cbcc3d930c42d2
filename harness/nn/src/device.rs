//! Where networks run: what a name stands for, whether it can be had, and what is known of it.
//!
//! A process has one candle device for each GPU, with one stream: tensors of two devices do not go
//! together, and a second one would compile every kernel again.

use std::error::Error;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::precision::{Precision, PrecisionError};

/// The name that stands for a GPU if one answers, and for the CPU otherwise.
pub const AUTO: &str = "auto";

/// What choosing a device fails with.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device expected `auto`, `cpu`, `cuda` or `cuda:N`, got `{0}`")]
    Unknown(String),
    #[error("use device `{0}`: this build has no CUDA")]
    NotBuilt(String),
    #[error("use device `{0}`: no CUDA driver on this machine")]
    NoDriver(String),
    #[error("use device `{name}`: the CUDA driver does not start: {said}")]
    Driver { name: String, said: String },
    #[error("use device `{name}`: the driver expected to know CUDA {expected}, got {got}")]
    OldDriver { name: String, expected: String, got: String },
    #[error("use device `{0}`: the driver shows no GPU")]
    NoDevice(String),
    #[error("use device `{name}`: ordinal expected below {count}, the number of GPUs")]
    Ordinal { name: String, count: usize },
    #[error("use device `{name}`: kernels for {built_for} expected such a GPU, got {gpu}")]
    OtherGpu { name: String, built_for: String, gpu: String },
    #[error("use device `{name}`")]
    Unusable {
        name: String,
        #[source]
        source: candle_core::Error,
    },
}

/// On every hint: what does without a GPU.
const OR_CPU: &str = "or run on the CPU with `--device cpu`";

impl DeviceError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let remedy = match self {
            Self::Unknown(_) => return None,
            Self::NotBuilt(_) => "build with `cargo xtask bench --features cuda …`".to_owned(),
            Self::NoDriver(_) => "install NVIDIA's driver (`libcuda.so.1`)".to_owned(),
            Self::Driver { .. } => "`nvidia-smi` shows whether the driver is sound".to_owned(),
            Self::OldDriver { expected, .. } => {
                format!("install a driver for CUDA {expected}, build with an older toolkit")
            }
            Self::NoDevice(_) => {
                "`nvidia-smi` lists GPUs, and `CUDA_VISIBLE_DEVICES` hides them".to_owned()
            }
            Self::Ordinal { count: 1, .. } => "`cuda:0` is the only one".to_owned(),
            Self::Ordinal { count, .. } => format!("the last one is `cuda:{}`", count - 1),
            Self::OtherGpu { .. } => {
                "build with `CUDA_COMPUTE_CAP` set to this GPU's capability".to_owned()
            }
            Self::Unusable { source, .. } if is_out_of_memory(source) => {
                "another program has taken the GPU's memory: `nvidia-smi` shows which".to_owned()
            }
            Self::Unusable { source, .. } if lacks_a_library(source) => {
                "put the folder of CUDA's libraries (`libcublas`, `libcurand`) on LD_LIBRARY_PATH"
                    .to_owned()
            }
            Self::Unusable { .. } => "`nvidia-smi` shows how the GPU is".to_owned(),
        };
        Some(format!("{remedy}, {OR_CPU}"))
    }

    /// Why not, in a few words.
    fn reason(&self) -> String {
        let text = match self {
            Self::Unusable { source, .. } => first_line(source),
            other => other.to_string(),
        };
        text.split_once("`: ").map_or(text.clone(), |(_, reason)| reason.to_owned())
    }
}

fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Whether a device cannot be opened because a library of CUDA is not there: the stand-ins that a
/// build can have in their place answer with these.
fn lacks_a_library(error: &candle_core::Error) -> bool {
    let text = error.to_string();
    ["CUBLAS_STATUS_NOT_INITIALIZED", "CURAND_STATUS_NOT_INITIALIZED"]
        .iter()
        .any(|status| text.contains(status))
}

/// Whether an error, or one of its causes, says that the memory of a device is full. It is read off
/// the text: errors of the driver and its libraries come wrapped in many ways, and all of them name
/// their status.
pub fn is_out_of_memory(error: &(dyn Error + 'static)) -> bool {
    const NAMES: [&str; 4] = [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "DEVICE_ALLOCATION_FAILED",
    ];
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if NAMES.iter().any(|name| text.contains(name)) {
            return true;
        }
        next = error.source();
    }
    false
}

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
    fn every_refusal_is_one_line_with_a_remedy() {
        let name = || "cuda:3".to_owned();
        let unusable = |text: &str| DeviceError::Unusable {
            name: name(),
            source: candle_core::Error::msg(text),
        };
        let check = |error: DeviceError, reason: &str, part: &str| {
            let text = error.to_string();
            assert!(text.starts_with("use device `cuda:3`") && !text.contains('\n'), "{text}");
            assert_eq!(error.reason(), reason);
            let hint = error.hint().unwrap();
            assert!(hint.contains(part) && hint.ends_with("`--device cpu`"), "{hint}");
        };
        check(DeviceError::NotBuilt(name()), "this build has no CUDA", "--features cuda");
        check(DeviceError::NoDriver(name()), "no CUDA driver on this machine", "libcuda.so.1");
        check(DeviceError::NoDevice(name()), "the driver shows no GPU", "CUDA_VISIBLE_DEVICES");
        let ordinal = |count| DeviceError::Ordinal { name: name(), count };
        check(ordinal(2), "ordinal expected below 2, the number of GPUs", "`cuda:1`");
        check(ordinal(1), "ordinal expected below 1, the number of GPUs", "the only one");
        let (expected, got) = ("13.0".to_owned(), "12.4".to_owned());
        check(
            DeviceError::OldDriver { name: name(), expected, got },
            "the driver expected to know CUDA 13.0, got 12.4",
            "for CUDA 13.0",
        );
        let full = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        check(unusable(full), full, "nvidia-smi");
        let lacking = "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)";
        check(unusable(lacking), lacking, "LD_LIBRARY_PATH");
    }

    #[test]
    fn a_full_memory_is_known_by_its_name_through_all_wrappers() {
        let inner = candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"…\")").bt();
        let outer = DeviceError::Unusable { name: "cuda".to_owned(), source: inner };
        assert!(is_out_of_memory(&outer));
        assert!(!is_out_of_memory(&DeviceError::NoDriver("cuda".to_owned())));
    }

    #[test]
    fn the_cpu_has_one_precision() {
        assert!(set_precision(Precision::F32, &Device::Cpu).is_ok());
        assert!(set_precision(Precision::Tf32, &Device::Cpu).is_err());
    }
}
