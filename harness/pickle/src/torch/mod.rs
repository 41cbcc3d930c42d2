//! Checkpoints of PyTorch: the zip archives of 1.6 and later, and the older format of pickles followed
//! by raw data. The tar format before 0.1.10 is refused.
//!
//! A checkpoint is one pickled object, in which tensors are records that point into **storages**, which
//! are runs of raw numbers kept beside the pickle. Several tensors may share a storage. Here a tensor
//! is a [`TensorRef`], and [`TorchFile::read_tensor`] gets its numbers. The caller maps or reads the
//! file; storages are read where they lie, so a contiguous tensor is not copied at all.

use std::{borrow::Cow, ops::Range, sync::Arc};

use thiserror::Error;

use crate::{error::PickleError, value::Value};

mod archive;
mod legacy;
mod resolve;
mod state_dict;
mod tensor;

pub use self::{
    state_dict::{StateDictError, flatten_state_dict},
    tensor::{Dtype, TensorRef},
};

/// A checkpoint whose bytes are elsewhere: what was pickled, and where the storages lie.
#[derive(Debug)]
pub struct TorchFile<'a> {
    bytes: &'a [u8],
    value: Value,
    storages: Storages<'a>,
    is_little_endian: bool,
}

/// Where the raw numbers are.
#[derive(Debug)]
enum Storages<'a> {
    Archive(archive::Archive<'a>),
    Legacy(legacy::Storages),
}

/// A file that is no checkpoint, or a damaged one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TorchError {
    /// Neither of the formats.
    #[error("expected a PyTorch checkpoint, got {got}")]
    NotACheckpoint {
        /// What it seems to be.
        got: &'static str,
    },
    /// The format before version 0.1.10.
    #[error(
        "tar format of PyTorch before 0.1.10 is not supported\n\n\
         hint: load and save it once with a later PyTorch"
    )]
    TarFormat,
    /// The pickled part is damaged.
    #[error("pickle in checkpoint is damaged")]
    Pickle(#[from] PickleError),
    /// The archive around the checkpoint is damaged.
    #[error("zip archive of the checkpoint is damaged")]
    Zip(#[from] zip::result::ZipError),
    /// A part of the archive cannot be read.
    #[error("`{name}` in the zip archive {problem}")]
    Entry {
        /// The name of the part.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The older format is not as PyTorch writes it.
    #[error("{part} of the checkpoint expected {expected}, got {got}")]
    Layout {
        /// Which part.
        part: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The record of a tensor is not as PyTorch writes it.
    #[error("tensor record has an invalid {part}: {got}")]
    TensorRecord {
        /// Which part.
        part: &'static str,
        /// What is there.
        got: String,
    },
    /// A tensor points to a storage that the file does not have.
    #[error("storage `{key}` is not in the checkpoint")]
    NoSuchStorage {
        /// The name of the storage.
        key: String,
    },
    /// A tensor reaches past its storage.
    #[error("tensor {shape:?} at {offset} expected {expected} bytes in storage `{key}`, got {got}")]
    OutOfStorage {
        /// The shape of the tensor.
        shape: Vec<usize>,
        /// Its first element in the storage.
        offset: usize,
        /// The name of the storage.
        key: String,
        /// How long the storage would have to be.
        expected: u128,
        /// How long it is.
        got: usize,
    },
    /// A tensor is far larger than the storage that its elements are repeated from.
    #[error("tensor {shape:?} repeats the {got} bytes of storage `{key}` beyond reason")]
    RepeatsTooMuch {
        /// The shape of the tensor.
        shape: Vec<usize>,
        /// The name of the storage.
        key: String,
        /// How long the storage is.
        got: usize,
    },
}

/// How much larger than its storage a tensor that repeats elements (stride 0) may be.
const MAX_REPEATED: usize = 256 << 20;

impl<'a> TorchFile<'a> {
    /// Reads what was pickled and finds the storages, without reading those.
    ///
    /// # Errors
    ///
    /// Files in another format, and damaged ones.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TorchError> {
        if bytes.starts_with(b"PK\x03\x04") {
            return archive::parse_file(bytes);
        }
        if bytes.get(257..262) == Some(b"ustar") {
            return Err(TorchError::TarFormat);
        }
        legacy::parse_file(bytes)
    }

    /// What was pickled. Tensors in it are [`Value::Tensor`].
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The weights in it, see [`flatten_state_dict`].
    ///
    /// # Errors
    ///
    /// Where there is no state dict, or several.
    pub fn state_dict(&self) -> Result<Vec<(String, Arc<TensorRef>)>, StateDictError> {
        flatten_state_dict(&self.value)
    }

    /// The elements of a tensor in C order, little endian. They are borrowed from the file where they
    /// lie there like that, and copied where they have to be gathered, swapped or inflated.
    ///
    /// # Errors
    ///
    /// Tensors that reach past their storage, storages that are missing or damaged.
    pub fn read_tensor(&self, tensor: &TensorRef) -> Result<Cow<'a, [u8]>, TorchError> {
        let storage = self.storage(&tensor.storage)?;
        let Range { start, end } = tensor.span(storage.len())?;
        let item_size = tensor.dtype.size();
        let mut elements = if tensor.is_contiguous() {
            match storage {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[start..end]),
                Cow::Owned(bytes) if start == 0 && end == bytes.len() => Cow::Owned(bytes),
                Cow::Owned(bytes) => Cow::Owned(bytes[start..end].to_vec()),
            }
        } else {
            let n_bytes = tensor.n_elements().and_then(|n| n.checked_mul(item_size));
            match n_bytes {
                Some(n_bytes) if n_bytes <= storage.len().max(MAX_REPEATED) => {
                    Cow::Owned(tensor.gather(&storage[start..end], n_bytes))
                }
                _ => {
                    return Err(TorchError::RepeatsTooMuch {
                        shape: tensor.shape.clone(),
                        key: tensor.storage.to_string(),
                        got: storage.len(),
                    });
                }
            }
        };
        if !self.is_little_endian && item_size > 1 {
            elements.to_mut().chunks_exact_mut(item_size).for_each(<[u8]>::reverse);
        }
        Ok(elements)
    }

    fn storage(&self, key: &str) -> Result<Cow<'a, [u8]>, TorchError> {
        match &self.storages {
            Storages::Archive(archive) => archive.storage(key),
            Storages::Legacy(storages) => {
                let range = storages.range(key)?;
                Ok(Cow::Borrowed(&self.bytes[range]))
            }
        }
    }
}
