//! safetensors files, written and read one tensor at a time: a checkpoint of a training holds four
//! times what the network weighs, and must not be in memory twice.
//!
//! A file appears under its name only when it is whole and on the disk (temporary file, flush,
//! rename), and the same content gives the same bytes: text and tensors are ordered by name, which
//! the crate `safetensors` does not promise of the text. What is written here are `f32` tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::values::with_values;

/// Text beside the tensors, by key.
pub type Text = BTreeMap<String, String>;

/// The longest header that is read: a million tensors have less.
const MAX_HEADER: u64 = 1 << 28;

/// What reading or writing such a file fails with.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error("read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read `{}`: expected {expected}, got {got}", path.display())]
    Malformed { path: PathBuf, expected: String, got: String },
    #[error("write `{}`: `{key}` cannot be read from its device", path.display())]
    Tensor {
        path: PathBuf,
        key: String,
        #[source]
        source: Box<candle_core::Error>,
    },
}

/// A tensor on its way into a file.
pub struct Entry<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub numbers: Numbers<'a>,
}

/// Where its numbers are.
pub enum Numbers<'a> {
    /// On any device; another dtype than `f32` is converted.
    Tensor(Tensor),
    Slice(&'a [f32]),
}

impl Entry<'_> {
    /// A whole tensor.
    pub fn tensor(name: impl Into<String>, tensor: &Tensor) -> Self {
        let (shape, numbers) = (tensor.dims().to_vec(), Numbers::Tensor(tensor.clone()));
        Self { name: name.into(), shape, numbers }
    }
}

/// An entry of the header.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Header {
    Tensor { dtype: String, shape: Vec<usize>, data_offsets: [u64; 2] },
    Text(Text),
}

/// Writes a file as a whole or not at all, one tensor after the other.
///
/// # Errors
/// [`TensorFileError::Write`]; what was under the name before is there still.
pub fn write(path: &Path, text: &Text, mut entries: Vec<Entry<'_>>) -> Result<(), TensorFileError> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    write_atomically(path, |out| body(out, path, text, &entries))
}

fn body(
    out: &mut dyn Write,
    path: &Path,
    text: &Text,
    entries: &[Entry<'_>],
) -> Result<(), TensorFileError> {
    let failed = |source| TensorFileError::Write { path: path.to_owned(), source };
    let mut header = BTreeMap::from([("__metadata__", Header::Text(text.clone()))]);
    let mut end = 0;
    for entry in entries {
        let start = end;
        end += 4 * entry.shape.iter().product::<usize>() as u64;
        let (dtype, shape) = ("F32".to_owned(), entry.shape.clone());
        let data_offsets = [start, end];
        header.insert(&entry.name, Header::Tensor { dtype, shape, data_offsets });
    }
    let mut header = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
    // The format asks for data that begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for entry in entries {
        match &entry.numbers {
            Numbers::Slice(numbers) => put(out, numbers).map_err(failed)?,
            Numbers::Tensor(tensor) => {
                let unreadable = |source| TensorFileError::Tensor {
                    path: path.to_owned(),
                    key: entry.name.clone(),
                    source: Box::new(source),
                };
                let here = tensor
                    .to_device(&Device::Cpu)
                    .and_then(|t| t.to_dtype(candle_core::DType::F32)?.contiguous())
                    .map_err(unreadable)?;
                with_values(&here, |numbers| put(out, numbers))
                    .map_err(unreadable)?
                    .map_err(failed)?;
            }
        }
    }
    Ok(())
}

fn put(out: &mut dyn Write, numbers: &[f32]) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 14;
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for chunk in numbers.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|number| number.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Lets `body` write to a temporary file beside `path`, waits until it is on the disk, and renames
/// it. The temporary file has one name for each target, so that one which a killed process left is
/// written over; two processes that write the same file must agree otherwise who does.
///
/// # Errors
/// What `body` says, or [`TensorFileError::Write`].
pub fn write_atomically(
    path: &Path,
    body: impl FnOnce(&mut dyn Write) -> Result<(), TensorFileError>,
) -> Result<(), TensorFileError> {
    let failed = |source| TensorFileError::Write { path: path.to_owned(), source };
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut out = BufWriter::new(File::create(&temporary).map_err(failed)?);
        body(&mut out)?;
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
    };
    write()
        .and_then(|()| std::fs::rename(&temporary, path).map_err(failed))
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
    // The name is on the disk only when the folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        drop(folder.sync_all());
    }
    Ok(())
}

/// The text of any safetensors file, whatever tensors it holds; these are not read.
///
/// # Errors
/// As [`TensorFile::open`].
pub fn text_of(path: &Path) -> Result<Text, TensorFileError> {
    let header = Opened::new(path)?.header.into_values();
    let mut texts = header.filter_map(|entry| match entry {
        Header::Text(text) => Some(text),
        Header::Tensor { .. } => None,
    });
    Ok(texts.next().unwrap_or_default())
}

fn malformed(path: &Path, expected: &str, got: String) -> TensorFileError {
    TensorFileError::Malformed { path: path.to_owned(), expected: expected.to_owned(), got }
}

/// A file whose header has been read.
struct Opened {
    file: File,
    size: u64,
    header: BTreeMap<String, Header>,
    /// Where the numbers begin.
    data: u64,
}

