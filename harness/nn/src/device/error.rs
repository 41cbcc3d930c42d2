//! Why a device cannot be had, and what to do about it; and how full memory is recognised.

use std::error::Error;

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
    #[error("use device `{name}`{}", what_is_wrong(.source))]
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
    pub(super) fn reason(&self) -> String {
        let text = match self {
            Self::Unusable { source, .. } => {
                format!("{self}: {}", source.to_string().lines().next().unwrap_or_default())
            }
            other => other.to_string(),
        };
        text.split_once("`: ").map_or(text.clone(), |(_, reason)| reason.to_owned())
    }
}

/// What a driver's status means, where it is known; before the status itself.
fn what_is_wrong(error: &candle_core::Error) -> &'static str {
    if is_out_of_memory(error) {
        ": its memory is full"
    } else if lacks_a_library(error) {
        ": a library of CUDA does not start"
    } else {
        ""
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        check(unusable(full), &format!("its memory is full: {full}"), "nvidia-smi");
        let lacking = "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)";
        let reason = format!("a library of CUDA does not start: {lacking}");
        check(unusable(lacking), &reason, "LD_LIBRARY_PATH");
        check(unusable("no\nmore"), "no", "nvidia-smi");
    }

    #[test]
    fn a_full_memory_is_known_by_its_name_through_all_wrappers() {
        let inner = candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"…\")").bt();
        let outer = DeviceError::Unusable { name: "cuda".to_owned(), source: inner };
        assert!(is_out_of_memory(&outer));
        assert!(!is_out_of_memory(&DeviceError::NoDriver("cuda".to_owned())));
    }
}
