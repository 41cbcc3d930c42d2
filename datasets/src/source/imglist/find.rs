//! Where the images of a list are: see the order in the parent's description. Folders and archives
//! are looked for once for each first folder of a path, and archives are opened only when an image
//! is not there as a file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Image;
use crate::archive::{Archive, ENDINGS, any_ending, with_ending};
use crate::data_dir::DataDir;
use crate::error::DatasetError;
use crate::fingerprint::Fingerprinter;

/// Finds the images of a list.
pub(super) struct Finder<'a> {
    data: &'a DataDir,
    root: &'a Path,
    /// By the first folder of a path.
    homes: HashMap<String, Home>,
    archives: Vec<Arc<Archive>>,
}

/// Where images with one first folder may be.
#[derive(Clone)]
struct Home {
    has_folder: bool,
    /// Indices of the archives; opened when the first image is not found as a file.
    archives: Option<Vec<usize>>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(data: &'a DataDir, root: &'a Path) -> Self {
        Self { data, root, homes: HashMap::new(), archives: Vec::new() }
    }

    /// The archives that images were found in, or could have been; entries name them by index.
    pub(super) fn into_archives(self) -> Vec<Arc<Archive>> {
        self.archives
    }

    pub(super) fn find_all(
        &mut self,
        list: &Path,
        text: &str,
        mut images: Vec<Image>,
        parts: &mut Fingerprinter,
    ) -> Result<Vec<Image>, DatasetError> {
        let mut found = 0;
        let mut first_missing = None;
        for image in &mut images {
            let path = &text[image.path.0..image.path.1];
            match self.find(path, parts)? {
                Some(entry) => {
                    image.entry = entry;
                    found += 1;
                }
                None => {
                    first_missing.get_or_insert((path, image.line));
                }
            }
        }
        let Some((path, line)) = first_missing else { return Ok(images) };
        let mut looked = vec![self.root.join(path)];
        looked.extend(self.stems(path).iter().map(|stem| match Archive::is_named(stem) {
            true => stem.clone(),
            false => any_ending(stem),
        }));
        Err(DatasetError::MissingImages {
            list: list.to_owned(),
            found,
            expected: images.len(),
            first: path.to_owned(),
            line,
            looked,
        })
    }

    /// `Some(None)` for a file, `Some(Some(_))` for an entry of an archive.
    fn find(
        &mut self,
        path: &str,
        parts: &mut Fingerprinter,
    ) -> Result<Option<Option<(usize, usize)>>, DatasetError> {
        let first = path.split_once('/').map_or("", |(first, _)| first);
        let home = match self.homes.get(first) {
            Some(home) => home.clone(),
            None => {
                let has_folder = self.root.join(first).is_dir();
                let home = Home { has_folder, archives: None };
                self.homes.insert(first.to_owned(), home.clone());
                home
            }
        };
        if home.has_folder {
            let file = self.root.join(path);
            if let Ok(metadata) = file.metadata()
                && metadata.is_file()
            {
                parts.stamp(Path::new(path), &metadata);
                return Ok(Some(None));
            }
        }
        let archives = match home.archives {
            Some(archives) => archives,
            None => {
                let archives = self.open_archives(path)?;
                if let Some(home) = self.homes.get_mut(first) {
                    home.archives = Some(archives.clone());
                }
                archives
            }
        };
        for index in archives {
            let archive = &self.archives[index];
            let shorter = path.split_once('/').map(|(_, rest)| rest);
            let entry = archive.find(path).or_else(|| archive.find(shorter?));
            if let Some(entry) = entry {
                return Ok(Some(Some((index, entry))));
            }
        }
        Ok(None)
    }

    /// The archives that may hold a path, without their ending unless it is known.
    fn stems(&self, path: &str) -> Vec<PathBuf> {
        match path.split_once('/') {
            _ if Archive::is_named(self.root) => vec![self.root.to_owned()],
            Some((first, _)) => vec![self.root.join(first), self.root.join(first).join(first)],
            None => Vec::new(),
        }
    }

    fn open_archives(&mut self, path: &str) -> Result<Vec<usize>, DatasetError> {
        let mut indices = Vec::new();
        for stem in self.stems(path) {
            let endings: &[&str] = if Archive::is_named(&stem) { &[""] } else { &ENDINGS };
            for ending in endings {
                let candidate = with_ending(&stem, ending);
                if candidate.is_file() {
                    indices.push(self.archives.len());
                    self.archives.push(self.data.archive(&candidate)?);
                }
            }
        }
        Ok(indices)
    }
}
