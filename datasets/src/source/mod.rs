//! Image sets as they lie on disk. One reader per layout, one file each; this one has what they
//! share: the trait, and the `images = { kind = "…" }` table of a benchmark file.
//!
//! Readers find images and decode them; they do not resize ([`crate::preprocess`]), and they hold
//! no pixels of their own except where a format gives no other way.

mod cifar;
mod folder;
mod glyphs;
mod idx;
mod imglist;
mod matlab;
mod svhn;
mod tiny_imagenet;
mod tree;

use serde::{Deserialize, Serialize};

use crate::data_dir::DataDir;
use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::glyphs::GlyphSet;

/// A set of labelled images, readable in any order from several threads.
pub trait ImageSource: Send + Sync {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What names the image in reports: stable, unique within the set, readable. A path of the
    /// list, or `test/00012`.
    fn id(&self, index: usize) -> String;

    /// The class, or -1 where it is out-of-distribution or unknown.
    fn label(&self, index: usize) -> i64;

    /// Decodes one image.
    ///
    /// # Errors
    /// When it cannot be read or decoded; the error says which file, entry and list line.
    fn read(&self, index: usize) -> Result<RgbImage, DatasetError>;

    /// See [`Fingerprint`].
    fn fingerprint(&self) -> Fingerprint;
}

/// Which images make up a set, and how they are stored. Paths are relative to the data directory;
/// an absolute path is taken as it is. `label` replaces every label, for sets that are
/// out-of-distribution as a whole (-1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SourceSpec {
    /// OpenOOD's lists: a line per image, `path label`, paths below `root`. An image is a file
    /// there or in an archive named like the first folder of its path.
    Imglist {
        list: String,
        root: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// A folder or archive of images: a sub-folder per class, in the order of torchvision's
    /// `ImageFolder`, or images without classes.
    Folder {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// The official CIFAR-10 files, binary or Python, unpacked or as downloaded.
    Cifar10 {
        path: String,
        split: TrainTest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// The official CIFAR-100 files, with the fine labels.
    Cifar100 {
        path: String,
        split: TrainTest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// MNIST's format, of grey images; `.gz` too.
    Idx {
        images: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        labels: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// SVHN's cropped digits, `train_32x32.mat` and the like. The label 10 is the digit 0.
    Svhn {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// Tiny ImageNet's own layout, unpacked or zipped; classes in the order of their sorted names.
    TinyImagenet {
        path: String,
        split: TrainValTest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<i64>,
    },
    /// Images that the program draws from a seed, of the embedded benchmark.
    Glyphs(GlyphSet),
}

/// The halves of CIFAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainTest {
    Train,
    Test,
}

/// The parts of Tiny ImageNet; `test` has no labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainValTest {
    Train,
    Val,
    Test,
}

impl SourceSpec {
    /// Finds the images, without decoding any.
    ///
    /// # Errors
    /// [`DatasetError::is_missing`] tells data that is not there from data that is broken.
    pub fn open(&self, data: &DataDir) -> Result<Box<dyn ImageSource>, DatasetError> {
        let (source, label): (Box<dyn ImageSource>, _) = match self {
            Self::Imglist { list, root, label } => {
                (Box::new(imglist::ImageList::open(data, list, root)?), label)
            }
            Self::Folder { path, label } => (Box::new(folder::Folder::open(data, path)?), label),
            Self::Cifar10 { path, split, label } => {
                (Box::new(cifar::Cifar::open(data, path, &cifar::CIFAR10, *split)?), label)
            }
            Self::Cifar100 { path, split, label } => {
                (Box::new(cifar::Cifar::open(data, path, &cifar::CIFAR100, *split)?), label)
            }
            Self::Idx { images, labels, label } => {
                (Box::new(idx::Idx::open(data, images, labels.as_deref())?), label)
            }
            Self::Svhn { path, label } => (Box::new(svhn::Svhn::open(data, path)?), label),
            Self::TinyImagenet { path, split, label } => {
                (Box::new(tiny_imagenet::open(data, path, *split)?), label)
            }
            Self::Glyphs(set) => (Box::new(glyphs::open(*set)?), &None),
        };
        Ok(match label {
            Some(label) => Box::new(Relabelled { source, label: *label }),
            None => source,
        })
    }
}

/// A set whose images all have one label.
pub(crate) struct Relabelled {
    pub(crate) source: Box<dyn ImageSource>,
    pub(crate) label: i64,
}

impl ImageSource for Relabelled {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn id(&self, index: usize) -> String {
        self.source.id(index)
    }

    fn label(&self, _index: usize) -> i64 {
        self.label
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        self.source.read(index)
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut parts = Fingerprinter::new("relabelled");
        parts.bytes(self.source.fingerprint().as_bytes());
        parts.number(self.label);
        parts.finish()
    }
}
