//! Why a pack is refused: one line for the user, a remedy, and what only `-v` shows.

use std::path::PathBuf;

/// A pack that was refused. Checks run in the order of the variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// There is nothing at this path.
    #[error("load pack `{}`: no such file", path.display())]
    Missing { path: PathBuf },
    /// The file cannot be read.
    #[error("load pack `{}`: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// The first bytes are not those of a shared library for this machine.
    #[error("load pack `{}`: expected {expected}, got {got}", path.display())]
    NotALibrary { path: PathBuf, expected: String, got: String },
    /// The system's loader refused it.
    #[error("load pack `{}`: {reason}", path.display())]
    Open { path: PathBuf, reason: String },
    /// A shared library, but not one of ours.
    #[error("load pack `{}`: this shared library is not an oodbench pack", path.display())]
    NotAPack { path: PathBuf },
    /// Built against another version of the ABI.
    #[error("load pack `{}`: built for ABI epoch {got}, this host speaks {expected}", path.display())]
    Epoch { path: PathBuf, expected: u32, got: u32 },
    /// The epoch is right, but the types behind it are not.
    #[error("load pack `{}`: built for ABI epoch {epoch}, but {problem}", path.display())]
    Layout { path: PathBuf, epoch: u32, problem: &'static str, details: String },
    /// The descriptors do not say what they must.
    #[error("read the descriptors of pack `{}`: {problem}", path.display())]
    Descriptors { path: PathBuf, problem: String },
}

impl PackError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing { .. } | Self::Unreadable { .. } => return None,
            Self::NotALibrary { .. } => {
                "a pack is built with `cargo build` from a crate of `crate-type = [\"cdylib\"]`"
            }
            Self::Open { reason, .. } if reason.contains("libcuda.so") => {
                "this is a CUDA build of the pack: install the NVIDIA driver, or take its CPU build"
            }
            Self::Open { reason, .. } if reason.contains("cannot open shared object file") => {
                "install the library that it needs, or put its folder into LD_LIBRARY_PATH"
            }
            Self::Open { .. } => "`ldd -r` on the file shows what the system's loader misses",
            Self::NotAPack { .. } => {
                "a pack has one line `oodbench_sdk::export_pack!(…);`, in a crate of `crate-type = [\"cdylib\"]`"
            }
            Self::Epoch { expected, got, .. } if got > expected => {
                "update oodbench, or build the pack with the `oodbench-sdk` of this version"
            }
            Self::Epoch { .. } => "build the pack again with the `oodbench-sdk` of this version",
            Self::Layout { .. } => {
                "build the pack again with the `oodbench-sdk` of this version; `-v` shows the types that differ"
            }
            Self::Descriptors { .. } => "`oodbench plugin check` says more",
        };
        Some(hint.to_owned())
    }

    /// What is too long for everybody: the layouts that differ.
    pub fn details(&self) -> Option<&str> {
        match self {
            Self::Layout { details, .. } => Some(details),
            _ => None,
        }
    }

    /// Whether the file is something else than a pack, as opposed to a pack that is broken. A
    /// search among files that nobody named passes over the former.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::NotALibrary { .. } | Self::NotAPack { .. })
    }
}
