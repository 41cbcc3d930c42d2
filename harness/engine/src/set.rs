//! A set as detectors meet it: what the classifier gave for its images, their labels and names,
//! and, where the run has images and not only exported features, the images.

use std::borrow::Cow;
use std::sync::Arc;

use oodbench_datasets::Pack;

use crate::bank::Bank;
use crate::error::EngineError;
use crate::job::SetFiles;

/// An open set.
#[derive(Clone)]
pub struct SetData {
    bank: Bank,
    images: Option<Arc<Pack>>,
}

impl SetData {
    /// Maps the files of a set.
    ///
    /// # Errors
    /// A file that is not whole, or files that do not belong together.
    pub fn open(files: &SetFiles) -> Result<Self, EngineError> {
        let bank = Bank::open(&files.bank)?;
        let images = match &files.pack {
            Some(path) => Some(Arc::new(Pack::open(path)?)),
            None => None,
        };
        let n = images.as_ref().map_or(bank.len(), |images| images.len());
        if n != bank.len() {
            let (expected, got) = (format!("{n} images"), bank.len().to_string());
            return Err(EngineError::Bank { path: files.bank.clone(), expected, got });
        }
        Ok(Self { bank, images })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.bank.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.bank.is_empty()
    }

    /// What the classifier gave.
    pub fn bank(&self) -> &Bank {
        &self.bank
    }

    /// The prepared images, unless all that there is was exported.
    pub fn images(&self) -> Option<&Arc<Pack>> {
        self.images.as_ref()
    }

    /// Classes of the images, -1 where there is none.
    pub fn labels(&self) -> &[i64] {
        match &self.images {
            Some(images) => images.labels(),
            None => self.bank.labels().unwrap_or_default(),
        }
    }

    /// The name of an image; of an exported row its own number, or its place.
    pub fn id(&self, index: usize) -> Cow<'_, str> {
        match (&self.images, self.bank.ids()) {
            (Some(images), _) => Cow::Borrowed(images.id(index)),
            (None, Some(ids)) => Cow::Owned(ids[index].to_string()),
            (None, None) => Cow::Owned(index.to_string()),
        }
    }
}
