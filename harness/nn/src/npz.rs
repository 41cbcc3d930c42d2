//! numpy's `.npz` archives: named arrays in a zip file, as `numpy.savez` writes them and
//! `numpy.load` reads them.
//!
//! Plain numbers only: arrays of Python objects are pickles, and structured types have no use
//! here. Fortran order and big-endian files are read. A file is written beside its place and
//! renamed, so that it is there as a whole or not at all. The same arrays give the same bytes.

use std::fs::{File, Permissions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

mod header;
mod stored;

pub use header::Dtype;
use header::Header;
pub use stored::Stored;

/// The largest array that is read, in bytes: it bounds what a small file can ask for.
pub const MAX_ARRAY_BYTES: u64 = 1 << 36;

/// What reading or writing an archive fails with.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    #[error("read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read `{}` as an npz file", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: zip::result::ZipError,
    },
    #[error("read `{}`: expected an array `{name}`, got {}", path.display(), listed(names))]
    NoArray { path: PathBuf, name: String, names: Vec<String> },
    #[error("read array `{name}` of `{}`: {problem}", path.display())]
    Array { path: PathBuf, name: String, problem: String },
    #[error("write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "no array at all".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// An array in memory: little-endian, the last index runs fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    bytes: Vec<u8>,
}

/// Numbers of an array to be written.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
    U8(&'a [u8]),
}

impl Array {
    /// The numbers as `f64`; integers beyond 2^53 are rounded.
    pub fn to_f64(&self) -> Vec<f64> {
        self.convert(|x| x)
    }

    /// The numbers as `f32`, rounded where they are wider.
    pub fn to_f32(&self) -> Vec<f32> {
        self.convert(|x| x as f32)
    }

    fn convert<T>(&self, narrow: impl Fn(f64) -> T) -> Vec<T> {
        let size = self.dtype.size();
        self.bytes.chunks_exact(size).map(|chunk| narrow(self.dtype.value(chunk))).collect()
    }
}

/// An open archive.
pub struct Npz {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    names: Vec<String>,
}

impl Npz {
    /// Opens a file and reads its directory.
    ///
    /// # Errors
    /// A file that cannot be read or is no zip archive.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let file =
            File::open(path).map_err(|source| NpzError::Read { path: path.to_owned(), source })?;
        let fail = |source| NpzError::Archive { path: path.to_owned(), source };
        let zip = ZipArchive::new(BufReader::new(file)).map_err(fail)?;
        let names: Result<Vec<String>, _> =
            zip.file_names().map(|name| Ok(name?.into_owned())).collect();
        let names = names.map_err(fail)?;
        let names = names.iter().filter_map(|name| name.strip_suffix(".npy")).map(str::to_owned);
        Ok(Self { path: path.to_owned(), names: names.collect(), zip })
    }

    /// The names of the arrays, as `numpy.load(…).files` lists them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The shape of an array, without reading its numbers.
    ///
    /// # Errors
    /// No array of this name, or a damaged one.
    pub fn shape(&mut self, name: &str) -> Result<Vec<usize>, NpzError> {
        self.entry(name, |entry, size| Ok(Header::read(entry, size)?.shape))
    }

    /// The shape of an array and the type of its numbers, which are not read.
    ///
    /// # Errors
    /// As [`Npz::shape`].
    pub fn shape_and_dtype(&mut self, name: &str) -> Result<(Vec<usize>, Dtype), NpzError> {
        self.entry(name, |entry, size| {
            let header = Header::read(entry, size)?;
            Ok((header.shape, header.dtype))
        })
    }

    /// Reads an array.
    ///
    /// # Errors
    /// No array of this name, a damaged one, or one that holds anything but numbers.
    pub fn read(&mut self, name: &str) -> Result<Array, NpzError> {
        self.entry(name, |entry, size| {
            let header = Header::read(entry, size)?;
            // A lying size must not make us allocate; what is there must be what was stated.
            let mut bytes = Vec::with_capacity(header.n_bytes.min(1 << 22) as usize);
            entry
                .take(header.n_bytes + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| format!("its data are damaged: {error}"))?;
            if bytes.len() as u64 != header.n_bytes {
                return Err(format!("expected {} bytes, got {}", header.n_bytes, bytes.len()));
            }
            let size = header.dtype.size();
            if header.is_big_endian {
                bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            if header.is_fortran_order {
                bytes = reordered(&bytes, size, &header.shape);
            }
            Ok(Array { shape: header.shape, dtype: header.dtype, bytes })
        })
    }

    fn entry<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut dyn Read, u64) -> Result<T, String>,
    ) -> Result<T, NpzError> {
        if !self.names.iter().any(|known| known == name) {
            let (path, names) = (self.path.clone(), self.names.clone());
            return Err(NpzError::NoArray { path, name: name.to_owned(), names });
        }
        let mut entry = self
            .zip
            .by_name(&format!("{name}.npy"))
            .map_err(|source| NpzError::Archive { path: self.path.clone(), source })?;
        let size = entry.size();
        read(&mut entry, size).map_err(|problem| NpzError::Array {
            path: self.path.clone(),
            name: name.to_owned(),
            problem,
        })
    }
}

