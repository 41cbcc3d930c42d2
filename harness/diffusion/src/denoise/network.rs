//! The diffusion network that images are denoised by: read from a file, or made by formula for
//! examples.

use std::path::{Path, PathBuf};

use oodbench_nn::checkpoint::{CheckpointError, StateDict};
use oodbench_nn::formula;
use thiserror::Error;

use crate::checkpoint::{self, Given, LoadError, LoadedModel, On};
use crate::net::{DdimConfig, NetConfig};
use crate::schedule::{Schedule, ScheduleConfig};

/// Why there is no network for some images.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("images expected square, got {height}x{width}")]
    NotSquare { height: usize, width: usize },
    #[error(
        "diffusion network `{}` expected images of {expected}x{expected}, or at least a side \
         that is a multiple of {multiple}, got {got}x{got}\n\n\
         hint: give `weights` that were trained on this benchmark's images",
        path.display()
    )]
    Size { path: PathBuf, expected: usize, multiple: usize, got: usize },
    #[error(
        "diffusion network `{}` expected a classifier of {expected} classes, got {got}",
        path.display()
    )]
    Classes { path: PathBuf, expected: usize, got: usize },
    #[error(transparent)]
    File(#[from] CheckpointError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("build the untrained network")]
    Build(#[source] Box<candle_core::Error>),
}

/// Reads the network for images of a size and a classifier of `n_classes`. The file `config` says
/// what the weights do not say of themselves.
///
/// # Errors
/// A file that holds no such network, or one for other images or classes.
pub fn load<'a>(
    weights: &Path,
    config: Option<&Path>,
    (height, width): (usize, usize),
    n_classes: usize,
    on: impl Into<On<'a>>,
) -> Result<LoadedModel, NetworkError> {
    check_square((height, width))?;
    let config = config.map(Given::read).transpose()?;
    let file = StateDict::open(weights)?;
    // The reference's files do not name their image size; it is then that of the images.
    let given = Given { image_size: Some(height), ..config.unwrap_or_default() };
    let loaded = checkpoint::load(&file, &given, on)?;
    let path = || weights.to_owned();
    let (expected, multiple) = (loaded.net.image_size(), loaded.net.side_multiple());
    if !height.is_multiple_of(multiple) {
        return Err(NetworkError::Size { path: path(), expected, multiple, got: height });
    }
    let expected = loaded.net.n_classes();
    if expected > 0 && n_classes != expected {
        return Err(NetworkError::Classes { path: path(), expected, got: n_classes });
    }
    Ok(loaded)
}

/// # Errors
/// Images that are not square.
pub fn check_square((height, width): (usize, usize)) -> Result<(), NetworkError> {
    match height == width {
        true => Ok(()),
        false => Err(NetworkError::NotSquare { height, width }),
    }
}

/// A small conditional U-Net of 32 channels at one resolution, on the linear schedule, whose
/// every weight follows from its name ([`formula::weight`]): for examples and tests, where a
/// file would be in the way. It has learned nothing.
///
/// # Errors
/// What building the network says.
pub fn untrained<'a>(
    image_size: usize,
    n_classes: usize,
    on: impl Into<On<'a>>,
) -> Result<LoadedModel, NetworkError> {
    let (net, on) = (NetConfig::Ddim(small(image_size, n_classes)), on.into());
    let vb = formula::var_builder(Default::default()).set_device(on.device.clone());
    let built = on.build(&net, vb).map_err(|source| NetworkError::Build(Box::new(source)));
    let ((model, refused), schedule) = (built?, Schedule::new(&ScheduleConfig::default()));
    Ok(LoadedModel { model, net, schedule, refused })
}

fn small(image_size: usize, num_classes: usize) -> DdimConfig {
    DdimConfig {
        kind: "simple".to_owned(),
        image_size,
        num_classes,
        in_channels: 3,
        out_ch: 3,
        ch: 32,
        ch_mult: vec![1],
        num_res_blocks: 1,
        attn_resolutions: Vec::new(),
        dropout: 0.0,
        var_type: "fixedlarge".to_owned(),
        resamp_with_conv: true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;

    use super::*;

    fn config() -> NetConfig {
        NetConfig::Ddim(DdimConfig { ch_mult: vec![1, 1], ..small(8, 2) })
    }

    /// A file of the small network, for images of 8x8 and two classes.
    fn file(folder: &Path) -> PathBuf {
        let variables = oodbench_nn::variables::Variables::new(1, &Device::Cpu);
        config().build(variables.builder()).unwrap();
        let path = folder.join("diffusion.safetensors");
        let weights: BTreeMap<_, _> = variables.snapshot().unwrap();
        checkpoint::save(&path, &weights, &config(), &ScheduleConfig::default()).unwrap();
        path
    }

    fn refused(weights: &Path, size: (usize, usize), n_classes: usize) -> NetworkError {
        load(weights, None, size, n_classes, &Device::Cpu).err().unwrap()
    }

    #[test]
    fn other_images_or_classes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let weights = file(folder.path());
        assert!(load(&weights, None, (8, 8), 2, &Device::Cpu).is_ok());
        assert!(load(&weights, None, (16, 16), 2, &Device::Cpu).is_ok());
        let text = refused(&weights, (9, 9), 2).to_string();
        assert!(text.contains("expected images of 8x8"), "{text}");
        assert!(text.contains("a multiple of 2, got 9x9\n\nhint: "), "{text}");
        assert!(text.contains("diffusion.safetensors"), "{text}");
        let text = refused(&weights, (8, 8), 3).to_string();
        assert!(text.ends_with("expected a classifier of 2 classes, got 3"), "{text}");
        let text = refused(&weights, (8, 9), 2).to_string();
        assert_eq!(text, "images expected square, got 8x9");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let text = refused(Path::new("missing.ckpt"), (8, 8), 2).to_string();
        assert!(text.contains("`missing.ckpt`"), "{text}");
    }

    #[test]
    fn a_configuration_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        std::fs::write(&config, "[Schedule]\ntype = \"cosine\"\n").unwrap();
        let weights = file(folder.path());
        let loaded = load(&weights, Some(&config), (8, 8), 2, &Device::Cpu).unwrap();
        assert!(loaded.schedule.alpha_bar()[999] < 1e-8);
    }
}
