//! A folder, or an archive, of image files.
//!
//! With sub-folders each is a class, numbered in the order of their names, and the images come in
//! the order of torchvision's `ImageFolder`; images beside the sub-folders are ignored, as there.
//! Without sub-folders the images have no class (-1) and come in the order of their names.

use crate::data_dir::DataDir;
use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::source::ImageSource;
use crate::source::tree::Tree;

/// Files that are taken for images. The content decides what they are.
const IMAGE_ENDINGS: [&str; 6] = [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"];

pub(super) struct Folder {
    tree: Tree,
    files: Vec<String>,
    labels: Vec<i64>,
    fingerprint: Fingerprint,
}

impl Folder {
    pub(super) fn open(data: &DataDir, path: &str) -> Result<Self, DatasetError> {
        let tree = Tree::open(data, "the image folder", path)?;
        let mut files = tree.files()?;
        files.retain(|name| is_image(name));
        let nested = files.iter().any(|name| name.contains('/'));
        if nested {
            files.retain(|name| name.contains('/'));
        }
        if files.is_empty() {
            return Err(DatasetError::Empty { path: tree.path().to_owned() });
        }
        files.sort_by(|a, b| order(a).cmp(&order(b)));
        let mut classes: Vec<&str> = files.iter().filter_map(|name| class(name)).collect();
        classes.sort_unstable();
        classes.dedup();
        let number = |name: &String| match class(name) {
            Some(class) => classes.binary_search(&class).map_or(-1, |index| index as i64),
            None => -1,
        };
        let labels = files.iter().map(number).collect();
        let mut parts = Fingerprinter::new("folder/1");
        tree.stamp(&mut parts, &files)?;
        Ok(Self { tree, files, labels, fingerprint: parts.finish() })
    }
}

impl ImageSource for Folder {
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

fn is_image(name: &str) -> bool {
    let name = name.to_lowercase();
    IMAGE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn class(name: &str) -> Option<&str> {
    name.split_once('/').map(|(class, _)| class)
}

/// `ImageFolder` goes through the classes, in each through the folders in the order of their whole
/// path, and in those through the files.
fn order(name: &str) -> (&str, &str, &str) {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    (class(name).unwrap_or(""), folder, file)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Scene, png, zip};

    const FOLDER: &str = r#"{ kind = "folder", path = "set" }"#;

    fn seen(scene: &Scene) -> Vec<(String, i64)> {
        let source = scene.open(FOLDER).unwrap();
        (0..source.len()).map(|index| (source.id(index), source.label(index))).collect()
    }

    #[test]
    fn sub_folders_are_classes_in_the_order_of_image_folder() {
        let scene = Scene::new();
        for name in ["b/z.png", "b/a/deep.png", "a/2.PNG", "a/10.jpg", "top.png", "b/notes.txt"] {
            scene.write(&format!("set/{name}"), png(1, 1, [0; 3]));
        }
        let expected = [("a/10.jpg", 0), ("a/2.PNG", 0), ("b/z.png", 1), ("b/a/deep.png", 1)];
        assert_eq!(seen(&scene), expected.map(|(name, label)| (name.to_owned(), label)));
    }

    #[test]
    fn images_without_sub_folders_have_no_class() {
        let scene = Scene::new();
        for name in ["b.png", "a.png", ".hidden.png"] {
            scene.write(&format!("set/{name}"), png(1, 1, [0; 3]));
        }
        assert_eq!(seen(&scene), [("a.png".to_owned(), -1), ("b.png".to_owned(), -1)]);
    }

    #[test]
    fn an_archive_stands_for_the_folder_that_was_packed() {
        let scene = Scene::new();
        let image = png(1, 1, [8; 3]);
        let entries: &[(&str, &[u8])] = &[
            ("set/cat/1.png", &image),
            ("set/ape/1.png", &image),
            ("__MACOSX/set/cat/._1.png", b"clutter"),
        ];
        scene.write("set.zip", zip(true, entries));
        assert_eq!(seen(&scene), [("ape/1.png".to_owned(), 0), ("cat/1.png".to_owned(), 1)]);
        assert_eq!(scene.open(FOLDER).unwrap().read(1).unwrap().pixels, [8; 3]);
    }

    #[test]
    fn empty_and_missing_folders_are_told_apart() {
        let scene = Scene::new();
        let error = scene.refusal(FOLDER);
        assert!(error.is_missing());
        assert_eq!(
            scene.text(&error),
            "find the image folder: nothing at `DATA/set`, `DATA/set.{zip,tar,tar.gz,tgz}`"
        );
        scene.write("set/readme.txt", "nothing here");
        let error = scene.refusal(FOLDER);
        assert!(!error.is_missing());
        assert_eq!(scene.text(&error), "read `DATA/set`: expected at least one image, got none");
    }
}
