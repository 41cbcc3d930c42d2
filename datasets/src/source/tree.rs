//! A folder of files and an archive of files, seen as the same thing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkdir::WalkDir;

use crate::archive::{Archive, Bytes, ENDINGS, any_ending, with_ending};
use crate::data_dir::DataDir;
use crate::decode::{RgbImage, decode};
use crate::error::{DatasetError, ImagePlace};
use crate::fingerprint::Fingerprinter;
use crate::mapped::{SharedBytes, read_small};

pub(super) enum Tree {
    Folder(PathBuf),
    /// The prefix is the one folder that holds everything, as when a folder was zipped; it ends
    /// with a slash, or is empty.
    Archive(Arc<Archive>, String),
}

impl Tree {
    /// Opens a folder, or an archive, or the archive of that folder's name beside it.
    pub(super) fn open(data: &DataDir, what: &str, path: &str) -> Result<Self, DatasetError> {
        let path = data.resolve(path);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        let mut looked = vec![path.clone()];
        let endings: &[&str] = if Archive::is_named(&path) { &[""] } else { &ENDINGS };
        for ending in endings {
            let archive = with_ending(&path, ending);
            if archive.is_file() {
                return Self::open_archive(data, &archive);
            }
        }
        if endings.len() > 1 {
            looked.push(any_ending(&path));
        }
        Err(DatasetError::NotFound { what: what.to_owned(), looked })
    }

    pub(super) fn open_archive(data: &DataDir, path: &Path) -> Result<Self, DatasetError> {
        let archive = data.archive(path)?;
        let prefix = common_folder(&archive);
        Ok(Self::Archive(archive, prefix))
    }

    /// Where it lies, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::Archive(archive, _) => archive.path(),
        }
    }

    /// Every file below, as a path with slashes, in no order that means anything.
    pub(super) fn files(&self) -> Result<Vec<String>, DatasetError> {
        match self {
            Self::Folder(root) => walk(root),
            Self::Archive(archive, prefix) => Ok(archive
                .names()
                .filter(|(_, name)| !is_clutter(name))
                .filter_map(|(_, name)| Some(name.strip_prefix(prefix.as_str())?.to_owned()))
                .collect()),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(root) => root.join(name).is_file(),
            Self::Archive(archive, prefix) => archive.find(&format!("{prefix}{name}")).is_some(),
        }
    }

    pub(super) fn place(&self, name: &str) -> ImagePlace {
        match self {
            Self::Folder(root) => ImagePlace::file(&root.join(name)),
            Self::Archive(archive, prefix) => ImagePlace {
                entry: Some(format!("{prefix}{name}")),
                ..ImagePlace::file(archive.path())
            },
        }
    }

    /// The content of a small file.
    pub(super) fn read(&self, name: &str) -> Result<Bytes, DatasetError> {
        match self {
            Self::Folder(root) => read_small(&root.join(name)).map(Bytes::Owned),
            Self::Archive(archive, prefix) => {
                let outcome = match archive.find(&format!("{prefix}{name}")) {
                    Some(index) => archive.read(index),
                    None => Err("there is no such entry".into()),
                };
                let place = || self.place(name);
                outcome.map_err(|source| DatasetError::ArchiveEntry { place: place(), source })
            }
        }
    }

    /// The content of a large file, mapped where that is possible.
    pub(super) fn map(&self, name: &str) -> Result<Bytes, DatasetError> {
        match self {
            Self::Folder(root) => {
                let bytes = SharedBytes::open(&root.join(name))?;
                let all = 0..bytes.len();
                Ok(Bytes::Shared(bytes, all))
            }
            Self::Archive(..) => self.read(name),
        }
    }

    pub(super) fn decode(&self, name: &str) -> Result<RgbImage, DatasetError> {
        decode(&self.read(name)?)
            .map_err(|source| DatasetError::Decode { place: self.place(name), source })
    }

    /// Adds the identity of the given files.
    pub(super) fn stamp(
        &self,
        parts: &mut Fingerprinter,
        names: &[String],
    ) -> Result<(), DatasetError> {
        names.iter().for_each(|name| parts.bytes(name.as_bytes()));
        match self {
            Self::Archive(archive, _) => parts.large_file(archive.path()),
            Self::Folder(root) => {
                let root = root.canonicalize().map_err(DatasetError::io("open", root))?;
                for name in names {
                    let file = root.join(name);
                    let metadata = file.metadata().map_err(DatasetError::io("open", &file))?;
                    parts.stamp(&file, &metadata);
                }
                Ok(())
            }
        }
    }
}

/// The one folder that holds everything, with a slash; nothing if there is no such folder.
fn common_folder(archive: &Archive) -> String {
    let mut names = archive.names().map(|(_, name)| name).filter(|name| !is_clutter(name));
    let first = names.next().and_then(|name| name.split_once('/'));
    match first.map(|(folder, _)| format!("{folder}/")) {
        Some(prefix) if names.all(|name| name.starts_with(&prefix)) => prefix,
        _ => String::new(),
    }
}

fn walk(root: &Path) -> Result<Vec<String>, DatasetError> {
    let mut files = Vec::new();
    for entry in WalkDir::new(root).follow_links(true) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            let action = "list";
            DatasetError::Io { action, path, source: error.into() }
        })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
        let name = parts
            .ok_or_else(|| DatasetError::malformed(entry.path(), "a UTF-8 name", "another"))?
            .join("/");
        if !is_clutter(&name) {
            files.push(name);
        }
    }
    Ok(files)
}

/// What file managers leave behind.
fn is_clutter(name: &str) -> bool {
    name.starts_with("__MACOSX/")
        || name.rsplit('/').next().is_some_and(|file| file.starts_with('.'))
}
