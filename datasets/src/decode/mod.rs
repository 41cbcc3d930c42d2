//! Bytes of one image file to RGB pixels, as Pillow's `Image.open(…).convert("RGB")` gives them.
//!
//! The format is told by the first bytes, never by the file name: OpenOOD's lists hold PNG files
//! named `.JPEG`. Colour profiles, gamma and EXIF orientation are ignored, as Pillow ignores them.
//! Unlike OpenOOD, which sets Pillow's `LOAD_TRUNCATED_IMAGES`, a truncated file is refused: half
//! an image that is grey below would be scored as if it were whole.
//!
//! Resizing is in [`crate::resize`]; where the bytes come from is the sources' business.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The largest image that is decoded, in pixels: 8192 x 8192. It bounds the memory that a few
/// hostile bytes can ask for, far above any photograph in the published benchmarks.
pub const MAX_PIXELS: u64 = 1 << 26;

/// An image in memory: 8-bit RGB, row by row from the top, `height * width * 3` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    pub width: u32,
    pub height: u32,
    /// [height, width, 3]
    pub pixels: Vec<u8>,
}

/// Why bytes are not an image. Where they were found is added by whoever read them.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("expected PNG, JPEG, BMP, GIF or WebP, got an empty file")]
    Empty,
    #[error("expected PNG, JPEG, BMP, GIF or WebP, got a file that begins with `{begins}`")]
    UnknownFormat { begins: String },
    #[error("{format}: the data ends before the image does")]
    Truncated { format: &'static str },
    #[error("{format}: {message}")]
    Corrupt { format: &'static str, message: String },
    #[error("{format}: expected at most {MAX_PIXELS} pixels, got {width}x{height}")]
    TooLarge { format: &'static str, width: u64, height: u64 },
}

impl DecodeError {
    fn corrupt(format: &'static str, error: impl std::fmt::Display) -> Self {
        let message = error.to_string();
        Self::Corrupt { format, message: message.trim_end_matches('.').to_owned() }
    }
}

type Decoder = fn(&[u8]) -> Result<RgbImage, DecodeError>;

/// Decodes one image file.
///
/// # Errors
/// When the bytes are in no known format, truncated, corrupt, or declare more than
/// [`MAX_PIXELS`]. A panic inside a decoder is an error too, so that one hostile file cannot take
/// the process with it.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let (format, decoder): (&'static str, Decoder) = match bytes {
        [0x89, b'P', b'N', b'G', ..] => ("PNG", png::decode),
        [0xFF, 0xD8, 0xFF, ..] => ("JPEG", jpeg::decode),
        [b'G', b'I', b'F', b'8', ..] => ("GIF", gif::decode),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ("WebP", webp::decode),
        [b'B', b'M', ..] => ("BMP", bmp::decode),
        [] => return Err(DecodeError::Empty),
        _ => {
            let begins = bytes[..bytes.len().min(8)].escape_ascii().to_string();
            return Err(DecodeError::UnknownFormat { begins });
        }
    };
    let image = catch_unwind(AssertUnwindSafe(|| decoder(bytes)))
        .unwrap_or_else(|_| Err(DecodeError::corrupt(format, "the decoder gave up on it")))?;
    let expected = image.width as usize * image.height as usize * 3;
    if image.pixels.len() != expected || expected == 0 {
        return Err(DecodeError::corrupt(format, "the decoder returned no whole image"));
    }
    Ok(image)
}

fn check_size(
    format: &'static str,
    width: impl TryInto<u64>,
    height: impl TryInto<u64>,
) -> Result<(u32, u32), DecodeError> {
    let width = width.try_into().unwrap_or(u64::MAX);
    let height = height.try_into().unwrap_or(u64::MAX);
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(DecodeError::TooLarge { format, width, height });
    };
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(DecodeError::TooLarge { format, width, height });
    }
    if w == 0 || h == 0 {
        return Err(DecodeError::corrupt(format, format!("the image is {w}x{h}")));
    }
    Ok((w, h))
}

/// Grey to RGB.
fn spread(grey: impl IntoIterator<Item = u8>) -> Vec<u8> {
    grey.into_iter().flat_map(|value| [value; 3]).collect()
}

/// The first three of every four bytes: alpha is dropped, not blended, as Pillow does.
fn drop_alpha(rgba: &[u8]) -> Vec<u8> {
    rgba.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
}

#[cfg(test)]
mod tests {
    use ::png::{BitDepth, ColorType};

    use super::*;
    use crate::testing::encode_png;

    fn pixels(bytes: &[u8]) -> Vec<u8> {
        decode(bytes).unwrap().pixels
    }

