//! Archives as random access to named files: opened once, mapped, shared between sets, read from
//! several threads.
//!
//! Nothing is ever unpacked to a path that an archive names. Even so an archive with an entry that
//! is absolute or climbs out with `..` is refused as a whole: somebody made it to harm.

mod tar;
mod zip;

use std::error::Error;
use std::ops::{Deref, Range};
use std::path::{Component, Path, PathBuf};

use crate::error::DatasetError;
use crate::mapped::{SharedBytes, plausible_size};

/// The largest entry that is read. A CIFAR-100 batch is 155 MB; what deflates to more is a bomb.
const MAX_ENTRY_BYTES: u64 = 1 << 28;

/// The endings of archives, in the order in which they are looked for beside a folder's name.
pub(crate) const ENDINGS: [&str; 4] = [".zip", ".tar", ".tar.gz", ".tgz"];

type EntryError = Box<dyn Error + Send + Sync>;

pub(crate) struct Archive {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Zip(zip::Zip),
    Tar(tar::Tar),
}

impl Archive {
    /// Whether the path is named like an archive.
    pub(crate) fn is_named(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        ENDINGS.iter().any(|ending| name.ends_with(ending))
    }

    /// Opens by the name's ending. A `.tar.gz` has no index and no random access, so it is
    /// decompressed once, into a file in `scratch` that vanishes with the process.
    pub(crate) fn open(path: &Path, scratch: &Path) -> Result<Self, DatasetError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let failed = |source| DatasetError::Archive { path: path.to_owned(), source };
        let kind = if name.ends_with(".zip") {
            Kind::Zip(zip::Zip::open(SharedBytes::open(path)?).map_err(failed)?)
        } else if name.ends_with(".tar") {
            Kind::Tar(tar::Tar::open(SharedBytes::open(path)?).map_err(failed)?)
        } else {
            let packed = path.metadata().map_err(DatasetError::io("open", path))?.len();
            let bytes = SharedBytes::gunzip(path, scratch, plausible_size(packed))?;
            Kind::Tar(tar::Tar::open(bytes).map_err(failed)?)
        };
        let archive = Self { path: path.to_owned(), kind };
        let unsafe_name = archive.names().map(|(_, name)| name).find(|name| !is_safe(name));
        if let Some(entry) = unsafe_name.map(str::to_owned) {
            return Err(DatasetError::UnsafePath { origin: path.to_owned(), entry });
        }
        Ok(archive)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The index of the entry of that name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        match &self.kind {
            Kind::Zip(zip) => zip.find(name),
            Kind::Tar(tar) => tar.find(name),
        }
    }

    /// Every entry that is a file, with its index.
    pub(crate) fn names(&self) -> Box<dyn Iterator<Item = (usize, &str)> + '_> {
        match &self.kind {
            Kind::Zip(zip) => Box::new(zip.names()),
            Kind::Tar(tar) => Box::new(tar.names()),
        }
    }

    /// The bytes of one entry. [any-thread]
    pub(crate) fn read(&self, index: usize) -> Result<Bytes, EntryError> {
        match &self.kind {
            Kind::Zip(zip) => zip.read(index).map(Bytes::Owned),
            Kind::Tar(tar) => tar.read(index),
        }
    }
}

/// The content of one file: part of a mapping where that is possible.
pub(crate) enum Bytes {
    Shared(SharedBytes, Range<usize>),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes, range) => &bytes[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The path with something appended to its last part.
pub(crate) fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// All archives that stand for a folder, as one path for messages.
pub(crate) fn any_ending(stem: &Path) -> PathBuf {
    with_ending(stem, ".{zip,tar,tar.gz,tgz}")
}

/// Whether a path from a list or an archive stays below its root.
pub(crate) fn is_safe(name: &str) -> bool {
    let normal = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    !name.is_empty()
        && !name.starts_with(['/', '\\'])
        && name.split(['/', '\\']).all(|part| part != "..")
        && Path::new(name).components().all(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_out_or_are_absolute_are_unsafe() {
        for name in ["a.png", "a/b.png", "./a.png", "a..b/c...png"] {
            assert!(is_safe(name), "{name}");
        }
        for name in ["", "/a.png", "../a.png", "a/../../b.png", "a\\..\\b.png", "a/.."] {
            assert!(!is_safe(name), "{name}");
        }
    }

    use crate::testing::{Scene, gzip, tar, zip};

    const ENTRIES: [(&str, &[u8]); 2] = [("set/a.txt", b"first"), ("set/b.txt", &[7; 5000])];

    fn open(scene: &Scene, name: &str) -> Result<Archive, DatasetError> {
        Archive::open(&scene.path(name), &scene.path("scratch"))
    }

    #[test]
    fn every_kind_of_archive_gives_its_entries_to_many_threads() {
        let scene = Scene::new();
        scene.write("stored.zip", zip(false, &ENTRIES));
        scene.write("deflated.zip", zip(true, &ENTRIES));
        scene.write("plain.tar", tar(&ENTRIES));
        scene.write("packed.tar.gz", gzip(&tar(&ENTRIES)));
        for name in ["stored.zip", "deflated.zip", "plain.tar", "packed.tar.gz"] {
            let archive = open(&scene, name).unwrap();
            let names: Vec<&str> = archive.names().map(|(_, name)| name).collect();
            assert_eq!(names, ["set/a.txt", "set/b.txt"], "{name}");
            assert_eq!(archive.find("set/c.txt"), None);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for (entry, content) in ENTRIES {
                            let index = archive.find(entry).unwrap();
                            assert_eq!(&*archive.read(index).unwrap(), content);
                        }
                    });
                }
            });
        }
        assert!(crate::testing::names(&scene.path("scratch")).is_empty());
    }

    #[test]
    fn truncated_archives_are_refused() {
        let scene = Scene::new();
        for (name, whole) in [
            ("a.zip", zip(false, &ENTRIES)),
            ("a.tar", tar(&ENTRIES)),
            ("a.tar.gz", gzip(&tar(&ENTRIES))),
        ] {
            scene.write(name, &whole[..whole.len() / 3]);
            let error = open(&scene, name).err().unwrap();
            assert!(matches!(error, DatasetError::Archive { .. }), "{name}: {error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn damaged_and_lying_entries_are_refused() {
        let scene = Scene::new();
        let mut bytes = zip(false, &ENTRIES);
        let at = bytes.windows(5).position(|window| window == b"first").unwrap();
        bytes[at] ^= 1;
        scene.write("flipped.zip", &bytes);
        let archive = open(&scene, "flipped.zip").unwrap();
        assert!(archive.read(0).is_err());

        // The directory states fewer bytes than the entry inflates to.
        let mut bytes = zip(true, &[("bomb", &[0; 100_000])]);
        let size = 100_000_u32.to_le_bytes();
        while let Some(at) = bytes.windows(4).position(|window| window == size) {
            bytes[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
        }
        scene.write("bomb.zip", &bytes);
        assert!(open(&scene, "bomb.zip").unwrap().read(0).is_err());
    }

    #[test]
    fn an_archive_with_an_entry_that_climbs_out_is_refused() {
        let scene = Scene::new();
        scene.write("evil.zip", zip(false, &[("a.png", b""), ("../evil.png", b"")]));
        let error = open(&scene, "evil.zip").err().unwrap();
        assert_eq!(
            scene.text(&error),
            "read `DATA/evil.zip`: expected paths below its root, got `../evil.png`"
        );
    }
}
