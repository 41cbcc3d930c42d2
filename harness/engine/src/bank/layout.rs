//! How a file of the bank is laid out, and how it is written: block by block, from wherever the
//! numbers come, and put in its place when it is whole.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::error::EngineError;

/// The header's entry of a tensor.
pub(super) fn tensor_header(dtype: &str, shape: &[usize], start: usize) -> Value {
    let size = if dtype == "I64" { 8 } else { 4 };
    let end = start + size * shape.iter().product::<usize>();
    json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] })
}

/// The first bytes of a safetensors file, padded so that what follows is aligned.
pub(super) fn file_start(header: &Value) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// What a file of the bank holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) n: usize,
    /// Columns of the logits, if there are any.
    pub(crate) logits: Option<usize>,
    /// Columns of the features, if there are any.
    pub(crate) features: Option<usize>,
    pub(crate) labels: bool,
    pub(crate) ids: bool,
}

/// A file that is being filled. Without [`Writer::finish`] nothing is left of it.
pub(crate) struct Writer {
    file: NamedTempFile,
    path: PathBuf,
    layout: Layout,
    /// Where the numbers begin.
    start: usize,
    /// Where the logits begin, and the features.
    logits: usize,
    features: usize,
}

impl Writer {
    /// Begins a file. Its folder is created where there is none.
    pub(crate) fn create(path: &Path, layout: Layout) -> Result<Self, EngineError> {
        let failed = || EngineError::io("write", path);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(EngineError::io("write", folder))?;
        let file = oodbench_record::partial_file(folder).map_err(failed())?;
        let n = layout.n;
        let mut header = serde_json::Map::new();
        let mut end = 0;
        // What takes eight bytes comes first, so that everything is aligned.
        for (name, present) in [("labels", layout.labels), ("ids", layout.ids)] {
            if present {
                header.insert(name.to_owned(), tensor_header("I64", &[n], end));
                end += 8 * n;
            }
        }
        let mut places = [0; 2];
        let matrices = [("logits", layout.logits), ("features", layout.features)];
        for (place, (name, columns)) in places.iter_mut().zip(matrices) {
            *place = end;
            if let Some(columns) = columns {
                header.insert(name.to_owned(), tensor_header("F32", &[n, columns], end));
                end += 4 * n * columns;
            }
        }
        let bytes = file_start(&Value::Object(header));
        let start = bytes.len();
        file.as_file().write_all_at(&bytes, 0).map_err(failed())?;
        let [logits, features] = places.map(|place| start + place);
        Ok(Self { file, path: path.to_owned(), layout, start, logits, features })
    }

    /// Writes labels or ids, each at once.
    pub(crate) fn integers(
        &self,
        labels: Option<&[i64]>,
        ids: Option<&[i64]>,
    ) -> Result<(), EngineError> {
        let mut at = self.start;
        for values in [labels, ids].into_iter().flatten() {
            self.write(bytemuck::cast_slice(values), at)?;
            at += 8 * values.len();
        }
        Ok(())
    }

    /// Writes logits from row `first` on.
    pub(crate) fn logits(&self, first: usize, values: &[f32]) -> Result<(), EngineError> {
        let columns = self.layout.logits.unwrap_or(0);
        self.write(bytemuck::cast_slice(values), self.logits + 4 * first * columns)
    }

    /// Writes features from row `first` on.
    pub(crate) fn features(&self, first: usize, values: &[f32]) -> Result<(), EngineError> {
        let columns = self.layout.features.unwrap_or(0);
        self.write(bytemuck::cast_slice(values), self.features + 4 * first * columns)
    }

    fn write(&self, bytes: &[u8], at: usize) -> Result<(), EngineError> {
        let written = self.file.as_file().write_all_at(bytes, at as u64);
        written.map_err(EngineError::io("write", &self.path))
    }

    /// Puts the file in its place.
    pub(crate) fn finish(self) -> Result<PathBuf, EngineError> {
        let failed = || EngineError::io("write", &self.path);
        self.file.as_file().sync_all().map_err(failed())?;
        self.file.persist(&self.path).map_err(|error| failed()(error.error))?;
        Ok(self.path)
    }
}
