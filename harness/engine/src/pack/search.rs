//! Where packs are looked for, and the catalogue of what was found.
//!
//! Places are taken in this order: what the user named, `OODBENCH_PLUGIN_PATH`, and beside the
//! binary. The environment is read by the binary alone and handed in.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::describe::{DetectorInfo, PackSummary};

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    places: Vec<(PathBuf, Origin)>,
}

/// Why a place is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user named it: `--plugin-path`. It must exist.
    Named,
    /// `OODBENCH_PLUGIN_PATH`.
    Environment,
    /// Beside the binary.
    Binary,
}

/// A file that may be a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Why it was found. One that nobody named may turn out to be something else than a pack.
    pub origin: Origin,
}

/// A search that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// A place that the user named does not exist.
    #[error("search packs in `{}`: no such file or folder", path.display())]
    Missing { path: PathBuf },
    /// A folder or a file cannot be read.
    #[error("search packs in `{}`: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
}

impl SearchPath {
    /// Files and folders that the user named, in order.
    #[must_use]
    pub fn named(mut self, places: impl IntoIterator<Item = PathBuf>) -> Self {
        self.places.extend(places.into_iter().map(|place| (place, Origin::Named)));
        self
    }

    /// The value of `OODBENCH_PLUGIN_PATH`: files and folders, separated as in `PATH`.
    #[must_use]
    pub fn environment(mut self, value: &std::ffi::OsStr) -> Self {
        let places = std::env::split_paths(value).filter(|place| !place.as_os_str().is_empty());
        self.places.extend(places.map(|place| (place, Origin::Environment)));
        self
    }

    /// The folder `packs` beside the binary; where there is none, the binary's own folder. Not
    /// both: a build folder holds packs that were built for something else, such as tests.
    #[must_use]
    pub fn beside(mut self, binary: &Path) -> Self {
        if let Some(folder) = binary.parent() {
            let packs = folder.join("packs");
            let place = if packs.is_dir() { packs } else { folder.to_owned() };
            self.places.push((place, Origin::Binary));
        }
        self
    }

    /// The files and folders that are searched, in order.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|(place, _)| place.as_path())
    }

    /// Every file that may be a pack: named files as they are, and the shared libraries of each
    /// folder in the order of their names. Of files with equal content the first is taken.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub fn candidates(&self) -> Result<Vec<Candidate>, SearchError> {
        let mut seen = HashSet::new();
        let mut candidates = Vec::new();
        for (place, origin) in &self.places {
            for path in files(place, *origin)? {
                let hash = content(&path)
                    .map_err(|source| SearchError::Unreadable { path: path.clone(), source })?;
                if seen.insert(hash) {
                    candidates.push(Candidate { path, origin: *origin });
                }
            }
        }
        Ok(candidates)
    }
}

fn files(place: &Path, origin: Origin) -> Result<Vec<PathBuf>, SearchError> {
    let unreadable = |source| SearchError::Unreadable { path: place.to_owned(), source };
    if place.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    if !place.is_dir() {
        return match origin {
            Origin::Named => Err(SearchError::Missing { path: place.to_owned() }),
            _ => Ok(Vec::new()),
        };
    }
    let mut files = Vec::new();
    for entry in place.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|ext| ext == std::env::consts::DLL_EXTENSION)
            && path.is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn content(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize())
}

/// All packs that were found, whose detectors have different ids.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    packs: Vec<PackSummary>,
    /// Pack and place in it, by id.
    by_id: BTreeMap<String, (usize, usize)>,
}

/// A detector that is there twice, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// Two packs export the same id.
    #[error("detector `{id}` is exported by two packs: `{}` and `{}`", first.display(), second.display())]
    Twice { id: String, first: PathBuf, second: PathBuf },
    /// No pack exports it.
    #[error("unknown detector `{id}`{}", similar.as_ref().map_or_else(String::new, |id| format!(", did you mean `{id}`?")))]
    Unknown { id: String, similar: Option<String> },
}

impl CatalogueError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Twice { .. } => "take one of the two out of the search path",
            Self::Unknown { .. } => {
                "`oodbench plugin list` shows every detector and where packs are looked for"
            }
        };
        hint.to_owned()
    }
}

impl Catalogue {
    /// The catalogue of these packs.
    ///
    /// # Errors
    /// [`CatalogueError::Twice`]
    pub fn new(packs: Vec<PackSummary>) -> Result<Self, CatalogueError> {
        let mut by_id = BTreeMap::new();
        for (p, pack) in packs.iter().enumerate() {
            for (d, detector) in pack.detectors.iter().enumerate() {
                if let Some((first, _)) = by_id.insert(detector.id.clone(), (p, d)) {
                    let first: &PackSummary = &packs[first];
                    return Err(CatalogueError::Twice {
                        id: detector.id.clone(),
                        first: first.path.clone(),
                        second: pack.path.clone(),
                    });
                }
            }
        }
        Ok(Self { packs, by_id })
    }

