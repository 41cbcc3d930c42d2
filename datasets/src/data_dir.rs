//! The directory that `--data` names, and the archives that were opened in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::archive::Archive;
use crate::error::DatasetError;

/// Where data lies. Shared by all sets of a run, so that an archive is opened once for all of
/// them.
pub struct DataDir {
    root: PathBuf,
    scratch: PathBuf,
    archives: Mutex<HashMap<PathBuf, Arc<Archive>>>,
}

impl DataDir {
    /// `scratch` is a folder, on a disk and not in memory, where compressed files without random
    /// access (`.tar.gz`, `.gz`) are decompressed. What is put there has no name and vanishes with
    /// the process. It is created when it is needed.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), scratch: scratch.into(), archives: Mutex::default() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place that a path of a benchmark file means. An absolute one is taken as it is.
    #[must_use]
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub(crate) fn archive(&self, path: &Path) -> Result<Arc<Archive>, DatasetError> {
        // The lock is held while opening: two sets that share an archive wait for one index.
        let mut archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = archives.get(path) {
            return Ok(Arc::clone(archive));
        }
        let archive = Arc::new(Archive::open(path, &self.scratch)?);
        archives.insert(path.to_owned(), Arc::clone(&archive));
        Ok(archive)
    }
}
