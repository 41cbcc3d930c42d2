//! Arrays that are larger than memory: read at any place, written from a stream.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

use super::header::{self, Header};
use super::{Dtype, Npz, NpzError, NpzWriter};

/// An array whose numbers stay on disk.
pub struct Stored {
    path: PathBuf,
    name: String,
    file: File,
    /// Where in the file the numbers begin.
    start: u64,
    header: Header,
}

impl Stored {
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// Reads `out.len()` numbers from number `first`, in the order of the last index running
    /// fastest, whatever the order in the file. Of a matrix in Fortran order whole rows are best
    /// read many at a time: each call reads a piece of every column.
    ///
    /// # Errors
    /// Numbers that are not there.
    pub fn read_at(&self, first: u64, out: &mut [f64]) -> Result<(), NpzError> {
        match self.header.shape[..] {
            [rows, columns] if self.header.is_fortran_order && columns > 0 => {
                self.read_columns(first, out, rows as u64, columns)
            }
            _ => self.read_run(first, out),
        }
    }

    /// As [`Stored::read_at`], for a matrix whose columns lie one after the other.
    fn read_columns(
        &self,
        first: u64,
        out: &mut [f64],
        rows: u64,
        columns: usize,
    ) -> Result<(), NpzError> {
        let Some(end) = first.checked_add(out.len() as u64).filter(|_| !out.is_empty()) else {
            return self.read_run(first, out);
        };
        let width = columns as u64;
        let (first_row, end_row) = (first / width, end.div_ceil(width));
        if end_row > rows {
            return self.read_run(rows * width, out);
        }
        let mut piece = vec![0.0; (end_row - first_row) as usize];
        for column in 0..width {
            self.read_run(column * rows + first_row, &mut piece)?;
            for (row, &value) in (first_row..).zip(&piece) {
                let place = (row * width + column).checked_sub(first);
                if let Some(place) = place.and_then(|place| out.get_mut(place as usize)) {
                    *place = value;
                }
            }
        }
        Ok(())
    }

    /// Reads numbers that lie one after the other.
    fn read_run(&self, first: u64, out: &mut [f64]) -> Result<(), NpzError> {
        let size = self.header.dtype.size();
        let mut bytes = vec![0; out.len() * size];
        let read = first
            .checked_mul(size as u64)
            // What follows in the archive belongs to other arrays.
            .filter(|offset| {
                let end = offset.checked_add(bytes.len() as u64);
                end.is_some_and(|end| end <= self.header.n_bytes)
            })
            .and_then(|offset| offset.checked_add(self.start))
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
            .and_then(|offset| self.file.read_exact_at(&mut bytes, offset));
        read.map_err(|error| NpzError::Array {
            path: self.path.clone(),
            name: self.name.clone(),
            problem: format!("its data are damaged: {error}"),
        })?;
        if self.header.is_big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(size)) {
            *out = self.header.dtype.value(bytes);
        }
        Ok(())
    }
}