/// From the first index running fastest to the last.
fn reordered(bytes: &[u8], size: usize, shape: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..bytes.len() / size {
        let at = shape.iter().zip(&index).rev().fold(0, |at, (&length, &i)| at * length + i);
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for (i, &length) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < length {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// An archive being written; without [`NpzWriter::finish`] nothing is left of it.
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<BufWriter<NamedTempFile>>,
}

impl NpzWriter {
    /// Begins a file. Its folder is created where there is none.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn create(path: &Path) -> Result<Self, NpzError> {
        let fail = |source| NpzError::Write { path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(fail)?;
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            // As public as the umask lets it be.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(fail)?;
        Ok(Self { path: path.to_owned(), zip: ZipWriter::new(BufWriter::new(file)) })
    }

    /// Adds an array, uncompressed: floating-point numbers hardly become smaller.
    ///
    /// # Errors
    /// A shape that the values do not fill, or a disk that is full.
    pub fn array(
        &mut self,
        name: &str,
        shape: &[usize],
        values: Values<'_>,
    ) -> Result<(), NpzError> {
        let n_values: usize = shape.iter().product();
        if n_values != values.len() {
            return Err(NpzError::Array {
                path: self.path.clone(),
                name: name.to_owned(),
                problem: format!(
                    "shape {shape:?} expected {n_values} values, got {}",
                    values.len()
                ),
            });
        }
        self.write(name, shape, values)
            .map_err(|source| NpzError::Write { path: self.path.clone(), source })
    }

    fn write(&mut self, name: &str, shape: &[usize], values: Values<'_>) -> std::io::Result<()> {
        let size = (values.len() as u64).saturating_mul(values.dtype().size() as u64);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(size > u64::from(u32::MAX) / 2);
        self.zip.start_file(format!("{name}.npy"), options)?;
        self.zip.write_all(&header::encode(values.dtype(), shape))?;
        match values {
            Values::F32(values) => self.each(values, |v| v.to_le_bytes()),
            Values::F64(values) => self.each(values, |v| v.to_le_bytes()),
            Values::I64(values) => self.each(values, |v| v.to_le_bytes()),
            Values::U8(values) => self.zip.write_all(values),
        }
    }

    fn each<T: Copy, const N: usize>(
        &mut self,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; N],
    ) -> std::io::Result<()> {
        for block in values.chunks(1 << 14) {
            let bytes: Vec<u8> = block.iter().flat_map(|&value| to_bytes(value)).collect();
            self.zip.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn finish(self) -> Result<(), NpzError> {
        let finish = |zip: ZipWriter<BufWriter<NamedTempFile>>| -> std::io::Result<()> {
            let file = zip.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            Ok(())
        };
        finish(self.zip).map_err(|source| NpzError::Write { path: self.path.clone(), source })
    }
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            Self::I64(_) => Dtype::I64,
            Self::U8(_) => Dtype::U8,
        }
    }
}

#[cfg(test)]
mod tests;
