//! The images of [`crate::glyphs`], which the program draws, as a source like any other.

use std::path::Path;

use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::glyphs::{GlyphSet, IMAGE_SIDE, VERSION};
use crate::source::ImageSource;

/// More than anyone draws; a slip of the keyboard would fill the disk.
const MAX_IMAGES: usize = 10_000_000;

pub(super) fn open(set: GlyphSet) -> Result<GlyphSet, DatasetError> {
    if (1..=MAX_IMAGES).contains(&set.count) {
        return Ok(set);
    }
    let expected = format!("`count` from 1 to {MAX_IMAGES}");
    Err(DatasetError::malformed(Path::new("glyphs"), expected, set.count.to_string()))
}

impl ImageSource for GlyphSet {
    fn len(&self) -> usize {
        self.count
    }

    fn id(&self, index: usize) -> String {
        Self::id(self, index)
    }

    fn label(&self, index: usize) -> i64 {
        Self::label(self, index)
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        Ok(RgbImage { width: IMAGE_SIDE, height: IMAGE_SIDE, pixels: self.pixels(index) })
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut parts = Fingerprinter::new(VERSION);
        parts.bytes(format!("{:?}", self.part).as_bytes());
        parts.number(self.count as i64);
        parts.finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Scene;

    #[test]
    fn drawn_images_are_a_source_without_files() {
        let scene = Scene::new();
        let open = |count: u32| {
            let images = format!(r#"{{ kind = "glyphs", part = "digits-test", count = {count} }}"#);
            scene.open(&images)
        };
        let source = open(12).unwrap();
        assert_eq!((source.len(), source.label(11)), (12, 1));
        let image = source.read(11).unwrap();
        assert_eq!(image.pixels.len(), (image.width * image.height * 3) as usize);
        assert_ne!(source.fingerprint(), open(13).unwrap().fingerprint());
        assert!(open(0).is_err());
    }
}
