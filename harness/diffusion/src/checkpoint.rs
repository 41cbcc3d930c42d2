//! Diffusion networks in files.
//!
//! Our own files are safetensors that describe themselves: the network stands as JSON under
//! [`NET_KEY`] of the metadata, the schedule under [`SCHEDULE_KEY`]. Files of the reference (a
//! state dict, `train.ckpt`, `ema.ckpt`) say nothing of themselves, so the network is read off
//! the tensors' names and shapes, but for what leaves no trace there: the image side, the number
//! of attention heads and the schedule, which the caller may give.

mod read_off;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use oodbench_nn::checkpoint::StateDict;
use oodbench_nn::precision::Precision;
use oodbench_nn::tensor_file::{self, Entry, TensorFileError, Text};
use serde::de::DeserializeOwned;

use crate::config::{Config, ConfigError, ScheduleSection};
use crate::net::{EpsModel, NetConfig};
use crate::replay::{Refused, replayed};
use crate::schedule::{Schedule, ScheduleConfig, ScheduleError};

/// Where the metadata of a file keeps its [`NetConfig`] as JSON.
pub const NET_KEY: &str = "oodbench.diffusion.net";

/// Where the metadata of a file keeps its [`ScheduleConfig`] as JSON.
pub const SCHEDULE_KEY: &str = "oodbench.diffusion.schedule";

/// What reading or writing a diffusion network fails with.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("read the metadata `{key}` of `{}`", path.display())]
    Metadata {
        path: PathBuf,
        key: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "load diffusion network `{}`: expected the U-Net of DDIM or iDDPM, got neither \
         `conv_in.weight` nor `input_blocks.0.0.weight`",
        path.display()
    )]
    UnknownNetwork { path: PathBuf },
    #[error("load diffusion network `{}`: no `{key}`", path.display())]
    NoTensor { path: PathBuf, key: String },
    #[error("load diffusion network `{}`: `{key}` expected {expected}, got {got:?}", path.display())]
    Shape { path: PathBuf, key: String, expected: &'static str, got: Vec<usize> },
    #[error(
        "load diffusion network `{}`: the file does not say the side of its images\n\n\
         hint: give a configuration with `Model.image_size`",
        path.display()
    )]
    NoImageSize { path: PathBuf },
    #[error(
        "load diffusion network `{}`: the file does not say how many heads its attention has\n\n\
         hint: give a configuration with `Model.num_heads`",
        path.display()
    )]
    NoHeads { path: PathBuf },
    #[error(
        "load diffusion network `{}`: {} to no layer\n\n\
         hint: the configuration describes another network than the file holds",
        path.display(),
        belonging(key, *more)
    )]
    Unused { path: PathBuf, key: String, more: usize },
    #[error("load diffusion network `{}`: its schedule", path.display())]
    Schedule {
        path: PathBuf,
        #[source]
        source: ScheduleError,
    },
    #[error("load diffusion network `{}`", path.display())]
    Network {
        path: PathBuf,
        #[source]
        source: Box<candle_core::Error>,
    },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Write(#[from] TensorFileError),
}

/// What a file does not say by itself; it wins over what the file says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub net: Option<NetConfig>,
    pub schedule: Option<ScheduleConfig>,
    /// The side of the images, for a file that says nothing of it.
    pub image_size: Option<usize>,
    /// Heads of every attention of the iDDPM U-Net, for a file that says nothing of them.
    pub num_heads: Option<usize>,
}

impl Given {
    /// Reads the sections `Model` and `Schedule` of a [`Config`], each of which may be absent.
    ///
    /// # Errors
    /// A file that cannot be read, or that says something else.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Ok(Self::from(&Config::read(path)?))
    }
}

impl From<&Config> for Given {
    fn from(config: &Config) -> Self {
        Self {
            net: config.model.clone(),
            schedule: config.schedule.as_ref().map(ScheduleSection::config),
            image_size: None,
            num_heads: None,
        }
    }
}

