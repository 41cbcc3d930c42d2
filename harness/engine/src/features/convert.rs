//! Exported numbers into the feature bank: read block by block, narrowed to `f32`, checked, and
//! written to a file whose name is the key of what it was made of. What is there is used again.

use std::path::{Path, PathBuf};

use oodbench_datasets::Progress;

use super::file::Numbers;
use super::head::Applied;
use super::{Exported, FeaturesError};
use crate::bank::{Bank, BankFolder, HeadFile, Layout, Writer};
use crate::error::EngineError;
use crate::key::{KeyBuilder, hash_file};

/// Goes into every key. Raise it when the same export gives detectors other numbers than before.
const VERSION: &str = "exported/1";

/// Numbers that are in memory at once.
const BLOCK: usize = 1 << 20;

/// The hash of all that decides what detectors get of the first `rows` rows of a set.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn content(set: &Exported, rows: usize) -> Result<String, EngineError> {
    let path = set.path();
    let hash = hash_file(path).map_err(|source| {
        EngineError::from(FeaturesError::Read { path: path.to_owned(), source })
    })?;
    let mut key = KeyBuilder::new(VERSION);
    key.part("file", &hash);
    key.part("rows", &rows.to_string());
    // OOD images have no classes, whatever their file says.
    key.part("labels", if set.role.is_ood() { "none" } else { "own" });
    Ok(key.finish())
}

/// Puts the first `rows` rows of a set into the bank, unless they are there.
///
/// # Errors
/// A number that is not finite, a file that is damaged, a full disk.
pub(crate) fn convert(
    set: &Exported,
    rows: usize,
    content: &str,
    head: Option<&HeadFile>,
    folder: &BankFolder,
    progress: &dyn Progress,
) -> Result<PathBuf, EngineError> {
    let path = folder.named(&format!("{}-{}", set.role, set.name), content);
    let mut numbers = Vec::new();
    for (tensor, present) in [("logits", set.has_logits), ("features", set.has_features)] {
        let columns = set.file.tensor(tensor).filter(|_| present).map(|it| it.shape[1]);
        numbers.push((tensor, columns));
    }
    let computed = head.filter(|_| set.computes_logits);
    let layout = Layout {
        n: rows,
        logits: numbers[0].1.or(computed.map(|head| head.n_classes)),
        features: numbers[1].1,
        labels: true,
        ids: set.ids.is_some(),
    };
    if path.is_file() {
        let bank = Bank::open(&path)?;
        let expected = [rows, layout.logits.unwrap_or(0), layout.features.unwrap_or(0)];
        let got = [bank.len(), bank.n_classes(), bank.n_features()];
        if expected == got {
            return Ok(path);
        }
        let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
        return Err(EngineError::Bank { path, expected, got });
    }
    let out = Writer::create(&path, layout)?;
    let unknown;
    let labels = match &set.labels {
        Some(labels) => &labels[..rows],
        None => {
            unknown = vec![-1; rows];
            &unknown
        }
    };
    out.integers(Some(labels), set.ids.as_deref().map(|ids| &ids[..rows]))?;
    progress.begin(&format!("read {}", set.path().display()), rows as u64);
    let copied = copy(&out, set, layout, computed, progress);
    progress.end();
    copied?;
    out.finish()
}

/// Copies the rows, block by block.
fn copy(
    out: &Writer,
    set: &Exported,
    layout: Layout,
    computed: Option<&HeadFile>,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    let network = |source| EngineError::Network { set: set.name.clone(), source };
    let applied = computed.map(Applied::new).transpose().map_err(network)?;
    let open = |name, present: bool| present.then(|| set.file.numbers(name)).transpose();
    let (logits, features) = (open("logits", set.has_logits)?, open("features", set.has_features)?);
    let (k, d) = (layout.logits.unwrap_or(0), layout.features.unwrap_or(0));
    let at_once = (BLOCK / (k + d)).clamp(1, layout.n);
    let mut block = Block::default();
    for first in (0..layout.n).step_by(at_once) {
        let rows = at_once.min(layout.n - first);
        if let Some(numbers) = &features {
            block.read(numbers, first * d, rows * d)?;
            out.features(first, &block.rounded(set, "features", d, first)?)?;
        }
        if let Some(head) = &applied {
            // Of the features that were read last.
            block.exact = head.logits(&block.exact).map_err(network)?;
            out.logits(first, &block.rounded(set, "logits", k, first)?)?;
        }
        if let Some(numbers) = &logits {
            block.read(numbers, first * k, rows * k)?;
            out.logits(first, &block.rounded(set, "logits", k, first)?)?;
        }
        progress.advance(rows as u64);
    }
    Ok(())
}

/// Some rows on their way.
#[derive(Default)]
struct Block {
    exact: Vec<f64>,
}

impl Block {
    fn read(&mut self, numbers: &Numbers, first: usize, n: usize) -> Result<(), FeaturesError> {
        self.exact.resize(n, 0.0);
        numbers.read(first, &mut self.exact)
    }

    /// The rows as `f32`, of which `first` is the number of the first one.
    fn rounded(
        &self,
        set: &Exported,
        tensor: &'static str,
        columns: usize,
        first: usize,
    ) -> Result<Vec<f32>, FeaturesError> {
        narrow(set.path(), tensor, &self.exact, columns, first)
    }
}

/// Rounds rows, of which `first` is the number of the first one, to `f32`.
pub(super) fn narrow(
    path: &Path,
    tensor: &'static str,
    exact: &[f64],
    columns: usize,
    first: usize,
) -> Result<Vec<f32>, FeaturesError> {
    let rounded: Vec<f32> = exact.iter().map(|&value| value as f32).collect();
    match rounded.iter().position(|value| !value.is_finite()) {
        None => Ok(rounded),
        Some(at) => {
            let (path, value) = (path.to_owned(), exact[at]);
            let (row, column) = (first + at / columns, at % columns);
            Err(FeaturesError::NotFinite { path, tensor, row, column, value })
        }
    }
}
