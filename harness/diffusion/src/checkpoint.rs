//! Diffusion networks in files.
//!
//! Our own files are safetensors that describe themselves: the network stands as JSON under
//! [`NET_KEY`] of the metadata, the schedule under [`SCHEDULE_KEY`]. Files of the reference (a
//! state dict, `train.ckpt`, `ema.ckpt`) say nothing of themselves, so the network is read off
//! the tensors' names and shapes, but for what leaves no trace there: the image side and the
//! schedule, which the caller may give.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use oodbench_nn::checkpoint::StateDict;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::net::{DdimConfig, EpsModel, NetConfig};
use crate::schedule::{Schedule, ScheduleConfig};

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
    #[error("load diffusion network `{}`: expected the DDIM U-Net, got no `{key}`{}", path.display(), iddpm_note(*is_iddpm))]
    NotDdim { path: PathBuf, key: String, is_iddpm: bool },
    #[error("load diffusion network `{}`: `{key}` expected {expected}, got {got:?}", path.display())]
    Shape { path: PathBuf, key: String, expected: &'static str, got: Vec<usize> },
    #[error(
        "load diffusion network `{}`: the file does not say the side of its images\n\n\
         hint: give a configuration with `Model.image_size`",
        path.display()
    )]
    NoImageSize { path: PathBuf },
    #[error(
        "load diffusion network `{}`: `{key}` and {more} more tensors belong to no layer\n\n\
         hint: the configuration describes another network than the file holds",
        path.display()
    )]
    Unused { path: PathBuf, key: String, more: usize },
    #[error("load diffusion network `{}`", path.display())]
    Network {
        path: PathBuf,
        #[source]
        source: Box<candle_core::Error>,
    },
    #[error("read configuration `{}`", path.display())]
    ReadConfig {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read configuration `{}`", path.display())]
    ParseConfig {
        path: PathBuf,
        #[source]
        source: ConfigError,
    },
    #[error("write diffusion network `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("write diffusion network `{}`: `{key}` is not on the device any more", path.display())]
    Tensor {
        path: PathBuf,
        key: String,
        #[source]
        source: Box<candle_core::Error>,
    },
}

/// What a configuration says wrongly.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
}

fn iddpm_note(is_iddpm: bool) -> &'static str {
    if is_iddpm { "; its tensors are named as those of the iDDPM U-Net" } else { "" }
}

/// What a file does not say by itself; it wins over what the file says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub net: Option<NetConfig>,
    pub schedule: Option<ScheduleConfig>,
    /// The side of the images, for a file that says nothing of it.
    pub image_size: Option<usize>,
}

/// A configuration file: the sections of the reference's own that describe a network. Its other
/// sections are passed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(rename = "Model")]
    model: Option<NetConfig>,
    #[serde(rename = "Schedule")]
    schedule: Option<ScheduleConfig>,
    #[serde(rename = "Dataset")]
    _dataset: Option<IgnoredAny>,
    #[serde(rename = "Train")]
    _train: Option<IgnoredAny>,
    #[serde(rename = "Optim")]
    _optim: Option<IgnoredAny>,
    #[serde(rename = "Sample")]
    _sample: Option<IgnoredAny>,
}

impl Given {
    /// Reads a configuration: JSON or TOML with `Model` (a [`NetConfig`]) and `Schedule` (a
    /// [`ScheduleConfig`]), each of which may be absent. A file that begins with `{` is JSON.
    ///
    /// # Errors
    /// A file that cannot be read, or that says something else.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::ReadConfig { path: path.to_owned(), source })?;
        let file: Result<ConfigFile, ConfigError> = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(&text).map_err(Into::into),
            false => toml::from_str(&text).map_err(Into::into),
        };
        let file =
            file.map_err(|source| LoadError::ParseConfig { path: path.to_owned(), source })?;
        Ok(Self { net: file.model, schedule: file.schedule, image_size: None })
    }
}

/// A network that is ready for use, and the schedule that it was trained on.
pub struct LoadedModel {
    pub model: Box<dyn EpsModel>,
    pub net: NetConfig,
    pub schedule: Schedule,
}

