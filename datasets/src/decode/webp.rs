//! WebP, lossy and lossless; of an animation the first frame. Alpha is dropped.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{DecodeError, MAX_PIXELS, RgbImage, check_size, drop_alpha};

const FORMAT: &str = "WebP";

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    decoder.set_memory_limit(MAX_PIXELS as usize * 4);
    let (width, height) = decoder.dimensions();
    let (width, height) = check_size(FORMAT, width, height)?;
    let size = decoder.output_buffer_size().ok_or(DecodeError::TooLarge {
        format: FORMAT,
        width: width.into(),
        height: height.into(),
    })?;
    let mut raw = vec![0; size];
    decoder.read_image(&mut raw).map_err(failed)?;
    let pixels = if decoder.has_alpha() { drop_alpha(&raw) } else { raw };
    Ok(RgbImage { width, height, pixels })
}

fn failed(error: DecodingError) -> DecodeError {
    match &error {
        DecodingError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: FORMAT }
        }
        _ => DecodeError::corrupt(FORMAT, error),
    }
}
