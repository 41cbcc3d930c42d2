//! The feature bank: what the classifier gives for each image of a set, computed once and mapped
//! ever after.
//!
//! A file of the bank is safetensors with `logits` F32 [n, n_classes] and `features` F32
//! [n, n_features]; `head.safetensors` beside it has `weight` and `bias` of the last layer. Forty
//! detectors then cost forty passes over features, not forty passes of the network. The name of a
//! file is the key of its content: prepared images and classifier.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oodbench_datasets::{Pack, Progress, SharedBytes};
use oodbench_nn::classifier::Classifier;
use safetensors::{Dtype, SafeTensors};

use crate::error::EngineError;
use crate::image::images;
use crate::key::KeyBuilder;

/// Goes into every key. Raise it when networks give other numbers than before.
const BANK_VERSION: &str = "bank/1";

/// An open file of the bank.
pub struct Bank {
    bytes: SharedBytes,
    logits: Range<usize>,
    features: Range<usize>,
    len: usize,
    n_classes: usize,
    n_features: usize,
}

impl Bank {
    /// Maps a file.
    ///
    /// # Errors
    /// Anything that is no whole file of the bank.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let bytes = SharedBytes::open(path)?;
        let (logits, [n, n_classes]) = matrix(path, &bytes, "logits")?;
        let (features, [m, n_features]) = matrix(path, &bytes, "features")?;
        if n != m {
            return Err(bad(path, format!("features of {n} images"), m.to_string()));
        }
        Ok(Self { bytes, logits, features, len: n, n_classes, n_features })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// `[len, n_classes]`
    pub fn logits(&self) -> &[f32] {
        bytemuck::cast_slice(&self.bytes[self.logits.clone()])
    }

    /// `[len, n_features]`
    pub fn features(&self) -> &[f32] {
        bytemuck::cast_slice(&self.bytes[self.features.clone()])
    }

    /// The class with the greatest logit of each image; the first of several.
    pub fn predictions(&self) -> Vec<i64> {
        let argmax = |row: &[f32]| {
            let greatest = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| {
                if x > best.1 { (i, x) } else { best }
            });
            greatest.0 as i64
        };
        self.logits().chunks_exact(self.n_classes.max(1)).map(argmax).collect()
    }
}

fn bad(path: &Path, expected: impl Into<String>, got: impl Into<String>) -> EngineError {
    EngineError::Bank { path: path.to_owned(), expected: expected.into(), got: got.into() }
}

/// Where the values of a matrix lie, and its size.
fn matrix(
    path: &Path,
    bytes: &[u8],
    name: &str,
) -> Result<(Range<usize>, [usize; 2]), EngineError> {
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| bad(path, "a whole safetensors file", error.to_string()))?;
    let view = tensors
        .tensor(name)
        .map_err(|error| bad(path, format!("tensor `{name}`"), error.to_string()))?;
    let &[rows, columns] = view.shape() else {
        return Err(bad(path, format!("`{name}` [n, m]"), format!("{:?}", view.shape())));
    };
    let data = view.data();
    let aligned = bytemuck::try_cast_slice::<u8, f32>(data).is_ok();
    if view.dtype() != Dtype::F32 || !aligned {
        return Err(bad(path, format!("aligned F32 `{name}`"), format!("{:?}", view.dtype())));
    }
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    Ok((start..start + data.len(), [rows, columns]))
}

/// Weight `[n_classes, n_features]` and bias `[n_classes]` of the classifier's last layer.
pub struct HeadFile {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub n_classes: usize,
    pub n_features: usize,
}

impl HeadFile {
    /// Reads `head.safetensors`.
    ///
    /// # Errors
    /// Anything that is no whole file with a head.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let bytes = std::fs::read(path).map_err(EngineError::io("read", path))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| bad(path, "a whole safetensors file", error.to_string()))?;
        let tensor = |name: &str| match tensors.tensor(name) {
            Ok(view) if view.dtype() == Dtype::F32 => {
                let (words, _) = view.data().as_chunks::<4>();
                let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
                Ok((view.shape().to_vec(), values))
            }
            Ok(view) => Err(bad(path, format!("F32 `{name}`"), format!("{:?}", view.dtype()))),
            Err(error) => Err(bad(path, format!("tensor `{name}`"), error.to_string())),
        };
        let ((shape, weight), (bias_shape, bias)) = (tensor("weight")?, tensor("bias")?);
        match shape[..] {
            [n_classes, n_features] if bias_shape == [n_classes] => {
                Ok(Self { weight, bias, n_classes, n_features })
            }
            _ => Err(bad(path, "`weight` [k, d] and `bias` [k]", format!("{shape:?}"))),
        }
    }

    fn write(&self, path: &Path) -> Result<(), EngineError> {
        let header = serde_json::json!({
            "bias": tensor_header(&[self.n_classes], 0),
            "weight": tensor_header(&[self.n_classes, self.n_features], 4 * self.bias.len()),
        });
        let mut bytes = file_start(&header);
        for value in self.bias.iter().chain(&self.weight) {
            bytes.extend(value.to_le_bytes());
        }
        Ok(oodbench_record::write_atomically(path, &bytes)?)
    }
}

