//! Tar files: one walk over the headers makes the index; entries are then parts of the mapping.

use std::collections::HashMap;
use std::io::Cursor;

use super::{Bytes, EntryError, MAX_ENTRY_BYTES};
use crate::mapped::SharedBytes;

pub(super) struct Tar {
    bytes: SharedBytes,
    entries: Vec<Entry>,
    by_name: HashMap<Box<str>, usize>,
}

struct Entry {
    name: Box<str>,
    start: usize,
    len: usize,
}

impl Tar {
    pub(super) fn open(bytes: SharedBytes) -> Result<Self, EntryError> {
        let mut archive = ::tar::Archive::new(Cursor::new(bytes.clone()));
        let mut entries = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let kind = entry.header().entry_type();
            if !kind.is_file() && !kind.is_contiguous() {
                continue;
            }
            let raw = entry.path_bytes();
            let name = std::str::from_utf8(&raw)
                .map_err(|_| format!("entry `{}` is not UTF-8", raw.escape_ascii()))?;
            let name = name.strip_prefix("./").unwrap_or(name);
            let (start, len) = (entry.raw_file_position(), entry.size());
            if start.saturating_add(len) > bytes.len() as u64 {
                let there = (bytes.len() as u64).saturating_sub(start);
                return Err(format!("entry `{name}` has {len} bytes, {there} are there").into());
            }
            entries.push(Entry { name: name.into(), start: start as usize, len: len as usize });
        }
        // Of two entries with one name the later one counts, as when unpacking.
        let named = entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index));
        let by_name = named.collect();
        Ok(Self { bytes, entries, by_name })
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        self.entries.iter().map(|entry| &*entry.name).enumerate()
    }

    pub(super) fn read(&self, index: usize) -> Result<Bytes, EntryError> {
        let entry = self.entries.get(index).ok_or("no such entry")?;
        if entry.len as u64 > MAX_ENTRY_BYTES {
            let got = entry.len;
            return Err(format!("expected at most {MAX_ENTRY_BYTES} bytes, got {got}").into());
        }
        Ok(Bytes::Shared(self.bytes.clone(), entry.start..entry.start + entry.len))
    }
}
