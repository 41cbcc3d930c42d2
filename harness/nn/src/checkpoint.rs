//! Reads weights as people have them: safetensors, and PyTorch's `.pt`, `.pth`, `.ckpt`, `.th` and
//! `.tar` files, with the state dict nested or not, with or without the prefix `module.`.
//!
//! Floating-point tensors become `f32`; others (`num_batches_tracked`) are left out, because no
//! network here has such weights. A NaN or an infinity is refused with its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use half::{bf16, f16};
use oodbench_pickle::torch::{Dtype, StateDictError, TorchError, TorchFile};
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};

/// What reading a checkpoint fails with.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("read checkpoint `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read checkpoint `{}`: expected safetensors or a PyTorch file, got {found}", path.display())]
    UnknownFormat { path: PathBuf, found: String },
    #[error("read checkpoint `{}` as safetensors", path.display())]
    Safetensors {
        path: PathBuf,
        #[source]
        source: SafeTensorError,
    },
    #[error(
        "read checkpoint `{}` as safetensors: expected the length that its header says, got {got} \
         bytes\n\nhint: was the file copied or downloaded to its end?",
        path.display()
    )]
    Length { path: PathBuf, got: usize },
    #[error("read checkpoint `{}` as a PyTorch file", path.display())]
    Torch {
        path: PathBuf,
        #[source]
        source: TorchError,
    },
    #[error("find the weights in checkpoint `{}`", path.display())]
    NoStateDict {
        path: PathBuf,
        #[source]
        source: StateDictError,
    },
    #[error("load checkpoint `{}`: `{key}` expected finite values, got `{value}` at {index}", path.display())]
    NotFinite { path: PathBuf, key: String, index: usize, value: f32 },
    #[error("load checkpoint `{}`", path.display())]
    Tensor {
        path: PathBuf,
        #[source]
        source: candle_core::Error,
    },
}

/// The names and shapes of a file's floating-point tensors. Their values are not looked at.
///
/// # Errors
/// See [`CheckpointError`].
pub fn shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, CheckpointError> {
    let bytes = std::fs::read(path)
        .map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    match Format::of(&bytes) {
        Format::Safetensors => {
            let header = safetensors_header(&bytes, path)?;
            let tensors = header.tensors().into_iter();
            let floating = tensors.filter(|(_, info)| torch_dtype(info.dtype).is_some());
            Ok(floating.map(|(name, info)| (name, info.shape.clone())).collect())
        }
        Format::Torch => {
            let path = path.to_owned();
            let file = TorchFile::parse(&bytes)
                .map_err(|source| CheckpointError::Torch { path: path.clone(), source })?;
            let entries = file.state_dict();
            let entries =
                entries.map_err(|source| CheckpointError::NoStateDict { path, source })?;
            let entries = entries.into_iter().filter(|(_, tensor)| is_floating(tensor.dtype));
            Ok(entries.map(|(name, tensor)| (name, tensor.shape.clone())).collect())
        }
        Format::Unknown(found) => {
            Err(CheckpointError::UnknownFormat { path: path.to_owned(), found })
        }
    }
}

/// The floating-point tensors of a checkpoint by name, and the text beside them.
pub struct StateDict {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl StateDict {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = std::fs::read(path)
            .map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads a file's content; `path` is for messages.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let path = path.to_owned();
        let (tensors, metadata) = match Format::of(bytes) {
            Format::Safetensors => read_safetensors(bytes, &path)?,
            Format::Torch => (read_torch(bytes, &path)?, HashMap::new()),
            Format::Unknown(found) => return Err(CheckpointError::UnknownFormat { path, found }),
        };
        let tensors = tensors
            .into_iter()
            .map(|(key, (shape, values))| {
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    let (path, value) = (path.clone(), values[index]);
                    return Err(CheckpointError::NotFinite { path, key, index, value });
                }
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu)
                    .map_err(|source| CheckpointError::Tensor { path: path.clone(), source })?;
                Ok((key, tensor))
            })
            .collect::<Result<_, CheckpointError>>()?;
        Ok(Self { path, tensors, metadata })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text beside the tensors of a safetensors file.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The shape of each tensor.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(key, t)| (key.clone(), t.dims().to_vec())).collect()
    }

    /// A builder over the tensors, whose errors name key, expected and found shape; and a handle
    /// that tells afterwards which keys were not used.
    pub fn builder(&self, device: &Device) -> (VarBuilder<'static>, Usage) {
        let used = Arc::new(Mutex::new(BTreeSet::new()));
        let backend: Box<dyn SimpleBackend> =
            Box::new(Backend { tensors: self.tensors.clone(), used: used.clone() });
        let builder = VarBuilder::from_backend(backend, DType::F32, device.clone());
        (builder, Usage { all: self.tensors.keys().cloned().collect(), used })
    }
}

/// Which keys of a checkpoint were used.
pub struct Usage {
    all: Vec<String>,
    used: Arc<Mutex<BTreeSet<String>>>,
}

impl Usage {
    /// The keys that no layer asked for.
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.iter().filter(|key| !used.contains(*key)).cloned().collect()
    }
}

struct Backend {
    tensors: BTreeMap<String, Tensor>,
    used: Arc<Mutex<BTreeSet<String>>>,
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            candle_core::bail!("`{name}` expected {:?}, got {:?}", shape.dims(), tensor.dims());
        }
        Ok(tensor)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else {
            candle_core::bail!("no `{name}` among its {} tensors", self.tensors.len());
        };
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

