//! OpenOOD's image lists: `cifar10/test/airplane/0298.png 0`, one image a line.
//!
//! The label is what follows the last blank, so that paths may have blanks; OpenOOD splits at the
//! first one, which no published list needs. An image is looked for
//!
//! 1. as a file below the root,
//! 2. in `<root>/cifar10.zip` (or `.tar`, `.tar.gz`, `.tgz`), and in `<root>/cifar10/cifar10.zip`,
//!    where OpenOOD's downloader puts it; under the path of the list, or without its first folder.
//!
//! All images must be there when the list is opened. In an archive that costs one look at its
//! index for each, so half a set is found out before anything is computed.

mod find;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::{Archive, is_safe};
use crate::data_dir::DataDir;
use crate::decode::{RgbImage, decode};
use crate::error::{DatasetError, ImagePlace};
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::mapped::read_small;
use crate::source::ImageSource;

pub(super) struct ImageList {
    list: PathBuf,
    root: PathBuf,
    text: String,
    images: Vec<Image>,
    archives: Vec<Arc<Archive>>,
    /// How often the same path came before, for the lines that repeat one.
    repeats: HashMap<usize, usize>,
    fingerprint: Fingerprint,
}

struct Image {
    /// Where in the text the path is.
    path: (usize, usize),
    line: usize,
    label: i64,
    /// Index of the archive and of its entry; none for a file.
    entry: Option<(usize, usize)>,
}

impl ImageList {
    pub(super) fn open(data: &DataDir, list: &str, root: &str) -> Result<Self, DatasetError> {
        let (list, root) = (data.resolve(list), data.resolve(root));
        if !list.is_file() {
            return Err(DatasetError::NotFound {
                what: "the image list".into(),
                looked: vec![list],
            });
        }
        let text = String::from_utf8(read_small(&list)?)
            .map_err(|_| DatasetError::malformed(&list, "UTF-8 text", "other bytes"))?;
        let images = parse(&list, &text)?;
        let mut parts = Fingerprinter::new("imglist/1");
        parts.bytes(text.as_bytes());
        // The same place must be the same however it was written on the command line.
        let place = root.canonicalize().unwrap_or_else(|_| root.clone());
        parts.bytes(place.as_os_str().as_encoded_bytes());
        let mut finder = find::Finder::new(data, &root);
        let images = finder.find_all(&list, &text, images, &mut parts)?;
        let archives = finder.into_archives();
        for archive in &archives {
            parts.large_file(archive.path())?;
        }
        let repeats = repeats(&text, &images);
        Ok(Self { list, root, text, images, archives, repeats, fingerprint: parts.finish() })
    }

    fn path(&self, index: usize) -> &str {
        let (start, end) = self.images[index].path;
        &self.text[start..end]
    }

    fn place(&self, index: usize) -> ImagePlace {
        let image = &self.images[index];
        let list = Some((self.list.clone(), image.line));
        let (file, entry) = match image.entry {
            Some((archive, _)) => {
                (self.archives[archive].path().to_owned(), Some(self.path(index).to_owned()))
            }
            None => (self.root.join(self.path(index)), None),
        };
        ImagePlace { file, entry, list }
    }
}

impl ImageSource for ImageList {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn id(&self, index: usize) -> String {
        match self.repeats.get(&index) {
            Some(before) => format!("{}#{}", self.path(index), before + 1),
            None => self.path(index).to_owned(),
        }
    }

    fn label(&self, index: usize) -> i64 {
        self.images[index].label
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        let decoded = match self.images[index].entry {
            Some((archive, entry)) => {
                decode(&self.archives[archive].read(entry).map_err(|source| {
                    DatasetError::ArchiveEntry { place: self.place(index), source }
                })?)
            }
            None => decode(&read_small(&self.root.join(self.path(index)))?),
        };
        decoded.map_err(|source| DatasetError::Decode { place: self.place(index), source })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

fn parse(list: &Path, text: &str) -> Result<Vec<Image>, DatasetError> {
    let mut images = Vec::new();
    let mut start = 0;
    for (number, raw) in text.split_inclusive('\n').enumerate() {
        let bad = |expected| DatasetError::ListLine {
            list: list.to_owned(),
            line: number + 1,
            expected,
            got: raw.trim_end().chars().take(200).collect(),
        };
        let content = raw.trim_end();
        if !content.is_empty() {
            let (path, label) =
                content.rsplit_once([' ', '\t']).ok_or_else(|| bad("a path and a label"))?;
            let label = label.parse().map_err(|_| bad("a whole number as label"))?;
            let path = path.trim_end();
            if !is_safe(path) {
                let entry = path.to_owned();
                return Err(DatasetError::UnsafePath { origin: list.to_owned(), entry });
            }
            let path = (start, start + path.len());
            images.push(Image { path, line: number + 1, label, entry: None });
        }
        start += raw.len();
    }
    if images.is_empty() {
        return Err(DatasetError::Empty { path: list.to_owned() });
    }
    Ok(images)
}

fn repeats(text: &str, images: &[Image]) -> HashMap<usize, usize> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(images.len());
    let mut repeats = HashMap::new();
    for (index, image) in images.iter().enumerate() {
        let count = seen.entry(&text[image.path.0..image.path.1]).or_default();
        if *count > 0 {
            repeats.insert(index, *count);
        }
        *count += 1;
    }
    repeats
}

#[cfg(test)]
mod tests {
    use crate::testing::{Scene, png, zip};

    const LIST: &str = r#"{ kind = "imglist", list = "list.txt", root = "images" }"#;

