//! CIFAR-10 and CIFAR-100 as their authors distribute them: binary batches or Python pickles, in a
//! folder or still in the downloaded `.tar.gz`. Which of these it is, is found out.
//!
//! A binary record is the label (CIFAR-100: coarse, then fine) and 3072 bytes, plane by plane; a
//! pickle is a dict with the same planes as an array `data` and a list of labels. The files are in
//! their official order and must have their official sizes: a batch that was cut short would
//! otherwise be a smaller data set.

use std::path::PathBuf;

use oodbench_pickle::numpy::NdArray;

use crate::archive::{Archive, Bytes};
use crate::data_dir::DataDir;
use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::source::tree::Tree;
use crate::source::{ImageSource, TrainTest};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PIXELS: usize = 3 * PLANE;

/// What distinguishes the two data sets on disk.
pub(super) struct Variant {
    title: &'static str,
    classes: u8,
    /// Bytes before the pixels of a binary record; the last one is the label.
    label_bytes: usize,
    label_key: &'static str,
    binary: Layout,
    python: Layout,
}

struct Layout {
    archive: &'static str,
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// Images in one training file; a test file has [`TEST_IMAGES`].
    train_images: usize,
}

const TEST_IMAGES: usize = 10_000;

pub(super) const CIFAR10: Variant = Variant {
    title: "CIFAR-10",
    classes: 10,
    label_bytes: 1,
    label_key: "labels",
    binary: Layout {
        archive: "cifar-10-binary.tar.gz",
        folder: "cifar-10-batches-bin",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        train_images: 10_000,
    },
    python: Layout {
        archive: "cifar-10-python.tar.gz",
        folder: "cifar-10-batches-py",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        train_images: 10_000,
    },
};

pub(super) const CIFAR100: Variant = Variant {
    title: "CIFAR-100",
    classes: 100,
    label_bytes: 2,
    label_key: "fine_labels",
    binary: Layout {
        archive: "cifar-100-binary.tar.gz",
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        train_images: 50_000,
    },
    python: Layout {
        archive: "cifar-100-python.tar.gz",
        folder: "cifar-100-python",
        train: &["train"],
        test: "test",
        train_images: 50_000,
    },
};

impl Layout {
    fn files(&self, split: TrainTest) -> Vec<String> {
        match split {
            TrainTest::Train => self.train.iter().map(|&name| name.to_owned()).collect(),
            TrainTest::Test => vec![self.test.to_owned()],
        }
    }

    fn images_per_file(&self, split: TrainTest) -> usize {
        match split {
            TrainTest::Train => self.train_images,
            TrainTest::Test => TEST_IMAGES,
        }
    }
}

pub(super) struct Cifar {
    split: &'static str,
    batches: Vec<Batch>,
    images_per_file: usize,
    labels: Vec<u8>,
    fingerprint: Fingerprint,
}

enum Batch {
    Binary(Bytes),
    Python(NdArray),
}

impl Cifar {
    pub(super) fn open(
        data: &DataDir,
        path: &str,
        variant: &Variant,
        split: TrainTest,
    ) -> Result<Self, DatasetError> {
        let (tree, is_binary) = find(data, path, variant, split)?;
        let layout = if is_binary { &variant.binary } else { &variant.python };
        let (files, images_per_file) = (layout.files(split), layout.images_per_file(split));
        let mut labels = Vec::with_capacity(files.len() * images_per_file);
        let mut batches = Vec::new();
        for name in &files {
            if !tree.has(name) {
                let what = format!("a batch of {}", variant.title);
                return Err(DatasetError::NotFound { what, looked: vec![tree.path().join(name)] });
            }
            let place = tree.path().join(name);
            let bytes = tree.map(name)?;
            let (batch, batch_labels) = if is_binary {
                read_binary(&place, bytes, variant.label_bytes, images_per_file)?
            } else {
                read_python(&place, &bytes, variant.label_key, images_per_file)?
            };
            if let Some(at) = batch_labels.iter().position(|&label| label >= variant.classes) {
                let expected = format!("labels below {}", variant.classes);
                let got = format!("{} in record {at}", batch_labels[at]);
                return Err(DatasetError::malformed(&place, expected, got));
            }
            batches.push(batch);
            labels.extend(batch_labels);
        }
        let mut parts = Fingerprinter::new("cifar/1");
        parts.bytes(variant.title.as_bytes());
        tree.stamp(&mut parts, &files)?;
        let split = match split {
            TrainTest::Train => "train",
            TrainTest::Test => "test",
        };
        Ok(Self { split, batches, images_per_file, labels, fingerprint: parts.finish() })
    }
}

