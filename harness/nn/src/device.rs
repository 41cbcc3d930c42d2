//! Where networks run.

use candle_core::Device;

/// What choosing a device fails with.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device expected `cpu`, `cuda` or `cuda:N`, got `{0}`")]
    Unknown(String),
    #[error("use device `{0}`: this build has no CUDA")]
    NotBuilt(String),
    #[error("use device `{0}`: no CUDA driver on this machine")]
    NoDriver(String),
    #[error("use device `{name}`")]
    Unusable {
        name: String,
        #[source]
        source: candle_core::Error,
    },
}

impl DeviceError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unknown(_) => None,
            Self::NotBuilt(_) => {
                Some("build with `cargo xtask bench --features cuda …`, or leave `--device` out")
            }
            Self::NoDriver(_) => {
                Some("install NVIDIA's driver (`libcuda.so.1`), or leave `--device` out")
            }
            Self::Unusable { .. } => Some("`nvidia-smi` lists the devices of this machine"),
        }
    }
}

/// The device of a name: `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// See [`DeviceError`]. A device that was asked for and cannot be had is never replaced by another.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
        None => None,
    };
    let Some(ordinal) = ordinal else {
        return Err(DeviceError::Unknown(name.to_owned()));
    };
    if !cfg!(feature = "cuda") {
        return Err(DeviceError::NotBuilt(name.to_owned()));
    }
    if !has_cuda_driver() {
        return Err(DeviceError::NoDriver(name.to_owned()));
    }
    Device::new_cuda(ordinal)
        .map_err(|source| DeviceError::Unusable { name: name.to_owned(), source })
}

/// Whether the driver's library can be found where the loader looks.
fn has_cuda_driver() -> bool {
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/nvidia/lib64"];
    std::env::split_paths(&listed)
        .chain(usual.iter().map(std::path::PathBuf::from))
        .any(|folder| folder.join("libcuda.so.1").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_had_is_an_error() {
        assert!(device("cpu").is_ok());
        assert!(matches!(device("tpu"), Err(DeviceError::Unknown(_))));
        assert!(matches!(device("cuda:x"), Err(DeviceError::Unknown(_))));
        #[cfg(not(feature = "cuda"))]
        assert!(matches!(device("cuda:0"), Err(DeviceError::NotBuilt(_))));
    }
}
