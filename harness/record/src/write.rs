//! Writing a file so that it is there as a whole or not at all.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::Builder;

use crate::error::RecordError;

/// Writes `bytes` to a temporary file beside `path`, waits until they are on the disk, and renames
/// it. Creates the folder.
///
/// # Errors
/// [`RecordError::Write`]; nothing is left under `path` then, or what was there before.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(RecordError::write(folder))?;
    // The name is recognised and swept away by the next run, should this one be killed here.
    let mut file =
        Builder::new().prefix(".partial-").tempfile_in(folder).map_err(RecordError::write(path))?;
    file.write_all(bytes).map_err(RecordError::write(path))?;
    file.as_file().sync_all().map_err(RecordError::write(path))?;
    file.persist(path).map_err(|error| RecordError::write(path)(error.error))?;
    Ok(())
}
