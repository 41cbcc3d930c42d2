//! The feature bank: what the classifier gives for each image of a set, made once and mapped ever
//! after.
//!
//! A file of the bank is safetensors with `logits` F32 [n, n_classes] and `features` F32
//! [n, n_features]; `head.safetensors` beside it has `weight` and `bias` of the last layer. Forty
//! detectors then cost forty passes over features, not forty passes of the network. The name of a
//! file is the key of its content: prepared images and classifier, or the exported file that it was
//! made of.
//!
//! Where the outputs were exported by another program (`bench --features`), one of the two may be
//! absent, and the file also has what prepared images would say: `labels`, n of I64, and `ids`, n of
//! I64, where the images have numbers of their own.

mod fill;
mod head;
mod layout;

use std::ops::Range;
use std::path::Path;

use oodbench_datasets::SharedBytes;
use safetensors::{Dtype, SafeTensors};

use crate::error::EngineError;

pub(crate) use fill::largest_batch;
pub use fill::{BankFolder, sweep};
pub use head::HeadFile;
pub(crate) use layout::{Layout, Writer};

/// An open file of the bank.
#[derive(Clone)]
pub struct Bank {
    bytes: SharedBytes,
    logits: Option<Matrix>,
    features: Option<Matrix>,
    labels: Option<Vec<i64>>,
    ids: Option<Vec<i64>>,
    len: usize,
}

/// Where the values of a matrix lie, and how many columns it has.
#[derive(Clone)]
struct Matrix {
    place: Range<usize>,
    columns: usize,
}

impl Bank {
    /// Maps a file.
    ///
    /// # Errors
    /// Anything that is no whole file of the bank.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let bytes = SharedBytes::open(path)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| bad(path, "a whole safetensors file", error.to_string()))?;
        let mut len = None;
        let logits = matrix(path, &bytes, &tensors, "logits", &mut len)?;
        let features = matrix(path, &bytes, &tensors, "features", &mut len)?;
        let labels = integers(path, &tensors, "labels", &mut len)?;
        let ids = integers(path, &tensors, "ids", &mut len)?;
        if logits.is_none() && features.is_none() {
            return Err(bad(path, "`logits` or `features`", "neither"));
        }
        let len = len.unwrap_or(0);
        Ok(Self { logits, features, labels, ids, len, bytes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Columns of the logits; 0 where there are none.
    pub fn n_classes(&self) -> usize {
        self.logits.as_ref().map_or(0, |matrix| matrix.columns)
    }

    /// Columns of the features; 0 where there are none.
    pub fn n_features(&self) -> usize {
        self.features.as_ref().map_or(0, |matrix| matrix.columns)
    }

    /// `[len, n_classes]`
    pub fn logits(&self) -> &[f32] {
        self.values(self.logits.as_ref())
    }

    /// `[len, n_features]`
    pub fn features(&self) -> &[f32] {
        self.values(self.features.as_ref())
    }

    fn values(&self, matrix: Option<&Matrix>) -> &[f32] {
        matrix.map_or(&[], |matrix| bytemuck::cast_slice(&self.bytes[matrix.place.clone()]))
    }

    /// The classes of the images, -1 where there is none, in a file that was made of an export.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// The numbers of the images, where they have any of their own.
    pub fn ids(&self) -> Option<&[i64]> {
        self.ids.as_deref()
    }

    /// The class with the greatest logit of each image, the first of several; nothing at all
    /// without logits.
    pub fn predictions(&self) -> Vec<i64> {
        let argmax = |row: &[f32]| {
            let greatest = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| {
                if x > best.1 { (i, x) } else { best }
            });
            greatest.0 as i64
        };
        self.logits().chunks_exact(self.n_classes().max(1)).map(argmax).collect()
    }
}

fn bad(path: &Path, expected: impl Into<String>, got: impl Into<String>) -> EngineError {
    EngineError::Bank { path: path.to_owned(), expected: expected.into(), got: got.into() }
}

/// Takes note of a tensor's number of rows, which is that of every other.
fn same_len(
    path: &Path,
    name: &str,
    rows: usize,
    len: &mut Option<usize>,
) -> Result<(), EngineError> {
    let expected = *len.get_or_insert(rows);
    if rows != expected {
        return Err(bad(path, format!("{name} of {expected} images"), rows.to_string()));
    }
    Ok(())
}

/// A matrix of the file, if it is there.
fn matrix(
    path: &Path,
    bytes: &[u8],
    tensors: &SafeTensors<'_>,
    name: &str,
    len: &mut Option<usize>,
) -> Result<Option<Matrix>, EngineError> {
    let Ok(view) = tensors.tensor(name) else { return Ok(None) };
    let &[rows, columns] = view.shape() else {
        return Err(bad(path, format!("`{name}` [n, m]"), format!("{:?}", view.shape())));
    };
    let data = view.data();
    let aligned = bytemuck::try_cast_slice::<u8, f32>(data).is_ok();
    if view.dtype() != Dtype::F32 || !aligned {
        return Err(bad(path, format!("aligned F32 `{name}`"), format!("{:?}", view.dtype())));
    }
    same_len(path, name, rows, len)?;
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    Ok(Some(Matrix { place: start..start + data.len(), columns }))
}

/// A list of integers of the file, if it is there.
fn integers(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &str,
    len: &mut Option<usize>,
) -> Result<Option<Vec<i64>>, EngineError> {
    let Ok(view) = tensors.tensor(name) else { return Ok(None) };
    let (&[rows], Dtype::I64) = (view.shape(), view.dtype()) else {
        let got = format!("{:?} {:?}", view.dtype(), view.shape());
        return Err(bad(path, format!("I64 `{name}` [n]"), got));
    };
    same_len(path, name, rows, len)?;
    let (words, _) = view.data().as_chunks::<8>();
    Ok(Some(words.iter().map(|&word| i64::from_le_bytes(word)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these tensors; their numbers are all 0.
    fn file(folder: &Path, tensors: &[(&str, Dtype, &[usize])]) -> Result<Bank, EngineError> {
        let zeros = [0; 256];
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let view =
                safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), &zeros[..n_bytes]);
            (*name, view.unwrap())
        });
        let path = folder.join("bank.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        Bank::open(&path)
    }

    #[test]
    fn one_of_logits_and_features_is_enough_and_all_have_as_many_rows() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let bank = file(folder, &[("features", Dtype::F32, &[2, 3])]).unwrap();
        assert_eq!((bank.len(), bank.n_features(), bank.n_classes()), (2, 3, 0));
        assert!(bank.logits().is_empty() && bank.predictions().is_empty());
        let check = |tensors: &[(&str, Dtype, &[usize])], part: &str| {
            let error = file(folder, tensors).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(&[("labels", Dtype::I64, &[2])], "expected `logits` or `features`");
        let logits = ("logits", Dtype::F32, &[2, 2][..]);
        check(&[logits, ("features", Dtype::F32, &[3, 2])], "features of 2 images, got 3");
        check(&[logits, ("labels", Dtype::I64, &[3])], "labels of 2 images, got 3");
        check(&[logits, ("labels", Dtype::I32, &[2])], "expected I64 `labels` [n]");
        check(&[("logits", Dtype::F64, &[2, 2])], "F64");
        check(&[("logits", Dtype::F32, &[4])], "`logits` [n, m]");
    }
}