impl ImageSource for Cifar {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn id(&self, index: usize) -> String {
        format!("{}/{index:05}", self.split)
    }

    fn label(&self, index: usize) -> i64 {
        self.labels[index].into()
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        let record = index % self.images_per_file;
        let planes = match &self.batches[index / self.images_per_file] {
            Batch::Binary(bytes) => {
                let size = bytes.len() / self.images_per_file;
                &bytes[(record + 1) * size - PIXELS..][..PIXELS]
            }
            Batch::Python(array) => &array.data[record * PIXELS..][..PIXELS],
        };
        let pixels = (0..PIXELS).map(|at| planes[at % 3 * PLANE + at / 3]).collect();
        Ok(RgbImage { width: SIDE as u32, height: SIDE as u32, pixels })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// The folder or archive that holds the first file of the split, and whether it is binary.
fn find(
    data: &DataDir,
    path: &str,
    variant: &Variant,
    split: TrainTest,
) -> Result<(Tree, bool), DatasetError> {
    let what = format!("{} ({})", variant.title, variant.binary.files(split)[0]);
    let root = data.resolve(path);
    let layouts = [(&variant.binary, true), (&variant.python, false)];
    let mut looked: Vec<PathBuf> = Vec::new();
    let mut trees = Vec::new();
    if root.is_dir() {
        trees.push(Tree::Folder(root.clone()));
        for (layout, _) in layouts {
            let (folder, archive) = (root.join(layout.folder), root.join(layout.archive));
            if folder.is_dir() {
                trees.push(Tree::Folder(folder));
            } else if archive.is_file() && Archive::is_named(&archive) {
                trees.push(Tree::open_archive(data, &archive)?);
            }
            looked.extend([root.join(layout.folder), archive]);
        }
    } else {
        trees.push(Tree::open(data, &what, path)?);
    }
    for tree in trees {
        for (layout, is_binary) in layouts {
            let first = &layout.files(split)[0];
            if tree.has(first) {
                return Ok((tree, is_binary));
            }
            looked.push(tree.path().join(first));
        }
    }
    Err(DatasetError::NotFound { what, looked })
}

fn read_binary(
    path: &std::path::Path,
    bytes: Bytes,
    label_bytes: usize,
    images: usize,
) -> Result<(Batch, Vec<u8>), DatasetError> {
    let record = label_bytes + PIXELS;
    if bytes.len() != images * record {
        let expected = format!("{images} records of {record} bytes ({})", images * record);
        return Err(DatasetError::malformed(path, expected, format!("{} bytes", bytes.len())));
    }
    let labels = bytes.chunks_exact(record).map(|record| record[label_bytes - 1]).collect();
    Ok((Batch::Binary(bytes), labels))
}

fn read_python(
    path: &std::path::Path,
    bytes: &[u8],
    label_key: &str,
    images: usize,
) -> Result<(Batch, Vec<u8>), DatasetError> {
    let pickle = |source| DatasetError::Pickle { path: path.to_owned(), source };
    let (value, _) = oodbench_pickle::parse(bytes).map_err(|error| pickle(error.into()))?;
    let missing = |key: &str| {
        let expected = format!("a dict with `{key}`");
        DatasetError::malformed(path, expected, value.kind())
    };
    let array = value.get("data").ok_or_else(|| missing("data"))?;
    let array = NdArray::from_value(array).map_err(|error| pickle(error.into()))?;
    if array.descr != "|u1" || array.shape != [images, PIXELS] || array.fortran_order {
        let got = format!("{} {:?}", array.descr, array.shape);
        let expected = format!("`data` of |u1 [{images}, {PIXELS}]");
        return Err(DatasetError::malformed(path, expected, got));
    }
    let listed = value.get(label_key).and_then(|labels| labels.items());
    let labels: Option<Vec<u8>> = listed
        .ok_or_else(|| missing(label_key))?
        .iter()
        .map(|label| u8::try_from(label.as_i64()?).ok())
        .collect();
    match labels {
        Some(labels) if labels.len() == images => Ok((Batch::Python(array), labels)),
        _ => {
            let expected = format!("{images} small whole numbers as `{label_key}`");
            Err(DatasetError::malformed(path, expected, "other labels"))
        }
    }
}

#[cfg(test)]
mod tests;
