//! A folder of images: which files count, and their pixels batch by batch.
//!
//! As in pytorch-fid it is the name that makes a file an image, and a file so named that cannot be
//! decoded is an error. Its list has formats that are not decoded here (TIFF, PGM and PPM): such
//! a file is refused, where leaving it out would change the set without a word.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use oodbench_datasets::{RgbImage, decode};
use oodbench_engine::text::chain;
use rayon::prelude::*;

use crate::exit::{Failure, SETUP};

/// What pytorch-fid takes for images; it wants small letters, which cameras do not write.
const ENDINGS: [&str; 9] = ["bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"];

/// The images of a folder in the order of their paths.
///
/// # Errors
/// A folder that cannot be listed, or without images.
pub(super) fn images_in(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>, Failure> {
    let mut images = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut has_folders = false;
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|error| Failure {
            message: format!("list `{}`: {error}", next.display()),
            hint: None,
            code: SETUP,
        })?;
        for path in entries.into_iter().map(|entry| entry.path()) {
            if path.is_dir() {
                has_folders = true;
                if recursive {
                    folders.push(path);
                }
            } else if is_image(&path) {
                images.push(path);
            }
        }
    }
    if images.is_empty() {
        let below = has_folders && !recursive;
        let hint = "images in folders below it count with `--recursive`";
        return Err(Failure {
            message: format!("read `{}`: expected images, got none", folder.display()),
            hint: below.then(|| hint.to_owned()),
            code: SETUP,
        });
    }
    images.sort();
    Ok(images)
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// Decodes files and hands them over batch by batch, in their order. The next batch is decoded
/// while the last is worked on.
///
/// # Errors
/// A file that cannot be read or decoded, or what `on_batch` says.
pub(super) fn batches(
    files: &[PathBuf],
    batch_size: usize,
    on_batch: &mut dyn FnMut(Vec<RgbImage>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            for batch in files.chunks(batch_size) {
                // Collected twice: the first file that fails is told of, not the fastest to fail.
                let images: Vec<Result<RgbImage, Failure>> =
                    batch.par_iter().map(|path| read(path)).collect();
                let images: Result<Vec<RgbImage>, Failure> = images.into_iter().collect();
                let is_last = images.is_err();
                // Nobody listens any more after an error of theirs.
                if sender.send(images).is_err() || is_last {
                    return;
                }
            }
        });
        receiver.into_iter().try_for_each(|images| on_batch(images?))
    })
}

fn read(path: &Path) -> Result<RgbImage, Failure> {
    let refused = |action: &str, reason: String| Failure {
        message: format!("{action} `{}`: {reason}", path.display()),
        hint: None,
        code: SETUP,
    };
    let bytes = std::fs::read(path).map_err(|error| refused("read", error.to_string()))?;
    decode(&bytes).map_err(|error| refused("decode", chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.png", "a.JPG", "c.txt", "d", "sub/e.webp"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        let found = |recursive| -> Vec<String> {
            let images = images_in(folder.path(), recursive).unwrap();
            let below = |path: &PathBuf| path.strip_prefix(folder.path()).unwrap().to_owned();
            images.iter().map(|path| below(path).display().to_string()).collect()
        };
        assert_eq!(found(false), ["a.JPG", "b.png"]);
        assert_eq!(found(true), ["a.JPG", "b.png", "sub/e.webp"]);
    }

    #[test]
    fn a_folder_without_images_says_where_they_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let refused = images_in(folder.path(), false).unwrap_err();
        assert!(refused.message.contains("expected images, got none") && refused.hint.is_none());
        std::fs::create_dir(folder.path().join("class_0")).unwrap();
        let refused = images_in(folder.path(), false).unwrap_err();
        assert!(refused.hint.unwrap().contains("--recursive"));
    }

    #[test]
    fn an_error_ends_the_work() {
        let files: Vec<PathBuf> = (0..9).map(|i| PathBuf::from(format!("{i}.png"))).collect();
        let refused = batches(&files, 2, &mut |_| Ok(())).unwrap_err();
        assert!(refused.message.starts_with("read `0.png`: "), "{}", refused.message);
    }
}