    /// The packs in the order in which they were found.
    pub fn packs(&self) -> &[PackSummary] {
        &self.packs
    }

    /// Every detector with its pack, in the order of the packs.
    pub fn detectors(&self) -> impl Iterator<Item = (&PackSummary, &DetectorInfo)> {
        self.packs
            .iter()
            .flat_map(|pack| pack.detectors.iter().map(move |detector| (pack, detector)))
    }

    /// The detector with this id, and its pack.
    ///
    /// # Errors
    /// [`CatalogueError::Unknown`], with the most similar id if there is one.
    pub fn find(&self, id: &str) -> Result<(&PackSummary, &DetectorInfo), CatalogueError> {
        match self.by_id.get(id) {
            Some(&(p, d)) => Ok((&self.packs[p], &self.packs[p].detectors[d])),
            None => {
                let similar = most_similar(id, self.by_id.keys().map(String::as_str));
                Err(CatalogueError::Unknown { id: id.to_owned(), similar: similar.map(Into::into) })
            }
        }
    }
}

/// The name that `typed` may have been meant for.
fn most_similar<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this two names have little in common.
    const SIMILAR: f64 = 0.7;
    let typed = typed.to_lowercase().replace('_', "-");
    names
        .map(|name| (strsim::jaro_winkler(&typed, name), name))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use oodbench_abi::{Example, Needs};

    use super::*;

    fn pack(path: &str, ids: &[&str]) -> PackSummary {
        let detector = |id: &&str| DetectorInfo {
            id: (*id).to_owned(),
            title: String::new(),
            family: String::new(),
            summary: String::new(),
            paper: String::new(),
            year: 0,
            url: String::new(),
            needs: Needs::LOGITS,
            params: Vec::new(),
            deterministic: true,
            companion_of: String::new(),
            example: Example::default(),
        };
        PackSummary {
            name: path.to_owned(),
            version: "1.0.0".to_owned(),
            sdk_version: "1.0.0".to_owned(),
            path: path.into(),
            built_for: "CPU".to_owned(),
            blake3: String::new(),
            detectors: ids.iter().map(detector).collect(),
        }
    }

    #[test]
    fn unknown_detectors_come_with_the_most_similar_one() {
        let catalogue =
            Catalogue::new(vec![pack("a.so", &["msp", "react"]), pack("b.so", &["knn"])]).unwrap();
        assert_eq!(catalogue.find("knn").unwrap().0.name, "b.so");
        let text = |id: &str| catalogue.find(id).unwrap_err().to_string();
        assert_eq!(text("raect"), "unknown detector `raect`, did you mean `react`?");
        assert_eq!(text("KNN"), "unknown detector `KNN`, did you mean `knn`?");
        assert_eq!(text("zzz"), "unknown detector `zzz`");
    }

    #[test]
    fn an_id_in_two_packs_names_both() {
        let err = Catalogue::new(vec![pack("a.so", &["msp"]), pack("b.so", &["knn", "msp"])]);
        assert_eq!(
            err.unwrap_err().to_string(),
            "detector `msp` is exported by two packs: `a.so` and `b.so`"
        );
    }

    #[test]
    fn a_summary_survives_its_json() {
        let pack = pack("a.so", &["msp", "react"]);
        let json = serde_json::to_string(&pack).unwrap();
        assert_eq!(serde_json::from_str::<PackSummary>(&json).unwrap(), pack);
    }

    #[test]
    fn equal_files_are_found_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            path
        };
        let library = |stem: &str| format!("{stem}.{}", std::env::consts::DLL_EXTENSION);
        let b = file(&library("one/b"), "b");
        let a = file(&library("one/a"), "a");
        file("one/notes.txt", "words");
        file(&library("two/copy-of-a"), "a");
        let c = file("two/named.anything", "c");
        let one = folder.path().join("one");
        let environment =
            std::env::join_paths([folder.path().join("two"), "/no/such".into()]).unwrap();
        let search = SearchPath::default().named([c.clone(), one]).environment(&environment);
        let found: Vec<_> = search.candidates().unwrap().into_iter().map(|c| c.path).collect();
        assert_eq!(found, [c, a, b]);
        assert_eq!(search.places().count(), 4);
    }

    #[test]
    fn a_named_place_must_exist() {
        let search = SearchPath::default().named([PathBuf::from("/no/such")]);
        let err = search.candidates().unwrap_err();
        assert_eq!(err.to_string(), "search packs in `/no/such`: no such file or folder");
    }

    #[test]
    fn staged_packs_are_preferred_to_the_build_folder() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("oodbench");
        let place = || SearchPath::default().beside(&binary).places().next().unwrap().to_owned();
        assert_eq!(place(), folder.path());
        std::fs::create_dir(folder.path().join("packs")).unwrap();
        assert_eq!(place(), folder.path().join("packs"));
    }
}