fn tensor_header(shape: &[usize], start: usize) -> serde_json::Value {
    let end = start + 4 * shape.iter().product::<usize>();
    serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] })
}

/// The first bytes of a safetensors file, padded so that what follows is aligned.
fn file_start(header: &serde_json::Value) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// Where the bank of one classifier lies, and how it is filled.
pub struct BankFolder {
    folder: PathBuf,
}

impl BankFolder {
    /// The bank of the classifier with this key, below the cache.
    pub fn new(cache: &Path, classifier_key: &str) -> Self {
        Self { folder: cache.join("bank").join(classifier_key) }
    }

    /// Where the head lies, or will.
    pub fn head_path(&self) -> PathBuf {
        self.folder.join("head.safetensors")
    }

    /// Where what the classifier gives for a set lies, or will.
    pub fn path(&self, pack: &Pack) -> PathBuf {
        let mut key = KeyBuilder::new(BANK_VERSION);
        key.part("images", pack.content_hash());
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = pack.name().chars().map(plain).take(60).collect();
        self.folder.join(format!("{name}-{}.safetensors", key.finish()))
    }

    /// Writes the head, unless it is there.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn write_head(&self, classifier: &Classifier) -> Result<(), EngineError> {
        let path = self.head_path();
        if path.is_file() {
            return Ok(());
        }
        let network = |source| EngineError::Network { set: "nothing".to_owned(), source };
        let (weight, bias) = classifier.head().map_err(network)?;
        let (n_classes, n_features) = (classifier.n_classes(), classifier.n_features());
        HeadFile { weight, bias, n_classes, n_features }.write(&path)
    }

    /// Runs the classifier over a set, batch by batch, and writes what it gives. The file appears
    /// when it is whole.
    ///
    /// # Errors
    /// A logit or feature that is not finite, a network that refuses the images, a full disk.
    pub fn fill(
        &self,
        pack: &Pack,
        classifier: &Classifier,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<PathBuf, EngineError> {
        let path = self.path(pack);
        std::fs::create_dir_all(&self.folder).map_err(EngineError::io("write", &self.folder))?;
        let mut file =
            oodbench_record::partial_file(&self.folder).map_err(EngineError::io("write", &path))?;
        let (n, k, d) = (pack.len(), classifier.n_classes(), classifier.n_features());
        let header = serde_json::json!({
            "features": tensor_header(&[n, d], 4 * n * k),
            "logits": tensor_header(&[n, k], 0),
        });
        let start = file_start(&header);
        file.write_all(&start).map_err(EngineError::io("write", &path))?;
        progress.begin(&format!("classify {}", pack.name()), n as u64);
        let out = Output { file: file.as_file(), path: &path, start: start.len(), n, k, d };
        let filled = out.fill(pack, classifier, batch.max(1), progress);
        progress.end();
        filled?;
        file.as_file().sync_all().map_err(EngineError::io("write", &path))?;
        file.persist(&path).map_err(|error| EngineError::io("write", &path)(error.error))?;
        Ok(path)
    }
}

/// A file that is being filled.
struct Output<'a> {
    file: &'a File,
    path: &'a Path,
    /// Where the logits begin.
    start: usize,
    n: usize,
    k: usize,
    d: usize,
}

impl Output<'_> {
    fn fill(
        &self,
        pack: &Pack,
        classifier: &Classifier,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<(), EngineError> {
        let network = |source| EngineError::Network { set: pack.name().to_owned(), source };
        let size = (pack.height() as usize, pack.width() as usize);
        for first in (0..self.n).step_by(batch) {
            let range = first..(first + batch).min(self.n);
            let outputs =
                classifier.forward(&images(pack, range.clone()), size).map_err(network)?;
            let values = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            let logits = values(&outputs.logits).map_err(network)?;
            let features = values(&outputs.features).map_err(network)?;
            for (what, values, columns) in
                [("logits", &logits, self.k), ("features", &features, self.d)]
            {
                if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                    let (set, image) = (pack.name().to_owned(), pack.id(first + at / columns));
                    let (image, value) = (image.to_owned(), values[at]);
                    return Err(EngineError::NotFinite { set, image, what, value });
                }
            }
            self.write(&logits, self.start + 4 * first * self.k)?;
            self.write(&features, self.start + 4 * (self.n * self.k + first * self.d))?;
            progress.advance(range.len() as u64);
        }
        Ok(())
    }

    fn write(&self, values: &[f32], at: usize) -> Result<(), EngineError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.file.write_all_at(bytes, at as u64).map_err(EngineError::io("write", self.path))
    }
}

/// Removes what killed runs left half written in the bank.
///
/// # Errors
/// A folder that cannot be read.
pub fn sweep(cache: &Path) -> Result<(), EngineError> {
    let bank = cache.join("bank");
    let Ok(folders) = std::fs::read_dir(&bank) else { return Ok(()) };
    for folder in folders {
        let folder = folder.map_err(EngineError::io("read", &bank))?.path();
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.map_err(EngineError::io("read", &folder))?;
            // Another run may be at work: what is younger than a day may be its own.
            let old = entry.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| {
                time.elapsed().is_ok_and(|age| age > std::time::Duration::from_secs(86_400))
            });
            if old && entry.file_name().to_string_lossy().starts_with(".partial-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}
