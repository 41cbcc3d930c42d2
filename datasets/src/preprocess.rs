//! What torchvision's `Resize(n)` and `CenterCrop(n)` do to a PIL image: which sizes, which
//! offsets, which padding. The resampling itself is in [`crate::resize`].

use serde::{Deserialize, Serialize};

use crate::decode::{MAX_PIXELS, RgbImage};
use crate::resize::{Axis, resize_window};

/// The largest `resize` and `crop` that are accepted.
pub const MAX_SIDE: u32 = 4096;

/// What happens to an image between decoding and the classifier's normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Resize so that the shorter side has this length, in pixels; the other side keeps the
    /// proportion, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<u32>,
    /// Then cut this square from the middle. Smaller images are padded with black.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
}

/// A preprocessed image would be larger than any image that is decoded.
#[derive(Debug, thiserror::Error)]
#[error("expected at most {MAX_PIXELS} pixels after resizing, got {width}x{height}")]
pub struct OutputTooLarge {
    pub width: u64,
    pub height: u64,
}

impl Preprocess {
    /// Says what is wrong with the numbers themselves, if anything: what was expected, and what
    /// was found.
    ///
    /// # Errors
    /// A side of 0 or over [`MAX_SIDE`], or a crop larger than the resized side.
    pub fn check(&self) -> Result<(), (String, String)> {
        for (key, side) in [("resize", self.resize), ("crop", self.crop)] {
            if let Some(side) = side
                && !(1..=MAX_SIDE).contains(&side)
            {
                return Err((format!("`{key}` from 1 to {MAX_SIDE}"), side.to_string()));
            }
        }
        match (self.resize, self.crop) {
            (Some(resize), Some(crop)) if crop > resize => {
                Err((format!("`crop` of at most `resize` = {resize}"), crop.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// (width, height) of an image of the given size, resized but not yet cropped.
    fn resized(&self, width: u64, height: u64) -> (u64, u64) {
        match self.resize.map(u64::from) {
            None => (width, height),
            Some(side) if width <= height => (side, side * height / width),
            Some(side) => (side * width / height, side),
        }
    }

    /// (width, height) that [`Preprocess::apply`] gives for an image of the given size.
    #[must_use]
    pub fn output_size(&self, width: u32, height: u32) -> (u64, u64) {
        match self.crop {
            Some(side) => (side.into(), side.into()),
            None => self.resized(width.into(), height.into()),
        }
    }

    /// Resizes and crops.
    ///
    /// # Errors
    /// Without a crop, when the long side of a thin image grows beyond measure.
    pub fn apply(&self, image: &RgbImage) -> Result<RgbImage, OutputTooLarge> {
        let (width, height) = self.output_size(image.width, image.height);
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(OutputTooLarge { width, height });
        }
        let resized = self.resized(image.width.into(), image.height.into());
        let (across, left) = fit(image.width.into(), resized.0, width);
        let (down, top) = fit(image.height.into(), resized.1, height);
        let mut pixels = resize_window(image, across, down);
        if (across.len, down.len) != (width, height) {
            pixels = pad(&pixels, across.len, left, top, width, height);
        }
        Ok(RgbImage { width: width as u32, height: height as u32, pixels })
    }
}

/// What part of a resized axis the crop keeps, and how much black goes before it.
fn fit(input: u64, output: u64, crop: u64) -> (Axis, u64) {
    if output < crop {
        return (Axis { input, output, start: 0, len: output }, (crop - output) / 2);
    }
    let spare = output - crop;
    // Python rounds halves to the even number.
    let start = if spare % 4 == 3 { spare / 2 + 1 } else { spare / 2 };
    (Axis { input, output, start, len: crop }, 0)
}

fn pad(pixels: &[u8], kept: u64, left: u64, top: u64, width: u64, height: u64) -> Vec<u8> {
    let (line, kept) = (width as usize * 3, kept as usize * 3);
    let mut padded = vec![0; line * height as usize];
    let targets = padded.chunks_exact_mut(line).skip(top as usize);
    for (target, row) in targets.zip(pixels.chunks_exact(kept)) {
        target[left as usize * 3..][..kept].copy_from_slice(row);
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32, step: u32) -> RgbImage {
        let pixels = (0..width * height * 3).map(|at| (at * step % 256) as u8).collect();
        RgbImage { width, height, pixels }
    }

    fn apply(image: &RgbImage, resize: Option<u32>, crop: Option<u32>) -> RgbImage {
        Preprocess { resize, crop }.apply(image).unwrap()
    }

    #[test]
    fn values_are_those_of_torchvision_on_a_pil_image() {
        // Resize(3)(Image.fromarray((arange(5 * 7 * 3) * 37 % 256).reshape(5, 7, 3))), Pillow 13.0.
        let expected = [
            62, 87, 124, 163, 67, 104, 132, 169, 73, 112, 149, 174, 76, 101, 138, 177, 81, 118,
            146, 183, 87, 126, 163, 188, 83, 115, 152, 115, 95, 132, 160, 121, 101, 140, 170, 126,
        ];
        let resized = apply(&ramp(7, 5, 37), Some(3), None);
        assert_eq!((resized.width, resized.height), (4, 3));
        assert_eq!(resized.pixels, expected);
        let cropped = apply(&ramp(7, 5, 37), Some(3), Some(3));
        let first_three: Vec<u8> =
            expected.chunks_exact(12).flat_map(|row| &row[..9]).copied().collect();
        assert_eq!(cropped.pixels, first_three);
    }

    #[test]
    fn crops_begin_where_python_rounds_to() {
        // CenterCrop(3) of an image of height h begins at row int(round((h - 3) / 2)).
        for (height, start) in
            [(3, 0), (4, 0), (5, 1), (6, 2), (7, 2), (8, 2), (9, 3), (10, 4), (11, 4)]
        {
            let pixels = (0..height).flat_map(|row| [row as u8; 9]).collect();
            let image = RgbImage { width: 3, height, pixels };
            assert_eq!(apply(&image, None, Some(3)).pixels[0], start, "height {height}");
        }
    }

    #[test]
    fn small_images_are_padded_with_black() {
        let red: Vec<u8> =
            apply(&ramp(2, 3, 11), None, Some(5)).pixels.into_iter().step_by(3).collect();
        let expected = [
            0, 0, 0, 0, 0, //
            0, 0, 33, 0, 0, //
            0, 66, 99, 0, 0, //
            0, 132, 165, 0, 0, //
            0, 0, 0, 0, 0,
        ];
        assert_eq!(red, expected);
    }

    #[test]
    fn without_preprocessing_an_image_stays_as_it_is() {
        let image = ramp(5, 4, 7);
        assert_eq!(apply(&image, None, None), image);
        assert_eq!(apply(&image, Some(4), None), image);
    }

    #[test]
    fn a_thin_image_is_cropped_without_being_blown_up_first() {
        let image = ramp(100_000, 1, 3);
        assert_eq!(apply(&image, Some(256), Some(224)).pixels.len(), 224 * 224 * 3);
        let error = Preprocess { resize: Some(256), crop: None }.apply(&image).unwrap_err();
        assert_eq!((error.width, error.height), (25_600_000, 256));
    }

    #[test]
    fn sides_are_checked() {
        let check = |resize, crop| Preprocess { resize, crop }.check().is_ok();
        assert!(check(Some(256), Some(224)) && check(None, Some(32)) && check(None, None));
        assert!(!check(Some(0), None) && !check(Some(32), Some(33)) && !check(None, Some(5000)));
    }
}