impl Npz {
    /// An array for reading at any place. What was compressed is inflated into a temporary file
    /// without a name first. The checksum of what was not is left unchecked, as it would take
    /// reading everything.
    ///
    /// # Errors
    /// No array of this name, a damaged one, or one that holds anything but numbers; Fortran order
    /// of more than two indices.
    pub fn stored(&mut self, name: &str) -> Result<Stored, NpzError> {
        let (path, wrong) = (self.path.clone(), |problem| NpzError::Array {
            path: self.path.clone(),
            name: name.to_owned(),
            problem,
        });
        if !self.names.iter().any(|known| known == name) {
            let names = self.names.clone();
            return Err(NpzError::NoArray { path, name: name.to_owned(), names });
        }
        let mut entry = self
            .zip
            .by_name(&format!("{name}.npy"))
            .map_err(|source| NpzError::Archive { path: path.clone(), source })?;
        let size = entry.size();
        let is_stored = entry.compression() == CompressionMethod::Stored;
        let place = entry.data_start().filter(|_| is_stored);
        let mut read = || -> Result<(Header, File, u64), String> {
            let damaged = |error: std::io::Error| format!("its header is damaged: {error}");
            let (header, file, start) = match place {
                Some(place) => {
                    let mut file = File::open(&path).map_err(|error| error.to_string())?;
                    file.seek(SeekFrom::Start(place)).map_err(damaged)?;
                    let header = Header::read(&mut file, size)?;
                    let start = file.stream_position().map_err(damaged)?;
                    (header, file, start)
                }
                None => {
                    // The header first: it bounds what a few bytes may grow to on the disk.
                    let header = Header::read(&mut entry, size)?;
                    let mut inflate = || -> std::io::Result<File> {
                        let mut file = tempfile::tempfile()?;
                        std::io::copy(&mut (&mut entry).take(header.n_bytes), &mut file)?;
                        Ok(file)
                    };
                    let file = inflate().map_err(|e| format!("it cannot be inflated: {e}"))?;
                    (header, file, 0)
                }
            };
            let length = file.metadata().map_err(damaged)?.len();
            let got = length.saturating_sub(start);
            if got < header.n_bytes {
                return Err(format!("expected {} bytes, got {got}", header.n_bytes));
            }
            if header.is_fortran_order && header.shape.len() > 2 {
                return Err("expected the last index to run fastest, got Fortran order".to_owned());
            }
            Ok((header, file, start))
        };
        let (header, file, start) = read().map_err(wrong)?;
        Ok(Stored { path, name: name.to_owned(), file, start, header })
    }

    /// What is written about the archive as a whole; empty where there is nothing.
    pub fn comment(&self) -> String {
        String::from_utf8_lossy(self.zip.comment()).into_owned()
    }
}

impl NpzWriter {
    /// Adds an array whose little-endian bytes, the last index running fastest, come from a
    /// stream.
    ///
    /// # Errors
    /// A stream of another length than the shape asks for, or a disk that is full.
    pub fn array_from(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        data: &mut dyn Read,
    ) -> Result<(), NpzError> {
        let sizes = shape.iter().map(|&n| n as u64);
        let expected = sizes.fold(dtype.size() as u64, u64::saturating_mul);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(expected > u64::from(u32::MAX) / 2);
        let mut write = || -> std::io::Result<u64> {
            self.zip.start_file(format!("{name}.npy"), options)?;
            self.zip.write_all(&header::encode(dtype, shape))?;
            std::io::copy(&mut data.take(expected), &mut self.zip)
        };
        let fail = |source| NpzError::Write { path: self.path.clone(), source };
        let got = write().map_err(fail)?;
        if got != expected {
            let problem = format!("shape {shape:?} expected {expected} bytes, got {got}");
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(NpzError::Array { path, name, problem });
        }
        Ok(())
    }