/// Where a network is to compute, and how. From a device alone: in `f32`, launch by launch.
#[derive(Clone, Copy, Debug)]
pub struct On<'a> {
    pub device: &'a Device,
    /// Whether products in `f32` may use TF32 is a matter of the process, not of a network:
    /// [`oodbench_nn::device::set_precision`].
    pub precision: Precision,
    /// Whether its work on a GPU is recorded and replayed; see [`replayed`].
    pub replay: bool,
}

impl<'a> From<&'a Device> for On<'a> {
    fn from(device: &'a Device) -> Self {
        Self { device, precision: Precision::F32, replay: false }
    }
}

impl On<'_> {
    /// Builds a network on the variables of `vb`, and says where it says that it is not replayed.
    ///
    /// # Errors
    /// Those of [`NetConfig::build_in`].
    pub fn build(
        self,
        net: &NetConfig,
        vb: VarBuilder<'_>,
    ) -> candle_core::Result<(Box<dyn EpsModel>, Refused)> {
        let model = net.build_in(vb, self.precision)?;
        Ok(if self.replay { replayed(model) } else { (model, Refused::default()) })
    }
}

/// A network that is ready for use, and the schedule that it was trained on.
pub struct LoadedModel {
    pub model: Box<dyn EpsModel>,
    pub net: NetConfig,
    pub schedule: Schedule,
    /// Why the network is not replayed, once that is known.
    pub refused: Refused,
}

/// Builds the network of a file.
///
/// # Errors
/// A file that does not describe itself and holds none of the networks of this crate, a
/// configuration that does not fit its tensors, tensors that no layer asks for, or a precision that
/// the device does not have.
pub fn load<'a>(
    file: &StateDict,
    given: &Given,
    on: impl Into<On<'a>>,
) -> Result<LoadedModel, LoadError> {
    let on = on.into();
    let net = match (&given.net, metadata::<NetConfig>(file, NET_KEY)?) {
        (Some(net), _) => net.clone(),
        (None, Some(net)) => net,
        (None, None) => read_off::read_off(file, given.image_size, given.num_heads)?,
    };
    let schedule = match (&given.schedule, metadata::<ScheduleConfig>(file, SCHEDULE_KEY)?) {
        (Some(schedule), _) => schedule.clone(),
        (None, schedule) => schedule.unwrap_or_default(),
    };
    let path = file.path().to_owned();
    schedule.check().map_err(|source| LoadError::Schedule { path: path.clone(), source })?;
    let (vb, usage) = file.builder(on.device);
    let (model, refused) = on
        .build(&net, vb)
        .map_err(|source| LoadError::Network { path: path.clone(), source: Box::new(source) })?;
    // A configuration that leaves out a part of the network would give wrong noise in silence.
    let mut unused = usage.unused().into_iter();
    if let Some(key) = unused.next() {
        return Err(LoadError::Unused { path, key, more: unused.len() });
    }
    Ok(LoadedModel { model, net, schedule: Schedule::new(&schedule), refused })
}

/// The subject of `belong`, and it.
fn belonging(key: &str, more: usize) -> String {
    match more {
        0 => format!("`{key}` belongs"),
        1 => format!("`{key}` and one more tensor belong"),
        _ => format!("`{key}` and {more} more tensors belong"),
    }
}

fn metadata<T: DeserializeOwned>(
    file: &StateDict,
    key: &'static str,
) -> Result<Option<T>, LoadError> {
    let Some(text) = file.metadata().get(key) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|source| LoadError::Metadata {
        path: file.path().to_owned(),
        key,
        source,
    })
}

