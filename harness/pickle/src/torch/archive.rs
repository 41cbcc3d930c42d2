//! The format of PyTorch 1.6 and later: a zip archive of `<name>/data.pkl`, `<name>/data/<key>` for each
//! storage, and `<name>/byteorder` since 2.1. PyTorch stores without compression, so that storages can be
//! read where they lie; archives that someone has compressed since are read as well.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    io::{Cursor, Read},
};

use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

use super::{Storages, TorchError, TorchFile, resolve::Resolver};
use crate::machine;

/// How long a compressed part may become: a small archive can claim to hold any amount.
const MAX_INFLATED: u64 = 1 << 30;

/// An archive, and where its parts lie.
pub(crate) struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// What stands before `data.pkl` in its name, with the slash.
    prefix: String,
    parts: HashMap<String, Part>,
}

#[derive(Clone, Copy)]
struct Part {
    index: usize,
    start: u64,
    size: u64,
    method: CompressionMethod,
    is_encrypted: bool,
}

pub(super) fn parse_file(bytes: &[u8]) -> Result<TorchFile<'_>, TorchError> {
    let archive = Archive::open(bytes)?;
    let pickle = archive.part("data.pkl")?;
    let pickle =
        pickle.ok_or(TorchError::NotACheckpoint { got: "a zip archive without `data.pkl`" })?;
    let is_little_endian = match archive.part("byteorder")?.as_deref() {
        None | Some(b"little") => true,
        Some(b"big") => false,
        Some(other) => {
            return Err(TorchError::Layout {
                part: "`byteorder`",
                expected: "`little` or `big`".into(),
                got: format!("`{}`", other[..other.len().min(16)].escape_ascii()),
            });
        }
    };
    let mut resolver = Resolver::new(pickle.len());
    let (value, _) = machine::parse_with(&pickle, &mut resolver)?;
    Ok(TorchFile { bytes, value, storages: Storages::Archive(archive), is_little_endian })
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, TorchError> {
        // Told that nothing stands before the archive, `zip` takes its directory from where the end
        // record says. Left to find out, it tries "directory size before the end record" first, and
        // PyTorch always writes 76 bytes of ZIP64 records between the two: where the first directory
        // entry has 76 bytes as well (a name of 21 letters), it starts at the second and fails.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, Cursor::new(bytes))?;
        let mut parts = HashMap::new();
        let mut prefix = None;
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index)?;
            let name = entry.name()?.into_owned();
            let part = Part {
                index,
                start: entry.data_start().unwrap_or(u64::MAX),
                size: entry.size(),
                method: entry.compression(),
                is_encrypted: entry.encrypted(),
            };
            if let Some(found) = name.strip_suffix("data.pkl")
                && (found.is_empty() || found.ends_with('/'))
                && prefix.is_none()
            {
                prefix = Some(found.to_owned());
            }
            parts.insert(name, part);
        }
        Ok(Self { bytes, zip, prefix: prefix.unwrap_or_default(), parts })
    }

    /// The raw numbers of a storage.
    pub(super) fn storage(&self, key: &str) -> Result<Cow<'a, [u8]>, TorchError> {
        let part = self.part(&format!("data/{key}"))?;
        part.ok_or_else(|| TorchError::NoSuchStorage { key: key.to_owned() })
    }

    /// A part by its name behind the prefix; `None` if there is none.
    fn part(&self, name: &str) -> Result<Option<Cow<'a, [u8]>>, TorchError> {
        let name = format!("{}{name}", self.prefix);
        let Some(&part) = self.parts.get(&name) else { return Ok(None) };
        let problem = |problem: String| TorchError::Entry { name: name.clone(), problem };
        if part.is_encrypted {
            return Err(problem("is encrypted".into()));
        }
        match part.method {
            CompressionMethod::Stored => {
                let range = part.start.checked_add(part.size).and_then(|end| {
                    Some(usize::try_from(part.start).ok()?..usize::try_from(end).ok()?)
                });
                let bytes = range.and_then(|range| self.bytes.get(range));
                let bytes = bytes.ok_or_else(|| {
                    problem(format!("expected {} bytes, but the file ends before", part.size))
                })?;
                Ok(Some(Cow::Borrowed(bytes)))
            }
            CompressionMethod::Deflated => {
                if part.size > MAX_INFLATED {
                    return Err(problem(format!(
                        "is compressed and expected at most {MAX_INFLATED} bytes, got {}",
                        part.size
                    )));
                }
                // A copy of the directory's handle; the directory itself is shared.
                let mut zip = self.zip.clone();
                let mut inflated = Vec::new();
                let entry = zip.by_index(part.index)?;
                let read = entry.take(part.size + 1).read_to_end(&mut inflated);
                read.map_err(|error| problem(format!("cannot be inflated: {error}")))?;
                if inflated.len() as u64 != part.size {
                    return Err(problem(format!(
                        "expected {} bytes, got {}",
                        part.size,
                        inflated.len()
                    )));
                }
                Ok(Some(Cow::Owned(inflated)))
            }
            method => Err(problem(format!("has an unsupported compression `{method:?}`"))),
        }
    }
}

impl fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("prefix", &self.prefix)
            .field("n_parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}
