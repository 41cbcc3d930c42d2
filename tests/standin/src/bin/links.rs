//! `standin-links FOLDER`: makes a folder in which the dynamic loader finds the stand-in under the
//! names of NVIDIA's libraries.

use std::io;
use std::path::{Path, PathBuf};

/// The names under which programs look for the libraries.
const NAMES: &[&str] = &[
    "libcuda.so.1",
    "libcuda.so",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcurand.so.10",
    "libnccl.so.2",
    "libnvrtc.so.13",
];

#[cfg(unix)]
fn link(folder: &Path, library: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for name in NAMES {
        let link = folder.join(name);
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::os::unix::fs::symlink(library, &link)?,
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn link(_folder: &Path, _library: &Path) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("{NAMES:?} are names of Linux")))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("usage: standin-links FOLDER")?.into();
    let program = std::env::current_exe()?;
    let library = program.with_file_name("liboodbench_standin.so");
    if !library.is_file() {
        return Err(format!("`{}` expected beside this program", library.display()).into());
    }
    Ok(link(&folder, &library)?)
}