    fn scene(list: &str) -> Scene {
        let scene = Scene::new();
        scene.write("list.txt", list);
        scene.write("images/loose/one.png", png(2, 2, [1, 1, 1]));
        let entries: &[(&str, &[u8])] = &[
            ("packed/two.png", &png(2, 2, [2, 2, 2])),
            ("sub dir/three.png", &png(2, 2, [3, 3, 3])),
        ];
        scene.write("images/packed.zip", zip(true, entries));
        scene
    }

    #[test]
    fn images_are_found_as_files_and_in_archives_under_either_name() {
        let scene = scene("loose/one.png 4\npacked/two.png 5\r\n\npacked/sub dir/three.png -1\n");
        let source = scene.open(LIST).unwrap();
        assert_eq!(source.len(), 3);
        let first_pixels = [0, 1, 2].map(|index| source.read(index).unwrap().pixels[0]);
        assert_eq!(first_pixels, [1, 2, 3]);
        assert_eq!([0, 1, 2].map(|index| source.label(index)), [4, 5, -1]);
        assert_eq!(source.id(2), "packed/sub dir/three.png");
    }

    #[test]
    fn an_archive_within_the_folder_and_a_root_that_is_an_archive_are_found() {
        let scene = scene("packed/two.png 5\n");
        std::fs::create_dir(scene.path("images/packed")).unwrap();
        std::fs::rename(scene.path("images/packed.zip"), scene.path("images/packed/packed.zip"))
            .unwrap();
        assert_eq!(scene.open(LIST).unwrap().read(0).unwrap().pixels[0], 2);
        let root = r#"{ kind = "imglist", list = "list.txt", root = "images/packed/packed.zip" }"#;
        assert_eq!(scene.open(root).unwrap().read(0).unwrap().pixels[0], 2);
    }

    #[test]
    fn a_set_that_is_there_in_part_is_missing_with_numbers_and_places() {
        let scene = scene("packed/two.png 5\npacked/four.png 5\npacked/five.png 5\n");
        let error = scene.refusal(LIST);
        assert!(error.is_missing());
        assert_eq!(
            scene.text(&error),
            "find the images of `DATA/list.txt`: 1 of 3 are there; the first missing one is \
             `packed/four.png` (line 2), looked for at `DATA/images/packed/four.png`, \
             `DATA/images/packed.{zip,tar,tar.gz,tgz}`, \
             `DATA/images/packed/packed.{zip,tar,tar.gz,tgz}`"
        );
    }

    #[test]
    fn lists_that_are_malformed_are_refused() {
        let check = |list: &str, expected: &str| {
            let scene = scene(list);
            assert_eq!(scene.text(&scene.refusal(LIST)), expected);
        };
        check("", "read `DATA/list.txt`: expected at least one image, got none");
        check(
            "loose/one.png 1\nloose/one.png\n",
            "read `DATA/list.txt` line 2: expected a path and a label, got `loose/one.png`",
        );
        check(
            "loose/one.png cat\n",
            "read `DATA/list.txt` line 1: expected a whole number as label, got \
             `loose/one.png cat`",
        );
        check(
            "../one.png 1\n",
            "read `DATA/list.txt`: expected paths below its root, got `../one.png`",
        );
        let scene = Scene::new();
        let error = scene.refusal(LIST);
        assert_eq!(scene.text(&error), "find the image list: nothing at `DATA/list.txt`");
    }

    #[test]
    fn a_corrupt_image_is_named_with_archive_entry_and_line() {
        let scene = scene("packed/two.png 5\n");
        let mut bytes = png(2, 2, [2, 2, 2]);
        let end = bytes.len() - 20;
        bytes[end] ^= 0xFF;
        scene.write("images/packed.zip", zip(true, &[("packed/two.png", &bytes)]));
        let error = scene.open(LIST).unwrap().read(0).unwrap_err();
        assert_eq!(
            scene.text(&error),
            "decode `DATA/images/packed.zip` entry `packed/two.png` (`DATA/list.txt` line 1)"
        );
        assert!(std::error::Error::source(&error).unwrap().to_string().starts_with("PNG: "));
    }

    #[test]
    fn ids_are_unique_even_where_the_list_is_not() {
        let scene = scene("loose/one.png 1\npacked/two.png 1\nloose/one.png 1\n");
        let source = scene.open(LIST).unwrap();
        assert_eq!(
            [0, 1, 2].map(|i| source.id(i)),
            ["loose/one.png", "packed/two.png", "loose/one.png#2"]
        );
    }

    #[test]
    fn the_fingerprint_follows_list_label_and_content() {
        let scene = scene("packed/two.png 5\n");
        let first = scene.open(LIST).unwrap().fingerprint();
        assert_eq!(scene.open(LIST).unwrap().fingerprint(), first);
        let relabelled = LIST.replace(" }", ", label = -1 }");
        assert_ne!(scene.open(&relabelled).unwrap().fingerprint(), first);
        scene.write("list.txt", "packed/two.png 6\n");
        assert_ne!(scene.open(LIST).unwrap().fingerprint(), first);
        scene.write("list.txt", "packed/two.png 5\n");
        assert_eq!(scene.open(LIST).unwrap().fingerprint(), first);
        // An archive of the same size and time with other content.
        let archive = scene.path("images/packed.zip");
        let modified = archive.metadata().unwrap().modified().unwrap();
        let entries: &[(&str, &[u8])] = &[
            ("packed/two.png", &png(2, 2, [9, 2, 2])),
            ("sub dir/three.png", &png(2, 2, [3, 3, 3])),
        ];
        scene.write("images/packed.zip", zip(true, entries));
        let file = std::fs::File::options().write(true).open(&archive).unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(scene.open(LIST).unwrap().fingerprint(), first);
    }
}
