//! One set of exported features: what its header says, and whether that goes with the other files.

use std::path::{Path, PathBuf};

use oodbench_datasets::Role;

use super::FeaturesError;
use super::file::{File, Kind, Tensor};
use crate::error::did_you_mean;

/// The tensors of a set.
const TENSORS: [&str; 4] = ["features", "logits", "labels", "ids"];

/// Up to here an `f64` tells one integer from the next.
const MOST_EXACT: i64 = 1 << 53;

/// A set whose header is sound.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) len: usize,
    pub(crate) has_features: bool,
    pub(crate) has_logits: bool,
    /// Whether the head gives the logits that the file has not.
    pub(crate) computes_logits: bool,
    /// Classes; absent where the file has none, and of OOD sets.
    pub(crate) labels: Option<Vec<i64>>,
    pub(super) ids: Option<Vec<i64>>,
    pub(super) file: File,
}

impl Exported {
    /// Reads the header and the labels of a file.
    pub(super) fn open(
        role: Role,
        name: String,
        path: &Path,
        sizes: &mut Sizes,
        warnings: &mut Vec<String>,
    ) -> Result<Self, FeaturesError> {
        let file = File::open(path)?;
        warn_of_others(&file, &TENSORS, warnings);
        let mut rows = None;
        let features = matrix(&file, "features", &mut rows)?;
        let logits = matrix(&file, "logits", &mut rows)?;
        let Some((_, len)) = rows.filter(|_| features.is_some() || logits.is_some()) else {
            let expected = "`features` [n, d] or `logits` [n, k]";
            return Err(FeaturesError::tensor(path, "features", expected, listed(&file)));
        };
        if let Some(columns) = features {
            sizes.check(path, "features", columns, sizes.features.clone())?;
            sizes.features.get_or_insert((columns, path.to_owned()));
        }
        if let Some(columns) = logits {
            sizes.check(path, "logits", columns, sizes.classes.clone())?;
            sizes.classes.get_or_insert((columns, path.to_owned()));
        }
        // The labels of OOD images mean nothing here, whatever they are.
        let labels = if role.is_ood() { None } else { list(&file, "labels", len)? };
        let ids = list(&file, "ids", len)?;
        if let Some(&id) = ids.iter().flatten().find(|id| id.abs() > MOST_EXACT) {
            let expected = format!("at most {MOST_EXACT}");
            return Err(FeaturesError::tensor(path, "ids", expected, id.to_string()));
        }
        let (has_features, has_logits) = (features.is_some(), logits.is_some());
        let computes_logits = false;
        Ok(Self { role, name, len, has_features, has_logits, computes_logits, labels, ids, file })
    }

    /// Whether detectors get logits of this set.
    pub(crate) fn gives_logits(&self) -> bool {
        self.has_logits || self.computes_logits
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn greatest_label(&self) -> Option<usize> {
        let labels = self.labels.iter().flatten();
        labels.filter_map(|&label| usize::try_from(label).ok()).max()
    }

    /// Every image that detectors are fitted on has a class; a tested one may have none.
    pub(super) fn check_labels(&self, n_classes: usize) -> Result<(), FeaturesError> {
        let may_be_absent = matches!(self.role, Role::IdTest | Role::Csid);
        let fits = |label: i64| {
            usize::try_from(label).is_ok_and(|label| label < n_classes)
                || (label == -1 && may_be_absent)
        };
        match self.labels.iter().flatten().enumerate().find(|(_, label)| !fits(**label)) {
            None => Ok(()),
            Some((row, &got)) => {
                let last = n_classes.saturating_sub(1);
                let or_none = if may_be_absent { ", or -1" } else { "" };
                let expected = format!("0 to {last}{or_none}");
                Err(FeaturesError::Label { path: self.path().to_owned(), row, expected, got })
            }
        }
    }
}

/// How many classes and features all files have, and which file said so first.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) classes: Option<(usize, PathBuf)>,
    pub(super) features: Option<(usize, PathBuf)>,
}

impl Sizes {
    pub(super) fn classes(&self) -> Option<usize> {
        self.classes.as_ref().map(|(columns, _)| *columns)
    }

    pub(super) fn features(&self) -> Option<usize> {
        self.features.as_ref().map(|(columns, _)| *columns)
    }

    fn check(
        &self,
        path: &Path,
        tensor: &'static str,
        columns: usize,
        known: Option<(usize, PathBuf)>,
    ) -> Result<(), FeaturesError> {
        match known {
            Some((expected, first)) if expected != columns => {
                let expected = format!("{expected} columns as in `{}`", first.display());
                Err(FeaturesError::tensor(path, tensor, expected, columns.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// A tensor that no one asks for may be a misspelt one.
pub(super) fn warn_of_others(file: &File, known: &[&str], warnings: &mut Vec<String>) {
    let path = file.path().display();
    let known: Vec<String> = known.iter().map(|&name| name.to_owned()).collect();
    for name in file.names().filter(|name| !known.iter().any(|known| known == name)) {
        let meant = did_you_mean(name, &known);
        let hint = meant.map_or(String::new(), |meant| format!(", did you mean `{meant}`?"));
        warnings.push(format!("tensor `{name}` of `{path}` is not read{hint}"));
    }
}

/// What a file has, for messages.
fn listed(file: &File) -> String {
    let names: Vec<String> = file.names().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "no tensor at all".to_owned() } else { names.join(", ") }
}

/// Type and shape, for messages.
pub(super) fn described(tensor: &Tensor) -> String {
    format!("{} {:?}", tensor.dtype, tensor.shape)
}

/// The columns of a matrix of real numbers, if there is such a tensor.
fn matrix(
    file: &File,
    name: &'static str,
    rows: &mut Option<(&'static str, usize)>,
) -> Result<Option<usize>, FeaturesError> {
    let Some(tensor) = file.tensor(name) else { return Ok(None) };
    let wrong =
        |expected: &str| Err(FeaturesError::tensor(file.path(), name, expected, described(tensor)));
    let letter = if name == "logits" { "k" } else { "d" };
    if tensor.kind != Kind::Real {
        return wrong(&format!("F32, F64, F16 or BF16 [n, {letter}]"));
    }
    let [n, columns] = tensor.shape[..] else { return wrong(&format!("[n, {letter}]")) };
    if n == 0 || columns == 0 {
        return wrong("at least one row and one column");
    }
    match *rows {
        Some((other, expected)) if expected != n => {
            wrong(&format!("{expected} rows as `{other}` has"))
        }
        _ => {
            *rows = Some((name, n));
            Ok(Some(columns))
        }
    }
}

/// A list of integers, one for each row, if there is such a tensor.
fn list(file: &File, name: &'static str, n: usize) -> Result<Option<Vec<i64>>, FeaturesError> {
    let Some(tensor) = file.tensor(name) else { return Ok(None) };
    if tensor.kind != Kind::Integer || tensor.shape != [n] {
        let expected = format!("integers [{n}]");
        return Err(FeaturesError::tensor(file.path(), name, expected, described(tensor)));
    }
    file.integers(name).map(Some)
}
