//! Tiny ImageNet as it is distributed: `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` with
//! `val/val_annotations.txt`, `test/images/*.JPEG` without labels; unpacked or in its zip.
//!
//! Classes are numbered in the order of their sorted names, which is what `ImageFolder` gives on
//! the training part, and not in the order of `wnids.txt`.

use std::collections::HashMap;

use crate::data_dir::DataDir;
use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::source::tree::Tree;
use crate::source::{ImageSource, TrainValTest};

pub(super) struct TinyImagenet {
    tree: Tree,
    files: Vec<String>,
    labels: Vec<i64>,
    fingerprint: Fingerprint,
}

pub(super) fn open(
    data: &DataDir,
    path: &str,
    split: TrainValTest,
) -> Result<TinyImagenet, DatasetError> {
    let tree = Tree::open(data, "Tiny ImageNet", path)?;
    let wnids = read_text(&tree, "wnids.txt")?;
    let mut classes: Vec<&str> = wnids.split_whitespace().collect();
    classes.sort_unstable();
    let number = |class: &str| {
        classes.binary_search(&class).map(|index| index as i64).map_err(|_| {
            let expected = "classes of `wnids.txt`";
            DatasetError::malformed(tree.path(), expected, format!("`{class}`"))
        })
    };
    let prefix = match split {
        TrainValTest::Train => "train/",
        TrainValTest::Val => "val/images/",
        TrainValTest::Test => "test/images/",
    };
    let mut files = tree.files()?;
    files.retain(|name| name.starts_with(prefix) && name.to_lowercase().ends_with(".jpeg"));
    files.sort_unstable();
    if files.is_empty() {
        return Err(DatasetError::NotFound {
            what: "images of Tiny ImageNet".into(),
            looked: vec![tree.path().join(prefix)],
        });
    }
    let labels = match split {
        TrainValTest::Train => files
            .iter()
            .map(|name| number(name.split('/').nth(1).unwrap_or_default()))
            .collect::<Result<_, _>>()?,
        TrainValTest::Val => {
            let table = read_text(&tree, "val/val_annotations.txt")?;
            let by_file: HashMap<&str, &str> = table.lines().filter_map(annotation).collect();
            let class_of = |name: &String| {
                let file = name.strip_prefix(prefix).unwrap_or(name);
                let class = by_file.get(file).ok_or_else(|| {
                    let expected = format!("a line for `{file}` in `val_annotations.txt`");
                    DatasetError::malformed(tree.path(), expected, "none")
                })?;
                number(class)
            };
            files.iter().map(class_of).collect::<Result<_, _>>()?
        }
        TrainValTest::Test => vec![-1; files.len()],
    };
    let mut parts = Fingerprinter::new("tiny-imagenet/1");
    labels.iter().for_each(|&label| parts.number(label));
    tree.stamp(&mut parts, &files)?;
    Ok(TinyImagenet { tree, files, labels, fingerprint: parts.finish() })
}

/// File and class of one line; the rest is a bounding box.
fn annotation(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split_whitespace();
    Some((fields.next()?, fields.next()?))
}

fn read_text(tree: &Tree, name: &str) -> Result<String, DatasetError> {
    if !tree.has(name) {
        let what = format!("`{name}` of Tiny ImageNet");
        return Err(DatasetError::NotFound { what, looked: vec![tree.path().join(name)] });
    }
    let bytes = tree.read(name)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| DatasetError::malformed(tree.path(), "UTF-8 text", "other bytes"))?;
    Ok(text.to_owned())
}

impl ImageSource for TinyImagenet {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn id(&self, index: usize) -> String {
        self.files[index].clone()
    }

    fn label(&self, index: usize) -> i64 {
        self.labels[index]
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        self.tree.decode(&self.files[index])
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Scene, png, zip};

    fn spec(split: &str) -> String {
        format!(r#"{{ kind = "tiny-imagenet", path = "tiny-imagenet-200", split = "{split}" }}"#)
    }

    #[test]
    fn every_part_is_read_with_classes_in_sorted_order() {
        let scene = Scene::new();
        let image = png(1, 1, [8; 3]);
        let table = "val_0.JPEG\tn02\t0\t1\t2\t3\nval_1.JPEG\tn01\t0\t1\t2\t3\n";
        let entries: &[(&str, &[u8])] = &[
            ("tiny-imagenet-200/wnids.txt", b"n02\nn01\n"),
            ("tiny-imagenet-200/train/n02/images/n02_0.JPEG", &image),
            ("tiny-imagenet-200/train/n01/images/n01_0.JPEG", &image),
            ("tiny-imagenet-200/train/n01/n01_boxes.txt", b""),
            ("tiny-imagenet-200/val/images/val_0.JPEG", &image),
            ("tiny-imagenet-200/val/images/val_1.JPEG", &image),
            ("tiny-imagenet-200/val/val_annotations.txt", table.as_bytes()),
            ("tiny-imagenet-200/test/images/test_0.JPEG", &image),
        ];
        let check = |expected: [&[(&str, i64)]; 3]| {
            for (split, expected) in ["train", "val", "test"].into_iter().zip(expected) {
                let source = scene.open(&spec(split)).unwrap();
                let seen: Vec<_> =
                    (0..source.len()).map(|i| (source.id(i), source.label(i))).collect();
                let expected: Vec<_> =
                    expected.iter().map(|(id, label)| (id.to_string(), *label)).collect();
                assert_eq!(seen, expected);
                assert_eq!(source.read(0).unwrap().pixels, [8; 3]);
            }
        };
        let expected: [&[(&str, i64)]; 3] = [
            &[("train/n01/images/n01_0.JPEG", 0), ("train/n02/images/n02_0.JPEG", 1)],
            &[("val/images/val_0.JPEG", 1), ("val/images/val_1.JPEG", 0)],
            &[("test/images/test_0.JPEG", -1)],
        ];
        scene.write("tiny-imagenet-200.zip", zip(true, entries));
        check(expected);
        std::fs::remove_file(scene.path("tiny-imagenet-200.zip")).unwrap();
        entries.iter().for_each(|(name, content)| drop(scene.write(name, content)));
        check(expected);

        scene.write("tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG\tn02\n");
        assert_eq!(
            scene.text(&scene.refusal(&spec("val"))),
            "read `DATA/tiny-imagenet-200`: expected a line for `val_1.JPEG` in \
             `val_annotations.txt`, got none"
        );
    }
}
