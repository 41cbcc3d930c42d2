//! Exported features: what a classifier gave for each image of a benchmark, in files that another
//! program wrote, so that detectors can be compared on any network without its code being here.
//!
//! ```text
//! FOLDER/train, val, test, ood_val     .safetensors or .npz with
//! FOLDER/near/NAME, far/NAME               features [N, D], logits [N, K], labels [N]
//! FOLDER/csid/NAME
//! FOLDER/head                              weight [K, D], bias [K]
//! ```
//!
//! `test` and a set in `near` or `far` are necessary, and in each file `features` or `logits`. Here
//! the files are found, and everything but the numbers is checked; [`convert()`] puts those into the
//! feature bank, where detectors meet them.

mod convert;
mod error;
mod file;
mod find;
mod head;
mod set;

use std::path::{Path, PathBuf};

use oodbench_datasets::Role;

use crate::bank::HeadFile;

pub(crate) use convert::{content, convert};
pub use error::FeaturesError;
pub(crate) use find::file_of;
pub(crate) use head::disagreement;
pub(crate) use set::Exported;

/// The tensors that have a meaning, in one file or another.
const KNOWN: [&str; 6] = ["features", "logits", "labels", "ids", "weight", "bias"];

/// A folder whose files have been found and whose headers go together.
#[derive(Clone, Debug)]
pub(crate) struct FeatureFolder {
    pub(crate) path: PathBuf,
    /// Train, val, ood_val, test; then near, far and csid sets by name.
    pub(crate) sets: Vec<Exported>,
    pub(crate) head: Option<HeadFile>,
    /// Classes of the classifier. Without logits and a head, as many as the labels show.
    pub(crate) n_classes: usize,
    /// 0 where there are no features.
    pub(crate) n_features: usize,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

impl FeatureFolder {
    /// Finds the files and checks their headers and labels.
    ///
    /// # Errors
    /// Anything that would keep a detector from getting what the layout promises; see
    /// [`FeaturesError`].
    pub(crate) fn open(path: &Path) -> Result<Self, FeaturesError> {
        let mut warnings = Vec::new();
        let found = find::find(path, &mut warnings)?;
        let mut sizes = set::Sizes::default();
        let head = match &found.head {
            Some(path) => Some(head::read(path, &mut sizes, &mut warnings)?),
            None => None,
        };
        let mut sets = Vec::new();
        for (role, name, path) in found.sets {
            sets.push(Exported::open(role, name, &path, &mut sizes, &mut warnings)?);
        }
        for set in &mut sets {
            set.computes_logits = !set.has_logits && set.has_features && head.is_some();
        }
        let seen = sets.iter().filter_map(Exported::greatest_label).max();
        let n_classes = sizes.classes().or(seen.map(|label| label + 1)).unwrap_or(0);
        for set in &sets {
            set.check_labels(n_classes)?;
        }
        let n_features = sizes.features().unwrap_or(0);
        Ok(Self { path: path.to_owned(), sets, head, n_classes, n_features, warnings })
    }

    /// What the folder is called.
    pub(crate) fn name(&self) -> String {
        folder_name(&self.path)
    }

    /// The file of a set, from the folder on.
    pub(crate) fn relative<'a>(&self, set: &'a Exported) -> std::path::Display<'a> {
        set.path().strip_prefix(&self.path).unwrap_or(set.path()).display()
    }

    pub(crate) fn of_role(&self, role: Role) -> Option<&Exported> {
        self.sets.iter().find(|set| set.role == role)
    }
}

/// The last part of a path, with what it stands for where that is `.` or the like.
pub(crate) fn folder_name(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().or(whole.file_name()).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