/// Writes weights as safetensors that describe themselves: a temporary file first, which is then
/// renamed. The same weights give the same bytes.
///
/// # Errors
/// A file that cannot be written.
pub fn save(
    path: &Path,
    weights: &BTreeMap<String, Tensor>,
    net: &NetConfig,
    schedule: &ScheduleConfig,
) -> Result<(), LoadError> {
    let json = |key, value: serde_json::Result<String>| {
        value.map_err(|source| LoadError::Metadata { path: path.to_owned(), key, source })
    };
    let text = Text::from([
        (NET_KEY.to_owned(), json(NET_KEY, serde_json::to_string(net))?),
        (SCHEDULE_KEY.to_owned(), json(SCHEDULE_KEY, serde_json::to_string(schedule))?),
    ]);
    let entries = weights.iter().map(|(name, tensor)| Entry::tensor(name, tensor)).collect();
    Ok(tensor_file::write(path, &text, entries)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Pass;
    use oodbench_nn::variables::Variables;

    fn net() -> NetConfig {
        serde_json::from_value(serde_json::json!({
            "struc": "DDIM", "image_size": 8, "num_classes": 2, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4],
            "dropout": 0.0, "resamp_with_conv": true,
        }))
        .unwrap()
    }

    /// Builds the network on fresh variables: its noise for an input, and its weights.
    fn fresh() -> (Vec<f32>, BTreeMap<String, Tensor>) {
        let variables = Variables::new(5, &Device::Cpu);
        let model = net().build(variables.builder()).unwrap();
        (eps(model.as_ref()), variables.snapshot().unwrap())
    }

    fn eps(model: &dyn EpsModel) -> Vec<f32> {
        let x =
            Tensor::from_vec(oodbench_nn::formula::normal("x", 192), (1, 3, 8, 8), &Device::Cpu);
        let t = Tensor::new(&[7f32], &Device::Cpu).unwrap();
        let y = Tensor::new(&[1u32], &Device::Cpu).unwrap();
        let eps = model.eps(&x.unwrap(), &t, Some(&y), Pass::Sample).unwrap();
        eps.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn saved(schedule: &ScheduleConfig) -> (Vec<u8>, Vec<f32>) {
        let (expected, weights) = fresh();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diffusion.safetensors");
        save(&path, &weights, &net(), schedule).unwrap();
        (std::fs::read(&path).unwrap(), expected)
    }

    fn open(bytes: &[u8]) -> StateDict {
        StateDict::from_bytes(bytes, Path::new("a.safetensors")).unwrap()
    }

    #[test]
    fn a_saved_network_describes_itself() {
        let schedule = ScheduleConfig { beta_end: 0.01, ..Default::default() };
        let (bytes, expected) = saved(&schedule);
        let loaded = load(&open(&bytes), &Given::default(), &Device::Cpu).unwrap();
        assert_eq!(loaded.net, net());
        assert_eq!(loaded.schedule, Schedule::new(&schedule));
        assert_eq!(eps(loaded.model.as_ref()), expected);
        assert_eq!(saved(&schedule).0, bytes, "the same weights gave other bytes");
    }

    #[test]
    fn a_description_cannot_ask_for_any_amount_of_memory() {
        let schedule = ScheduleConfig { diffusion_step: usize::MAX, ..Default::default() };
        let err = load(&open(&saved(&schedule).0), &Given::default(), &Device::Cpu).err().unwrap();
        assert!(err.to_string().contains("`a.safetensors`: its schedule"), "{err}");
        let source = std::error::Error::source(&err).unwrap().to_string();
        assert!(
            source.starts_with("`diffusion_step` expected 2 to 1000000, got 18446"),
            "{source}"
        );
    }

    #[test]
    fn a_network_without_description_is_read_off_its_tensors() {
        let (expected, weights) = fresh();
        let bytes = safetensors::serialize(&weights, None).unwrap();
        let given = Given { image_size: Some(8), ..Given::default() };
        let loaded = load(&open(&bytes), &given, &Device::Cpu).unwrap();
        assert_eq!(loaded.net, net());
        assert_eq!(eps(loaded.model.as_ref()), expected);
        let err = load(&open(&bytes), &Given::default(), &Device::Cpu).err().unwrap().to_string();
        assert!(err.contains("side of its images") && err.contains("hint:"), "{err}");
    }

    #[test]
    fn tensors_that_no_layer_asks_for_are_refused() {
        let (bytes, _) = saved(&ScheduleConfig::default());
        let NetConfig::Ddim(mut config) = net() else { panic!("another network") };
        config.num_classes = 0;
        let given = Given { net: Some(NetConfig::Ddim(config)), ..Given::default() };
        let err = load(&open(&bytes), &given, &Device::Cpu).err().unwrap().to_string();
        assert!(err.contains("`label_emb.weight` belongs to no layer"), "{err}");
    }

    #[test]
    fn another_network_is_named() {
        let zero = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
        let weights = BTreeMap::from([("fc.weight".to_owned(), zero)]);
        let bytes = safetensors::serialize(&weights, None).unwrap();
        let err = load(&open(&bytes), &Given::default(), &Device::Cpu).err().unwrap().to_string();
        assert!(err.contains("`a.safetensors`: expected the U-Net of DDIM or iDDPM"), "{err}");
    }

    /// The network of a file without description, given the side of the images and the heads.
    fn read_off(net: &NetConfig) -> NetConfig {
        let variables = Variables::new(1, &Device::Cpu);
        net.build(variables.builder()).unwrap();
        let bytes = safetensors::serialize(variables.snapshot().unwrap(), None).unwrap();
        let given =
            Given { image_size: Some(net.image_size()), num_heads: Some(4), ..Given::default() };
        load(&open(&bytes), &given, &Device::Cpu).unwrap_or_else(|err| panic!("{err}")).net
    }

    #[test]
    fn an_iddpm_network_is_read_off_its_tensors_but_for_its_heads() {
        let net = |changes: serde_json::Value| -> NetConfig {
            let mut net = serde_json::json!({
                "struc": "iDDPM", "image_size": 8, "num_classes": 2, "in_channels": 3,
                "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
                "attention_resolutions": [2, 4], "dropout": 0.0, "channel_mult": [1, 2, 1],
                "conv_resample": true, "use_scale_shift_norm": true, "num_heads": 4,
            });
            for (key, value) in changes.as_object().unwrap() {
                net[key] = value.clone();
            }
            serde_json::from_value(net).unwrap()
        };
        for changes in [
            serde_json::json!({}),
            serde_json::json!({"num_classes": 0, "out_channels": 3, "num_res_blocks": 2}),
            serde_json::json!({"conv_resample": false, "attention_resolutions": [1]}),
            serde_json::json!({"use_scale_shift_norm": false, "channel_mult": [1]}),
            serde_json::json!({"attention_resolutions": [], "conv_resample": false}),
        ] {
            let mut net = net(changes);
            if let NetConfig::Iddpm(config) = &mut net {
                // What this network cannot have is not read off it.
                let n_levels = config.channel_mult.len() as u32;
                config.attention_resolutions.retain(|&factor| factor < 1 << n_levels);
            }
            assert_eq!(read_off(&net), net);
        }
        let variables = Variables::new(1, &Device::Cpu);
        net(serde_json::json!({})).build(variables.builder()).unwrap();
        let bytes = safetensors::serialize(variables.snapshot().unwrap(), None).unwrap();
        let given = Given { image_size: Some(8), ..Given::default() };
        let err = load(&open(&bytes), &given, &Device::Cpu).err().unwrap().to_string();
        assert!(err.ends_with("hint: give a configuration with `Model.num_heads`"), "{err}");
    }

    #[test]
    fn a_configuration_has_the_sections_of_the_reference() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let text = serde_json::json!({"Model": net(), "Schedule": {"type": "cosine"}, "Train": {}});
        std::fs::write(&path, text.to_string()).unwrap();
        let given = Given::read(&path).unwrap();
        assert_eq!(given.net, Some(net()));
        // TOML of the same content means the same.
        let toml = toml::to_string(&serde_json::json!({"Model": net()})).unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, toml).unwrap();
        assert_eq!(Given::read(&path).unwrap().net, Some(net()));
        let path = folder.path().join("config");
        std::fs::write(&path, r#"{"Modell": {}}"#).unwrap();
        let err = Given::read(&path).err().unwrap();
        let source = std::error::Error::source(&err).unwrap().to_string();
        assert!(source.contains("unknown field `Modell`"), "{source}");
    }
}
