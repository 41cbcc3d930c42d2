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
    /// The list of the user's own plugins; see [`crate::own`].
    pub(crate) own: PathBuf,
    /// What is built for use.
    pub(crate) profile: Profile,
}

impl Workspace {
    pub(crate) fn from_env() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::new(
            root.expect("xtask lies in a folder of the workspace"),
            var("CARGO_TARGET_DIR"),
            var("OODBENCH_SHARED"),
            var("OODBENCH_OWN_PLUGINS"),
            var("CARGO"),
        )
    }

    /// Relative paths of the environment start at the root of the workspace, where cargo and the
    /// tests are run.
    fn new(
        root: PathBuf,
        target: Option<OsString>,
        shared: Option<OsString>,
        own: Option<OsString>,
        cargo: Option<OsString>,
    ) -> Self {
        Self {
            target: root.join(target.unwrap_or_else(|| "target".into())),
            shared: root.join(shared.unwrap_or_else(|| "../shared".into())),
            own: root.join(own.unwrap_or_else(|| "plugins/own.txt".into())),
            cargo: cargo.unwrap_or_else(|| "cargo".into()).into(),
            profile: Profile::Release,
            root,
        }
    }

    /// A checkout for tests that start nothing.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self { cargo: "cargo".into(), ..Self::new("/repo".into(), None, None, None, None) }
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

    /// Where packs outside of the workspace are compiled, all of them, so that what they have in
    /// common is compiled once. Apart from the rest, because `cargo clean` in the folder of such a
    /// pack clears it.
    pub(crate) fn own_builds(&self) -> PathBuf {
        self.target.join("own")
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
        let workspace = Workspace::new("/repo".into(), None, None, None, None);
        assert_eq!(workspace.target, Path::new("/repo/target"));
        assert_eq!(workspace.shared, Path::new("/repo/../shared"));
        assert_eq!(
            workspace.staged_packs(Profile::Release),
            Path::new("/repo/target/release/packs")
        );

        let [target, shared, own] = ["/t", "numbers", "/lists/own"].map(|path| Some(path.into()));
        let elsewhere = Workspace::new("/repo".into(), target, shared, own, None);
        assert_eq!(elsewhere.built(Profile::Dev), Path::new("/t/debug"));
        assert_eq!(elsewhere.shared, Path::new("/repo/numbers"));
        assert_eq!(elsewhere.own, Path::new("/lists/own"));
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