    /// Writes something about the archive as a whole, 65535 bytes at most, where numpy does not
    /// look.
    ///
    /// # Errors
    /// A text that is too long.
    pub fn comment(&mut self, text: &str) -> Result<(), NpzError> {
        self.zip.set_comment(text).map_err(|error| NpzError::Write {
            path: self.path.clone(),
            source: std::io::Error::from(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz::Values;
    use std::path::Path;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn values(npz: &mut Npz, name: &str, first: u64, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n];
        npz.stored(name).unwrap().read_at(first, &mut out).unwrap();
        out
    }

    #[test]
    fn a_stream_is_read_at_any_place() {
        let folder = folder();
        let path = folder.path().join("a.npz");
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array_from("x", Dtype::F32, &[3, 2], &mut &bytes[..]).unwrap();
        npz.array("y", &[2], Values::F64(&[0.5, -0.25])).unwrap();
        npz.comment("about it").unwrap();
        npz.finish().unwrap();
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!(npz.comment(), "about it");
        assert_eq!(npz.stored("x").unwrap().shape(), [3, 2]);
        assert_eq!(values(&mut npz, "x", 3, 2), [3.0, 4.0]);
        assert_eq!(values(&mut npz, "y", 0, 2), [0.5, -0.25]);
        assert_eq!(npz.read("x").unwrap().to_f64(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let past_the_end = npz.stored("y").unwrap().read_at(u64::MAX / 2, &mut [0.0]);
        assert!(past_the_end.is_err());
        assert!(matches!(npz.stored("z"), Err(NpzError::NoArray { .. })));
    }

    #[test]
    fn a_stream_of_another_length_is_refused() {
        let folder = folder();
        let mut npz = NpzWriter::create(&folder.path().join("a.npz")).unwrap();
        let err = npz.array_from("x", Dtype::F32, &[2], &mut &[0u8; 7][..]).unwrap_err();
        assert!(err.to_string().contains("shape [2] expected 8 bytes, got 7"), "{err}");
    }

    fn deflated(path: &Path, npy: &[u8]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file("x.npy", options).unwrap();
        zip.write_all(npy).unwrap();
        zip.finish().unwrap();
    }

    #[test]
    fn what_is_compressed_is_inflated() {
        let folder = folder();
        let path = folder.path().join("a.npz");
        let mut npy = header::encode(Dtype::F64, &[3]);
        npy.extend([1.0f64, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()));
        deflated(&path, &npy);
        assert_eq!(values(&mut Npz::open(&path).unwrap(), "x", 1, 2), [2.0, 3.0]);
    }

    fn in_fortran_order(path: &Path, shape: &str, values: &[f64]) {
        let dict = format!("{{'descr': '<f8', 'fortran_order': True, 'shape': {shape}, }}\n");
        let start = [b"\x93NUMPY\x01\x00", &(dict.len() as u16).to_le_bytes()[..]].concat();
        let values: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        deflated(path, &[&start[..], dict.as_bytes(), &values].concat());
    }

    #[test]
    fn a_matrix_in_fortran_order_is_read_by_rows() {
        let folder = folder();
        let path = folder.path().join("a.npz");
        in_fortran_order(&path, "(2, 3)", &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let mut npz = Npz::open(&path).unwrap();
        for first in 0..6 {
            for n in 0..=6 - first {
                let expected: Vec<f64> = (first..first + n).map(|i| i as f64).collect();
                assert_eq!(values(&mut npz, "x", first as u64, n), expected, "{first} {n}");
            }
        }
        let array = npz.stored("x").unwrap();
        assert!(array.read_at(5, &mut [0.0; 2]).is_err());
        assert!(array.read_at(u64::MAX, &mut [0.0; 2]).is_err());
    }

    #[test]
    fn an_array_ends_where_the_next_one_begins() {
        let folder = folder();
        let path = folder.path().join("a.npz");
        let mut npz = NpzWriter::create(&path).unwrap();
        npz.array("x", &[1], Values::F64(&[0.5])).unwrap();
        npz.array("y", &[100], Values::F64(&[1.0; 100])).unwrap();
        npz.finish().unwrap();
        let array = Npz::open(&path).unwrap().stored("x").unwrap();
        assert!(array.read_at(0, &mut [0.0; 2]).is_err());
    }

    #[test]
    fn fortran_order_of_more_indices_and_missing_numbers_are_refused() {
        let folder = folder();
        let path = folder.path().join("a.npz");
        in_fortran_order(&path, "(1, 1, 1)", &[0.0]);
        let err = Npz::open(&path).unwrap().stored("x").err().unwrap().to_string();
        assert!(err.contains("Fortran order"), "{err}");
        deflated(&path, &header::encode(Dtype::F64, &[3]));
        let err = Npz::open(&path).unwrap().stored("x").err().unwrap().to_string();
        assert!(err.contains("expected 24 bytes, got 0"), "{err}");
    }
}
