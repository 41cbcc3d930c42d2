//! One exported file: its tensors, by name, and their numbers, piece by piece. Both formats give
//! the same numbers; which one it is only this file knows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use oodbench_datasets::SharedBytes;
use oodbench_nn::npz::{self, Npz, Stored};
use safetensors::{Dtype, SafeTensors};

use super::FeaturesError;

/// An exported file whose header has been read.
#[derive(Clone, Debug)]
pub(crate) struct File {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

/// What a header says of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    /// As the format calls the type of its numbers.
    pub(super) dtype: String,
    /// Where its bytes lie, in a file that is mapped.
    place: Option<(Dtype, Range<usize>)>,
}

/// What numbers a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Real,
    Integer,
    /// Nothing that is read here.
    Other,
}

impl File {
    /// Reads the header.
    pub(super) fn open(path: &Path) -> Result<Self, FeaturesError> {
        let is_npz = path.extension().is_some_and(|extension| extension == "npz");
        let tensors = if is_npz { npz_header(path)? } else { safetensors_header(path)? };
        Ok(Self { path: path.to_owned(), tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Access to the numbers of a tensor that is there.
    pub(super) fn numbers(&self, name: &str) -> Result<Numbers, FeaturesError> {
        match self.tensors.get(name).and_then(|tensor| tensor.place.clone()) {
            Some((dtype, place)) => {
                let bytes = map(&self.path)?;
                if bytes.len() < place.end {
                    return Err(damaged(&self.path, "fewer bytes than before"));
                }
                Ok(Numbers::Mapped { bytes, dtype, place })
            }
            None => Ok(Numbers::Stored(Box::new(Npz::open(&self.path)?.stored(name)?))),
        }
    }

    /// All numbers of a list of integers.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>, FeaturesError> {
        let n = self.tensors.get(name).map_or(0, |tensor| tensor.shape.iter().product());
        let mut values = vec![0.0; n];
        self.numbers(name)?.read(0, &mut values)?;
        Ok(values.into_iter().map(|value| value as i64).collect())
    }
}

fn damaged(path: &Path, problem: impl Into<String>) -> FeaturesError {
    FeaturesError::Damaged { path: path.to_owned(), problem: problem.into() }
}

fn map(path: &Path) -> Result<SharedBytes, FeaturesError> {
    SharedBytes::open(path).map_err(|error| FeaturesError::Read {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn safetensors_header(path: &Path) -> Result<BTreeMap<String, Tensor>, FeaturesError> {
    let read = |source| FeaturesError::Read { path: path.to_owned(), source };
    // An empty file cannot be mapped.
    if std::fs::metadata(path).map_err(read)?.len() == 0 {
        return Err(damaged(path, "an empty file"));
    }
    let bytes = map(path)?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| damaged(path, error.to_string()))?;
    let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let dtype = view.dtype();
        let tensor = Tensor {
            shape: view.shape().to_vec(),
            kind: kind(dtype),
            dtype: format!("{dtype:?}"),
            place: Some((dtype, start..start + view.data().len())),
        };
        (name, tensor)
    };
    Ok(tensors.tensors().into_iter().map(entry).collect())
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Kind::Real,
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U32 | Dtype::U16 | Dtype::U8 => {
            Kind::Integer
        }
        _ => Kind::Other,
    }
}

fn npz_header(path: &Path) -> Result<BTreeMap<String, Tensor>, FeaturesError> {
    let mut npz = Npz::open(path)?;
    let names = npz.names().to_vec();
    let entry = |name: String| {
        // What else the archive holds is no fault until it is wanted.
        let (shape, dtype) = match npz.shape_and_dtype(&name) {
            Ok(header) => header,
            Err(_) if !super::KNOWN.contains(&name.as_str()) => {
                let (shape, dtype, place) = (Vec::new(), "something else".to_owned(), None);
                return Ok((name, Tensor { shape, kind: Kind::Other, dtype, place }));
            }
            Err(error) => return Err(error.into()),
        };
        let kind = match dtype {
            npz::Dtype::F16 | npz::Dtype::F32 | npz::Dtype::F64 => Kind::Real,
            npz::Dtype::Bool | npz::Dtype::U64 => Kind::Other,
            _ => Kind::Integer,
        };
        Ok((name, Tensor { shape, kind, dtype: format!("{dtype:?}"), place: None }))
    };
    names.into_iter().map(entry).collect()
}

/// The numbers of a tensor, read at any place.
pub(super) enum Numbers {
    Mapped { bytes: SharedBytes, dtype: Dtype, place: Range<usize> },
    Stored(Box<Stored>),
}

impl Numbers {
    /// Reads `out.len()` numbers from number `first`, the last index running fastest.
    pub(super) fn read(&self, first: usize, out: &mut [f64]) -> Result<(), FeaturesError> {
        match self {
            Self::Stored(array) => Ok(array.read_at(first as u64, out)?),
            Self::Mapped { bytes, dtype, place } => {
                let size = dtype.bitsize() / 8;
                let start = place.start + first * size;
                convert(*dtype, &bytes[start..start + out.len() * size], out);
                Ok(())
            }
        }
    }
}

/// The numbers that these bytes stand for. A type that is none of them was refused before.
fn convert(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f64], value: impl Fn([u8; N]) -> f64) {
        let (words, _) = bytes.as_chunks::<N>();
        out.iter_mut().zip(words).for_each(|(out, &word)| *out = value(word));
    }
    match dtype {
        Dtype::F32 => each(bytes, out, |word| f64::from(f32::from_le_bytes(word))),
        Dtype::F64 => each(bytes, out, f64::from_le_bytes),
        Dtype::F16 => each(bytes, out, |word| f16::from_le_bytes(word).to_f64()),
        Dtype::BF16 => each(bytes, out, |word| bf16::from_le_bytes(word).to_f64()),
        Dtype::I64 => each(bytes, out, |word| i64::from_le_bytes(word) as f64),
        Dtype::I32 => each(bytes, out, |word| f64::from(i32::from_le_bytes(word))),
        Dtype::I16 => each(bytes, out, |word| f64::from(i16::from_le_bytes(word))),
        Dtype::U32 => each(bytes, out, |word| f64::from(u32::from_le_bytes(word))),
        Dtype::U16 => each(bytes, out, |word| f64::from(u16::from_le_bytes(word))),
        Dtype::I8 => each(bytes, out, |[byte]: [u8; 1]| f64::from(byte as i8)),
        _ => each(bytes, out, |[byte]: [u8; 1]| f64::from(byte)),
    }
}
