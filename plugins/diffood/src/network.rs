//! The diffusion network of a detector: read from a file, or made by formula for examples.

use std::path::{Path, PathBuf};

use candle_core::Device;
use oodbench_diffusion::checkpoint::{self, Given, LoadedModel};
use oodbench_diffusion::net::{DdimConfig, NetConfig};
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::formula;
use oodbench_sdk::prelude::*;

/// Where a network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file, and what it does not say of itself.
    File { weights: PathBuf, config: Option<PathBuf> },
    /// [`untrained`].
    Untrained,
}

/// Reads or makes the network for images of a size and a classifier of `n_classes`.
///
/// # Errors
/// A file that holds no such network, or one for other images or classes.
pub fn load(
    origin: &Origin,
    (height, width): (usize, usize),
    n_classes: usize,
    device: &Device,
) -> Result<LoadedModel> {
    if height != width {
        return Err(Error::input(format!("images expected square, got {height}x{width}")));
    }
    match origin {
        Origin::Untrained => untrained(height, n_classes, device),
        Origin::File { weights, config } => {
            let config = config.as_deref().map(Given::read).transpose().map_err(chain)?;
            let file = StateDict::open(weights).map_err(chain)?;
            // The reference's files do not name their image size; it is then that of the images.
            let given = Given { image_size: Some(height), ..config.unwrap_or_default() };
            let loaded = checkpoint::load(&file, &given, device).map_err(chain)?;
            fits(weights, &loaded.net, height, n_classes)?;
            Ok(loaded)
        }
    }
}

fn fits(path: &Path, net: &NetConfig, side: usize, n_classes: usize) -> Result<()> {
    let path = path.display();
    let (expected, multiple) = (net.image_size(), net.side_multiple());
    if !side.is_multiple_of(multiple) {
        return Err(Error::input(format!(
            "diffusion network `{path}` expected images of {expected}x{expected}, or at least a side \
             that is a multiple of {multiple}, got {side}x{side}\n\n\
             hint: give `weights` that were trained on this benchmark's images"
        )));
    }
    let expected = net.n_classes();
    if expected > 0 && n_classes != expected {
        return Err(Error::input(format!(
            "diffusion network `{path}` expected a classifier of {expected} classes, got {n_classes}"
        )));
    }
    Ok(())
}

/// A small conditional U-Net of 32 channels at one resolution, on the linear schedule, whose
/// every weight follows from its name ([`formula::weight`]): for examples and tests, where a
/// file would be in the way. It has learned nothing.
///
/// # Errors
/// What building the network says.
pub fn untrained(image_size: usize, n_classes: usize, device: &Device) -> Result<LoadedModel> {
    let net = NetConfig::Ddim(DdimConfig {
        kind: "simple".to_owned(),
        image_size,
        num_classes: n_classes,
        in_channels: 3,
        out_ch: 3,
        ch: 32,
        ch_mult: vec![1],
        num_res_blocks: 1,
        attn_resolutions: Vec::new(),
        dropout: 0.0,
        var_type: "fixedlarge".to_owned(),
        resamp_with_conv: true,
    });
    let vb = formula::var_builder(Default::default()).set_device(device.clone());
    let model = net.build(vb).map_err(chain)?;
    Ok(LoadedModel { model, net, schedule: Schedule::new(&ScheduleConfig::default()) })
}

/// An error with its causes in one line; a hint keeps its own line, because it comes last.
pub(crate) fn chain(err: impl std::error::Error) -> Error {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Error::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn small() -> NetConfig {
        let NetConfig::Ddim(mut config) = untrained(8, 2, &Device::Cpu).unwrap().net;
        config.ch_mult = vec![1, 1];
        NetConfig::Ddim(config)
    }

    /// A file of the small network, for images of 8x8 and two classes.
    fn file(folder: &Path) -> PathBuf {
        let variables = oodbench_nn::variables::Variables::new(1, &Device::Cpu);
        small().build(variables.builder()).unwrap();
        let path = folder.join("diffusion.safetensors");
        let weights: BTreeMap<_, _> = variables.snapshot().unwrap();
        checkpoint::save(&path, &weights, &small(), &ScheduleConfig::default()).unwrap();
        path
    }

    fn message(origin: &Origin, size: (usize, usize), n_classes: usize) -> String {
        load(origin, size, n_classes, &Device::Cpu).err().unwrap().to_string()
    }

    #[test]
    fn other_images_or_classes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::File { weights: file(folder.path()), config: None };
        assert!(load(&origin, (8, 8), 2, &Device::Cpu).is_ok());
        assert!(load(&origin, (16, 16), 2, &Device::Cpu).is_ok());
        let text = message(&origin, (9, 9), 2);
        assert!(text.contains("expected images of 8x8"), "{text}");
        assert!(text.contains("a multiple of 2, got 9x9\n\nhint: "), "{text}");
        assert!(text.contains("diffusion.safetensors"), "{text}");
        let text = message(&origin, (8, 8), 3);
        assert!(text.ends_with("expected a classifier of 2 classes, got 3"), "{text}");
        assert_eq!(message(&origin, (8, 9), 2), "images expected square, got 8x9");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_the_cause() {
        let origin = Origin::File { weights: "missing.ckpt".into(), config: None };
        let text = message(&origin, (8, 8), 2);
        assert!(text.contains("`missing.ckpt`: No such file"), "{text}");
    }

    #[test]
    fn a_configuration_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        std::fs::write(&config, "[Schedule]\ntype = \"cosine\"\n").unwrap();
        let origin = Origin::File { weights: file(folder.path()), config: Some(config) };
        let schedule = load(&origin, (8, 8), 2, &Device::Cpu).unwrap().schedule;
        assert!(schedule.alpha_bar()[999] < 1e-8);
    }
}