impl Opened {
    fn new(path: &Path) -> Result<Self, TensorFileError> {
        let failed = |source| TensorFileError::Read { path: path.to_owned(), source };
        let bad = |expected: &str, got: String| malformed(path, expected, got);
        let mut file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut word = [0; 8];
        let mut header = Vec::new();
        let length = match file.read_exact(&mut word) {
            Ok(()) => u64::from_le_bytes(word),
            Err(_) => return Err(bad("a safetensors file", format!("{size} bytes"))),
        };
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(bad("a safetensors file", "another beginning".to_owned()));
        }
        (&mut file).take(length).read_to_end(&mut header).map_err(failed)?;
        let header: BTreeMap<String, Header> = serde_json::from_slice(&header)
            .map_err(|error| bad("a safetensors header", error.to_string()))?;
        Ok(Self { file, size, header, data: 8 + length })
    }
}

/// An open file: its text, and where each tensor lies.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    text: Text,
    tensors: BTreeMap<String, (Vec<usize>, [u64; 2])>,
    data: u64,
}

impl TensorFile {
    /// Reads the header.
    ///
    /// # Errors
    /// A file that is not there, is no safetensors file, or was cut short.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let Opened { file, size, header, data } = Opened::new(path)?;
        let bad = |expected: &str, got: String| malformed(path, expected, got);
        let (mut text, mut tensors) = (Text::new(), BTreeMap::new());
        for (name, entry) in header {
            match entry {
                Header::Text(found) => text = found,
                Header::Tensor { dtype, .. } if dtype != "F32" => {
                    return Err(bad(&format!("`{name}` of F32"), dtype));
                }
                Header::Tensor { shape, data_offsets: [start, end], .. } => {
                    let bytes = shape.iter().try_fold(4u64, |n, &side| n.checked_mul(side as u64));
                    if bytes.is_none_or(|bytes| start.checked_add(bytes) != Some(end))
                        || end > size - data
                    {
                        let got = format!("bytes {start} to {end} of {}", size - data);
                        return Err(bad(&format!("`{name}` {shape:?} within the file"), got));
                    }
                    tensors.insert(name, (shape, [start, end]));
                }
            }
        }
        Ok(Self { path: path.to_owned(), file, text, tensors, data })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text beside the tensors.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The names of the tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The numbers of one tensor.
    ///
    /// # Errors
    /// No tensor of that name and shape, or a file that cannot be read.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorFileError> {
        let expected = || format!("`{name}` {shape:?}");
        let bad = |got: String| TensorFileError::Malformed {
            path: self.path.clone(),
            expected: expected(),
            got,
        };
        let (found, [start, end]) = match self.tensors.get(name) {
            Some(found) => found,
            None => return Err(bad("none".to_owned())),
        };
        if found != shape {
            return Err(bad(format!("{found:?}")));
        }
        let (start, end) = (*start, *end);
        let failed = |source| TensorFileError::Read { path: self.path.clone(), source };
        let mut bytes = vec![0; (end - start) as usize];
        self.file.seek(SeekFrom::Start(self.data + start)).map_err(failed)?;
        self.file.read_exact(&mut bytes).map_err(failed)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        let text = Text::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let matrix = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let entries = vec![
            Entry { name: "z".into(), shape: vec![3], numbers: Numbers::Slice(&[5.0, 6.0, 7.0]) },
            Entry::tensor("m", &matrix.t().unwrap()),
        ];
        write(&path, &text, entries).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read_and_other_programs_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), "a");
        let mut file = TensorFile::open(&path).unwrap();
        assert_eq!(file.text()["b"], "2");
        assert_eq!(file.names().collect::<Vec<_>>(), ["m", "z"]);
        assert_eq!(file.read("m", &[2, 2]).unwrap(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(file.read("z", &[3]).unwrap(), [5.0, 6.0, 7.0]);
        let bytes = std::fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.tensor("m").unwrap().shape(), [2, 2]);
        assert_eq!(bytes, std::fs::read(written(folder.path(), "b")).unwrap());
    }

    #[test]
    fn the_text_of_a_file_is_read_whatever_its_tensors_are() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(text_of(&written(folder.path(), "a")).unwrap()["a"], "1");
        let path = folder.path().join("half");
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![1], &[0, 0]);
        let text = Some([("arch".to_owned(), "resnet20".to_owned())].into());
        let bytes = safetensors::serialize([("x", view.unwrap())], text).unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(text_of(&path).unwrap()["arch"], "resnet20");
        assert!(TensorFile::open(&path).is_err());
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = TensorFile::open(&written(folder.path(), "a")).unwrap();
        let err = file.read("m", &[4]).unwrap_err().to_string();
        assert!(err.contains("expected `m` [4], got [2, 2]"), "{err}");
        let err = file.read("n", &[4]).unwrap_err().to_string();
        assert!(err.contains("`n` [4], got none"), "{err}");
    }

    #[test]
    fn a_file_that_was_cut_short_or_is_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(written(folder.path(), "whole")).unwrap();
        let path = folder.path().join("cut");
        for length in [0, 4, 8, 60, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "{length}");
        }
        std::fs::write(&path, b"<html>Not found</html>").unwrap();
        assert!(TensorFile::open(&path).is_err());
    }

    #[test]
    fn a_body_that_fails_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        std::fs::write(&path, b"old").unwrap();
        let failing = write_atomically(&path, |out| {
            let failed = |source| TensorFileError::Write { path: "x".into(), source };
            out.write_all(b"new").map_err(failed)?;
            Err(failed(std::io::Error::other("full")))
        });
        assert!(failing.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        // Nor does one that cannot be given its name.
        let taken = folder.path().join("taken");
        std::fs::create_dir_all(taken.join("full")).unwrap();
        assert!(write(&taken, &Text::new(), Vec::new()).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