/// Builds the network of a file.
///
/// # Errors
/// A file that does not describe itself and holds another network than the DDIM U-Net, a
/// configuration that does not fit its tensors, or tensors that no layer asks for.
pub fn load(file: &StateDict, given: &Given, device: &Device) -> Result<LoadedModel, LoadError> {
    let net = match (&given.net, metadata::<NetConfig>(file, NET_KEY)?) {
        (Some(net), _) => net.clone(),
        (None, Some(net)) => net,
        (None, None) => NetConfig::Ddim(read_off(file, given.image_size)?),
    };
    let schedule = match (&given.schedule, metadata::<ScheduleConfig>(file, SCHEDULE_KEY)?) {
        (Some(schedule), _) => schedule.clone(),
        (None, schedule) => schedule.unwrap_or_default(),
    };
    let (vb, usage) = file.builder(device);
    let path = file.path().to_owned();
    let model = net
        .build(vb)
        .map_err(|source| LoadError::Network { path: path.clone(), source: Box::new(source) })?;
    // A configuration that leaves out a part of the network would give wrong noise in silence.
    let mut unused = usage.unused().into_iter();
    if let Some(key) = unused.next() {
        return Err(LoadError::Unused { path, key, more: unused.len() });
    }
    Ok(LoadedModel { model, net, schedule: Schedule::new(&schedule) })
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

/// The configuration of the DDIM U-Net whose tensors a file holds.
fn read_off(file: &StateDict, image_size: Option<usize>) -> Result<DdimConfig, LoadError> {
    let shapes = file.shapes();
    let path = || file.path().to_owned();
    let shape = |key: &str| match shapes.get(key) {
        Some(shape) => Ok(shape.as_slice()),
        None => {
            let is_iddpm = shapes.contains_key("input_blocks.0.0.weight");
            Err(LoadError::NotDdim { path: path(), key: key.to_owned(), is_iddpm })
        }
    };
    let kernel = |key: &str| match *shape(key)? {
        [c_out, c_in, _, _] if c_out > 0 => Ok((c_out, c_in)),
        ref got => {
            let expected = "a kernel of four sizes";
            Err(LoadError::Shape { path: path(), key: key.to_owned(), expected, got: got.to_vec() })
        }
    };
    let (ch, in_channels) = kernel("conv_in.weight")?;
    let (out_ch, _) = kernel("conv_out.weight")?;
    let has = |key: String| shapes.contains_key(&key);
    let count = |key: &dyn Fn(usize) -> String| (0..).take_while(|&i| has(key(i))).count();
    let n_levels = count(&|level| format!("down.{level}.block.0.conv1.weight"));
    let num_res_blocks = count(&|i| format!("down.0.block.{i}.conv1.weight"));
    let mut ch_mult = Vec::new();
    for level in 0..n_levels {
        let key = format!("down.{level}.block.0.conv1.weight");
        let (c_out, _) = kernel(&key)?;
        if !c_out.is_multiple_of(ch) {
            let expected = "a multiple of the channels of `conv_in.weight`";
            return Err(LoadError::Shape { path: path(), key, expected, got: vec![c_out, ch] });
        }
        ch_mult.push(c_out / ch);
    }
    let Some(image_size) = image_size else {
        return Err(LoadError::NoImageSize { path: path() });
    };
    let num_classes = match shapes.get("label_emb.weight") {
        Some(shape) => shape.first().map_or(0, |rows| rows.saturating_sub(1)),
        None => 0,
    };
    let with_attention = (0..n_levels).filter(|level| has(format!("down.{level}.attn.0.q.weight")));
    Ok(DdimConfig {
        kind: "simple".to_owned(),
        image_size,
        num_classes,
        in_channels,
        out_ch,
        ch,
        num_res_blocks,
        attn_resolutions: with_attention.map(|level| image_size >> level).collect(),
        ch_mult,
        // Of use in training alone.
        dropout: 0.0,
        var_type: "fixedlarge".to_owned(),
        resamp_with_conv: n_levels < 2 || has("down.0.downsample.conv.weight".to_owned()),
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
    let metadata = BTreeMap::from([
        (NET_KEY, json(NET_KEY, serde_json::to_string(net))?),
        (SCHEDULE_KEY, json(SCHEDULE_KEY, serde_json::to_string(schedule))?),
    ]);
    let mut header = BTreeMap::from([("__metadata__".to_owned(), Entry::Metadata(metadata))]);
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in weights {
        let values = tensor
            .to_device(&Device::Cpu)
            .and_then(|t| t.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>())
            .map_err(|source| LoadError::Tensor {
                path: path.to_owned(),
                key: name.clone(),
                source: Box::new(source),
            })?;
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let (shape, data_offsets) = (tensor.dims().to_vec(), [start, data.len()]);
        header.insert(name.clone(), Entry::Tensor { dtype: "F32", shape, data_offsets });
    }
    let mut header = json(NET_KEY, serde_json::to_string(&header))?.into_bytes();
    // The format asks for data that begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(&data)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| LoadError::Write { path: path.to_owned(), source })
}

/// An entry of a safetensors header. The `safetensors` crate keeps the metadata in a hash map,
/// whose order changes from run to run; a file of ours is to be the same each time.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Metadata(BTreeMap<&'static str, String>),
    Tensor { dtype: &'static str, shape: Vec<usize>, data_offsets: [usize; 2] },
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
        let NetConfig::Ddim(mut config) = net();
        config.num_classes = 0;
        let given = Given { net: Some(NetConfig::Ddim(config)), ..Given::default() };
        let err = load(&open(&bytes), &given, &Device::Cpu).err().unwrap().to_string();
        assert!(err.contains("`label_emb.weight` and 0 more"), "{err}");
    }

    #[test]
    fn another_network_is_named() {
        let zero = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
        let weights = BTreeMap::from([("input_blocks.0.0.weight".to_owned(), zero)]);
        let bytes = safetensors::serialize(&weights, None).unwrap();
        let err = load(&open(&bytes), &Given::default(), &Device::Cpu).err().unwrap().to_string();
        assert!(err.contains("no `conv_in.weight`") && err.contains("iDDPM"), "{err}");
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
        std::fs::write(&path, toml).unwrap();
        assert_eq!(Given::read(&path).unwrap().net, Some(net()));
        std::fs::write(&path, r#"{"Modell": {}}"#).unwrap();
        let err = Given::read(&path).err().unwrap();
        let source = std::error::Error::source(&err).unwrap().to_string();
        assert!(source.contains("unknown field `Modell`"), "{source}");
    }
}
