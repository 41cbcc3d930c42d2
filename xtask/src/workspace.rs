//! Where things are.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The package of the binary.
pub(crate) const BINARY: &str = "oodbench";

/// The packs that come with the binary: package, and name of the library.
pub(crate) const PACKS: &[(&str, &str)] =
    &[("oodbench-posthoc-pack", "posthoc"), ("oodbench-diffood-pack", "diffood")];

/// Packs under `plugins/` that are no members of the workspace, as those of third parties.
pub(crate) const OUT_OF_TREE: &[&str] = &["example"];

/// How cargo builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The folder below the target directory.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// This checkout, and the cargo that xtask was started by.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds.
    pub(crate) target: PathBuf,
    pub(crate) cargo: PathBuf,
    /// The folder with reference numbers.
    pub(crate) shared: PathBuf,
}

impl Workspace {
    pub(crate) fn from_env() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::new(
            root.expect("xtask lies in a folder of the workspace"),
            var("CARGO_TARGET_DIR"),
            var("OODBENCH_SHARED"),
            var("CARGO"),
        )
    }

    /// Relative paths of the environment start at the root of the workspace, where cargo and the
    /// tests are run.
    fn new(
        root: PathBuf,
        target: Option<OsString>,
        shared: Option<OsString>,
        cargo: Option<OsString>,
    ) -> Self {
        Self {
            target: root.join(target.unwrap_or_else(|| "target".into())),
            shared: root.join(shared.unwrap_or_else(|| "../shared".into())),
            cargo: cargo.unwrap_or_else(|| "cargo".into()).into(),
            root,
        }
    }

    /// The folder of the binary.
    pub(crate) fn built(&self, profile: Profile) -> PathBuf {
        self.target.join(profile.folder())
    }

    /// The binary.
    pub(crate) fn binary(&self, profile: Profile) -> PathBuf {
        self.built(profile).join(format!("{BINARY}{EXE_SUFFIX}"))
    }

    /// The folder beside the binary in which it looks for packs.
    pub(crate) fn staged_packs(&self, profile: Profile) -> PathBuf {
        self.built(profile).join("packs")
    }
}

/// The file name of a pack: `libknn.so`, `knn.dll`.
pub(crate) fn library(name: &str) -> String {
    format!("{DLL_PREFIX}{name}{DLL_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_inside_of_the_checkout_unless_the_environment_says_otherwise() {
        let workspace = Workspace::new("/repo".into(), None, None, None);
        assert_eq!(workspace.target, Path::new("/repo/target"));
        assert_eq!(workspace.shared, Path::new("/repo/../shared"));
        assert_eq!(
            workspace.staged_packs(Profile::Release),
            Path::new("/repo/target/release/packs")
        );

        let elsewhere =
            Workspace::new("/repo".into(), Some("/t".into()), Some("numbers".into()), None);
        assert_eq!(elsewhere.built(Profile::Dev), Path::new("/t/debug"));
        assert_eq!(elsewhere.shared, Path::new("/repo/numbers"));
    }

    #[test]
    fn every_pack_is_a_folder_of_this_checkout() {
        let root = Workspace::from_env().root;
        for (_, name) in PACKS {
            assert!(root.join("plugins").join(name).join("pack/Cargo.toml").is_file(), "{name}");
        }
        for name in OUT_OF_TREE {
            assert!(root.join("plugins").join(name).join("Cargo.toml").is_file(), "{name}");
        }
    }
}
