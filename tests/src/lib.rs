//! Black-box tests of the binary, golden tests and fixtures.

pub mod binary;
pub mod goldens;
pub mod network;

use std::path::{Path, PathBuf};

/// The folder with the goldens and the real data: `$OODBENCH_SHARED`, else `../shared`. A relative path
/// starts at the root of the workspace, wherever the tests are run.
///
/// # Panics
///
/// When there is no such folder: a golden test that cannot read its goldens has failed.
pub fn shared() -> PathBuf {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let folder = std::env::var_os("OODBENCH_SHARED").unwrap_or_else(|| "../shared".into());
    let folder = workspace.join(folder);
    assert!(
        folder.is_dir(),
        "no goldens at `{}`\n\nhint: set OODBENCH_SHARED to the folder that holds `golden`",
        folder.display()
    );
    folder
}
