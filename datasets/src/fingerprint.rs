//! A cheap identity of what a source would read, so that a prepared pack is found again without
//! decoding anything.
//!
//! It takes paths, sizes and modification times, the content of lists, and of each large file the
//! last bytes: unpacking tools set times to what the archive says, so that two files of one size
//! and one time are common, and the end of a zip holds the checksums of all its entries.

use std::fmt;
use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::error::DatasetError;

/// How much of the end of a large file is taken.
const TAIL_BYTES: u64 = 1 << 16;

/// Equal fingerprints mean equal images, labels and ids; different ones mean nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(blake3::Hash);

impl Fingerprint {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_hex().fmt(out)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Fingerprint({self})")
    }
}

/// Collects what a fingerprint is made of. Each part is framed by its length, so that no two
/// sequences of parts run into the same bytes.
pub struct Fingerprinter(blake3::Hasher);

impl Fingerprinter {
    /// `kind` says which reader makes it; its version belongs into it.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let mut parts = Self(blake3::Hasher::new());
        parts.bytes(kind.as_bytes());
        parts
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn number(&mut self, number: i64) {
        self.bytes(&number.to_le_bytes());
    }

    /// A small file: an image among thousands.
    pub(crate) fn stamp(&mut self, path: &Path, metadata: &Metadata) {
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        self.bytes(path.as_os_str().as_encoded_bytes());
        self.bytes(&metadata.len().to_le_bytes());
        self.bytes(&modified.unwrap_or_default().as_nanos().to_le_bytes());
    }

    /// A large file: an archive, or a batch of images.
    pub(crate) fn large_file(&mut self, path: &Path) -> Result<(), DatasetError> {
        let failed = || DatasetError::io("read", path);
        let path = path.canonicalize().map_err(failed())?;
        let mut file = std::fs::File::open(&path).map_err(failed())?;
        let metadata = file.metadata().map_err(failed())?;
        self.stamp(&path, &metadata);
        file.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL_BYTES))).map_err(failed())?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail).map_err(failed())?;
        self.bytes(&tail);
        Ok(())
    }

    #[must_use]
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(self.0.finalize())
    }
}
