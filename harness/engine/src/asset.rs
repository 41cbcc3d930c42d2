//! Files that a benchmark or a user names: a path, or `embedded:NAME` for one that is part of the
//! program. Detectors and workers get a path in either case.

use std::path::{Path, PathBuf};

use oodbench_datasets::embedded;
use oodbench_record::write_atomically;

use crate::error::EngineError;
use crate::key::hash_file;

/// A file with the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    pub path: PathBuf,
    pub blake3: String,
}

/// Finds the file that `place` means. A relative path starts at `base`.
///
/// # Errors
/// A file that is not there, or a name that nothing embedded has.
pub fn resolve(place: &str, base: &Path, cache: &Path) -> Result<Asset, EngineError> {
    let Some(name) = place.strip_prefix("embedded:") else {
        let path = base.join(place);
        let blake3 = hash_file(&path).map_err(EngineError::io("read", &path))?;
        return Ok(Asset { path, blake3 });
    };
    let Some(bytes) = embedded(name) else {
        return Err(EngineError::Usage {
            what: "embedded file".to_owned(),
            expected: "one that is part of the program".to_owned(),
            got: name.to_owned(),
        });
    };
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    let file = name.replace(['/', '\\'], "-");
    let path = cache.join("embedded").join(format!("{}-{file}", &blake3[..16]));
    // The name holds the content's hash, and files appear as a whole: one that is there is right.
    if !path.is_file() {
        write_atomically(&path, bytes)?;
    }
    Ok(Asset { path, blake3 })
}
