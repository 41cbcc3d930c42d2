//! Files as shared read-only bytes, and compressed files as such files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use memmap2::Mmap;

use crate::error::DatasetError;

/// Images hardly compress; data that grows by more than this is a bomb.
const MAX_GROWTH: u64 = 100;

/// How many bytes are plausible after decompressing.
pub(crate) fn plausible_size(compressed: u64) -> u64 {
    compressed.saturating_mul(MAX_GROWTH).saturating_add(1 << 24)
}

/// The largest image file or list that is read into memory. ImageNet's training list has 60 MB.
const MAX_SMALL_BYTES: u64 = 1 << 28;

/// A memory-mapped file, cheap to clone and to read from several threads. Its pages belong to the
/// system's cache, so that a large archive costs no memory of its own.
#[derive(Clone)]
pub struct SharedBytes(Arc<Mmap>);

impl SharedBytes {
    /// Maps a file.
    ///
    /// # Errors
    /// [`DatasetError::Io`] when there is no such file, or it cannot be mapped.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let failed = || DatasetError::io("open", path);
        let file = File::open(path).map_err(failed())?;
        // Mapping a folder fails with a message that says nothing.
        if file.metadata().map_err(failed())?.is_dir() {
            return Err(failed()(io::ErrorKind::IsADirectory.into()));
        }
        Self::map(&file).map_err(DatasetError::io("map", path))
    }

    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature; this is the only place")]
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes are only read, as plain `u8`. Data sets are not written to while they
        // are used; a file that is cut short meanwhile ends the process with SIGBUS, which for
        // prepared packs cannot happen, because they are replaced by renaming.
        unsafe { Mmap::map(file) }.map(|map| Self(Arc::new(map)))
    }

    /// Decompresses a gzip file; see [`SharedBytes::unpack`].
    pub(crate) fn gunzip(path: &Path, scratch: &Path, limit: u64) -> Result<Self, DatasetError> {
        let packed = Self::open(path)?;
        Self::unpack(path, MultiGzDecoder::new(&packed[..]), scratch, limit)
    }

    /// Writes what a decoder of the file at `path` gives into an unnamed file in `scratch` and maps
    /// that: memory stays bounded, and the system frees the space when the last user is gone,
    /// however it ends.
    ///
    /// # Errors
    /// When there are more than `limit` bytes: the caller knows what is plausible.
    pub(crate) fn unpack(
        path: &Path,
        mut decoder: impl Read,
        scratch: &Path,
        limit: u64,
    ) -> Result<Self, DatasetError> {
        let written = || DatasetError::io("decompress into", scratch);
        std::fs::create_dir_all(scratch).map_err(written())?;
        let mut unpacked = tempfile::tempfile_in(scratch).map_err(written())?;
        let mut chunk = vec![0; 1 << 18];
        let mut total = 0;
        loop {
            let count = decoder.read(&mut chunk).map_err(|error| DatasetError::Archive {
                path: path.to_owned(),
                source: error.into(),
            })?;
            if count == 0 {
                break;
            }
            total += count as u64;
            if total > limit {
                let expected = format!("at most {limit} bytes when decompressed");
                return Err(DatasetError::malformed(path, expected, "more"));
            }
            unpacked.write_all(&chunk[..count]).map_err(written())?;
        }
        Self::map(&unpacked).map_err(DatasetError::io("map what was decompressed from", path))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The content of one image or list.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, DatasetError> {
    let failed = || DatasetError::io("read", path);
    let file = File::open(path).map_err(failed())?;
    let size = file.metadata().map_err(failed())?.len();
    if size > MAX_SMALL_BYTES {
        let expected = format!("at most {MAX_SMALL_BYTES} bytes");
        return Err(DatasetError::malformed(path, expected, size.to_string()));
    }
    let mut content = Vec::with_capacity(size as usize);
    file.take(MAX_SMALL_BYTES).read_to_end(&mut content).map_err(failed())?;
    Ok(content)
}