enum Format {
    Safetensors,
    Torch,
    Unknown(String),
}

impl Format {
    /// By content, not by ending: `.pth.tar` files are no tar archives.
    fn of(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Unknown("an empty file".to_owned());
        }
        if bytes.len() > 8 && bytes[8] == b'{' {
            return Self::Safetensors;
        }
        let is_zip = bytes.starts_with(b"PK\x03\x04");
        let is_pickle = bytes[0] == 0x80;
        let is_tar = bytes.get(257..262) == Some(b"ustar");
        if is_zip || is_pickle || is_tar {
            return Self::Torch;
        }
        let start: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self::Unknown(format!("a file that begins with `{}`", start.join(" ")))
    }
}

type Values = (Vec<usize>, Vec<f32>);

/// The tensors of a file by name, and the text beside them.
type Content = (Vec<(String, Values)>, HashMap<String, String>);

/// PyTorch's name of a floating-point type.
fn torch_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as D;
    match dtype {
        D::F16 => Some(Dtype::F16),
        D::BF16 => Some(Dtype::BF16),
        D::F32 => Some(Dtype::F32),
        D::F64 => Some(Dtype::F64),
        _ => None,
    }
}

fn is_floating(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

fn safetensors_failure(source: SafeTensorError, bytes: &[u8], path: &Path) -> CheckpointError {
    match source {
        SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer => {
            CheckpointError::Length { path: path.to_owned(), got: bytes.len() }
        }
        source => CheckpointError::Safetensors { path: path.to_owned(), source },
    }
}

/// The header of a file that is as long as its header says.
fn safetensors_header(bytes: &[u8], path: &Path) -> Result<Metadata, CheckpointError> {
    let read = SafeTensors::read_metadata(bytes);
    let (_, header) = read.map_err(|source| safetensors_failure(source, bytes, path))?;
    Ok(header)
}

fn read_safetensors(bytes: &[u8], path: &Path) -> Result<Content, CheckpointError> {
    let header = safetensors_header(bytes, path)?;
    let file = SafeTensors::deserialize(bytes)
        .map_err(|source| safetensors_failure(source, bytes, path))?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let Some(dtype) = torch_dtype(view.dtype()) else { continue };
        tensors.push((name.to_owned(), (view.shape().to_vec(), to_f32(dtype, view.data()))));
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

fn read_torch(bytes: &[u8], path: &Path) -> Result<Vec<(String, Values)>, CheckpointError> {
    let fail = |source| CheckpointError::Torch { path: path.to_owned(), source };
    let file = TorchFile::parse(bytes).map_err(fail)?;
    let entries = file
        .state_dict()
        .map_err(|source| CheckpointError::NoStateDict { path: path.to_owned(), source })?;
    let mut tensors = Vec::new();
    for (name, tensor) in entries {
        if is_floating(tensor.dtype) {
            let data = file.read_tensor(&tensor).map_err(fail)?;
            tensors.push((name, (tensor.shape.clone(), to_f32(tensor.dtype, &data))));
        }
    }
    Ok(tensors)
}

/// Little-endian floating-point data as `f32`.
pub(crate) fn to_f32(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    fn each<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let chunks = data.chunks_exact(N);
        chunks.map(|chunk| f(chunk.try_into().expect("chunks of this length"))).collect()
    }
    match dtype {
        Dtype::F16 => each(data, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(data, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(data, |b| f64::from_le_bytes(b) as f32),
        _ => each(data, f32::from_le_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<StateDict, String> {
        StateDict::from_bytes(bytes, Path::new("a.pth")).map_err(|err| err.to_string())
    }

    fn safetensors(key: &str, values: &[f32]) -> Vec<u8> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![values.len()];
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data).unwrap();
        safetensors::serialize([(key, view)], None).unwrap()
    }

    #[test]
    fn a_text_file_is_refused_by_its_first_bytes() {
        let err = read(b"<html>Not found</html>").err().unwrap();
        assert!(err.contains("`a.pth`") && err.contains("begins with `3c 68 74 6d`"), "{err}");
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        let err = read(&safetensors("fc.bias", &[1.0, f32::NAN])).err().unwrap();
        assert!(err.contains("`fc.bias` expected finite values, got `NaN` at 1"), "{err}");
    }

    #[test]
    fn wrong_shapes_and_missing_keys_are_named() {
        let file = read(&safetensors("fc.bias", &[1.0, 2.0])).unwrap();
        let (vb, usage) = file.builder(&Device::Cpu);
        let err = vb.get(3, "fc.bias").unwrap_err().to_string();
        assert!(err.contains("`fc.bias` expected [3], got [2]"), "{err}");
        let err = vb.get(3, "fc.weight").unwrap_err().to_string();
        assert!(err.contains("no `fc.weight`"), "{err}");
        assert!(usage.unused().is_empty());
    }

    #[test]
    fn half_precision_is_widened() {
        assert_eq!(to_f32(Dtype::F16, &f16::from_f32(0.5).to_le_bytes()), [0.5]);
        assert_eq!(to_f32(Dtype::BF16, &bf16::from_f32(-2.0).to_le_bytes()), [-2.0]);
        assert_eq!(to_f32(Dtype::F64, &0.25f64.to_le_bytes()), [0.25]);
    }
}
