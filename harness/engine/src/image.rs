//! Prepared pixels as the numbers that networks and detectors take.

use std::ops::Range;

use oodbench_datasets::Pack;

pub use crate::worker::image_key;

/// Writes images into `out` as `f32` in `[0, 1]`, `[n, 3, height, width]`.
///
/// # Panics
/// When `out` has another length, or there are no such images.
pub fn write_images(pack: &Pack, range: Range<usize>, out: &mut [f32]) {
    let plane = pack.height() as usize * pack.width() as usize;
    assert_eq!(out.len(), range.len() * 3 * plane, "room for {} images", range.len());
    let pixels = pack.pixels(range);
    for (image, pixels) in out.chunks_exact_mut(3 * plane).zip(pixels.chunks_exact(3 * plane)) {
        for (channel, values) in image.chunks_exact_mut(plane).enumerate() {
            let of_channel = pixels.iter().skip(channel).step_by(3);
            for (value, &byte) in values.iter_mut().zip(of_channel) {
                *value = f32::from(byte) / 255.0;
            }
        }
    }
}

/// As [`write_images`], into a new vector.
pub fn images(pack: &Pack, range: Range<usize>) -> Vec<f32> {
    let plane = pack.height() as usize * pack.width() as usize;
    let mut out = vec![0.0; range.len() * 3 * plane];
    write_images(pack, range, &mut out);
    out
}
