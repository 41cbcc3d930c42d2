//! Zip files: the central directory is read once, entries are read through cheap clones of it.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::Arc;

use ::zip::ZipArchive;

use super::{EntryError, MAX_ENTRY_BYTES};
use crate::mapped::SharedBytes;

pub(super) struct Zip {
    archive: ZipArchive<Cursor<SharedBytes>>,
    names: Vec<Arc<str>>,
    /// The crate's own look-up goes through all entries for a name that is not there.
    by_name: HashMap<Arc<str>, usize>,
}

impl Zip {
    pub(super) fn open(bytes: SharedBytes) -> Result<Self, EntryError> {
        let archive = ZipArchive::new(Cursor::new(bytes))?;
        let names: Vec<Arc<str>> =
            archive.file_names().map(|name| Ok(name?.into())).collect::<Result<_, EntryError>>()?;
        let by_name =
            names.iter().enumerate().map(|(index, name)| (Arc::clone(name), index)).collect();
        Ok(Self { archive, names, by_name })
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        let named = self.names.iter().map(|name| &**name).enumerate();
        named.filter(|(_, name)| !name.ends_with('/'))
    }

    /// The whole entry; its checksum is verified on the way.
    pub(super) fn read(&self, index: usize) -> Result<Vec<u8>, EntryError> {
        let mut archive = self.archive.clone();
        let entry = archive.by_index(index)?;
        let size = entry.size();
        if size > MAX_ENTRY_BYTES {
            return Err(format!("expected at most {MAX_ENTRY_BYTES} bytes, got {size}").into());
        }
        // A lying size must neither allocate nor decompress more than it states.
        let mut content = Vec::with_capacity(size.min(1 << 22) as usize);
        entry.take(size + 1).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(format!("expected {size} bytes, got {}", content.len()).into());
        }
        Ok(content)
    }
}
