//! Writing a file so that it is there as a whole or not at all.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

use crate::error::RecordError;

/// A file that is being written, beside those that are whole. Who may read it follows from the
/// umask, as with every other file, and not from its being a temporary one. The name is recognised
/// and swept away by a later run, should this one be killed.
///
/// # Errors
/// A folder that cannot be written to.
pub fn partial_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mode = Permissions::from_mode(0o666);
    Builder::new().prefix(".partial-").permissions(mode).tempfile_in(folder)
}

/// Writes `bytes` to a temporary file beside `path`, waits until they are on the disk, and renames
/// it. Creates the folder.
///
/// # Errors
/// [`RecordError::Write`]; nothing is left under `path` then, or what was there before.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(RecordError::write(folder))?;
    let mut file = partial_file(folder).map_err(RecordError::write(path))?;
    file.write_all(bytes).map_err(RecordError::write(path))?;
    file.as_file().sync_all().map_err(RecordError::write(path))?;
    file.persist(path).map_err(|error| RecordError::write(path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_as_public_as_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomically(&ours, b"x").unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