    #[test]
    fn png_of_every_kind_becomes_what_pillow_makes_of_it() {
        let check = |color, depth, data: &[u8], expected: &[u8]| {
            assert_eq!(
                pixels(&encode_png(2, 1, color, depth, data)),
                expected,
                "{color:?} {depth:?}"
            );
        };
        check(ColorType::Grayscale, BitDepth::One, &[0b0100_0000], &[0, 0, 0, 255, 255, 255]);
        check(ColorType::Grayscale, BitDepth::Two, &[0b0110_0000], &[85, 85, 85, 170, 170, 170]);
        check(ColorType::Grayscale, BitDepth::Eight, &[7, 9], &[7, 7, 7, 9, 9, 9]);
        check(ColorType::GrayscaleAlpha, BitDepth::Eight, &[7, 0, 9, 1], &[7, 7, 7, 9, 9, 9]);
        check(ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0, 4, 5, 6, 9], &[1, 2, 3, 4, 5, 6]);
        check(ColorType::Indexed, BitDepth::One, &[0b1000_0000], &[40, 50, 60, 10, 20, 30]);
        let deep = [1, 99, 2, 99, 3, 99, 4, 99, 5, 99, 6, 99];
        check(ColorType::Rgb, BitDepth::Sixteen, &deep, &[1, 2, 3, 4, 5, 6]);
        // 16-bit grey is clipped, not scaled.
        check(
            ColorType::Grayscale,
            BitDepth::Sixteen,
            &[0, 77, 1, 0],
            &[77, 77, 77, 255, 255, 255],
        );
    }

    #[test]
    fn a_truncated_png_is_refused() {
        let whole = encode_png(64, 64, ColorType::Grayscale, BitDepth::Eight, &[5; 64 * 64]);
        let error = decode(&whole[..whole.len() - 25]).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { format: "PNG" }), "{error}");
    }

    #[test]
    fn a_flipped_bit_in_a_png_is_found() {
        let mut bytes = encode_png(8, 8, ColorType::Grayscale, BitDepth::Eight, &[5; 64]);
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Corrupt { format: "PNG", .. }), "{error}");
    }

    #[test]
    fn declared_sizes_are_bounded() {
        let mut bytes = encode_png(8, 8, ColorType::Grayscale, BitDepth::Eight, &[5; 64]);
        // Width and height in IHDR, and the checksum that makes them believable.
        bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "PNG: expected at most 67108864 pixels, got 65536x65536");
    }

    #[test]
    fn other_files_are_named_by_how_they_begin() {
        let text = "expected PNG, JPEG, BMP, GIF or WebP, got a file that begins with `<html>\\n`";
        assert_eq!(decode(b"<html>\n").unwrap_err().to_string(), text);
        assert!(decode(b"").is_err());
    }

    #[test]
    fn bitmaps_are_read_bottom_up_with_their_palette() {
        let mut bytes =
            b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x01\0".to_vec();
        bytes.extend([0; 24]);
        bytes.extend([30, 20, 10, 0, 60, 50, 40, 0]);
        bytes.extend([0b1000_0000, 0, 0, 0, 0b0100_0000, 0, 0, 0]);
        let expected = [10, 20, 30, 40, 50, 60, 40, 50, 60, 10, 20, 30];
        assert_eq!(pixels(&bytes), expected);
        bytes.pop();
        assert!(matches!(decode(&bytes), Err(DecodeError::Truncated { format: "BMP" })));
    }

    #[test]
    fn gif_and_webp_give_their_first_frame() {
        let mut bytes = Vec::new();
        let mut encoder = ::gif::Encoder::new(&mut bytes, 2, 1, &[1, 2, 3, 4, 5, 6]).unwrap();
        for indices in [[1, 0], [0, 0]] {
            encoder
                .write_frame(&::gif::Frame::from_indexed_pixels(2, 1, indices, Some(0)))
                .unwrap();
        }
        drop(encoder);
        assert_eq!(pixels(&bytes), [4, 5, 6, 1, 2, 3]);
        // The first frame moved out of the canvas: the colour of the first index is left.
        let frame = bytes.iter().position(|&byte| byte == b',').unwrap();
        bytes[frame + 1] = 9;
        assert_eq!(pixels(&bytes), [1, 2, 3, 1, 2, 3]);

        let mut bytes = Vec::new();
        let encoder = image_webp::WebPEncoder::new(&mut bytes);
        encoder.encode(&[9, 8, 7, 6, 5, 4], 2, 1, image_webp::ColorType::Rgb8).unwrap();
        assert_eq!(pixels(&bytes), [9, 8, 7, 6, 5, 4]);
    }
}
