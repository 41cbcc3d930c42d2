//! The first frame of a GIF. Pixels that the frame leaves out, and transparent ones, show the
//! palette's colour at their index, as in Pillow.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{DecodeError, MAX_PIXELS, RgbImage, check_size};

const FORMAT: &str = "GIF";

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(
        NonZeroU64::new(MAX_PIXELS).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes),
    );
    let mut decoder = options.read_info(bytes).map_err(failed)?;
    let (width, height) = check_size(FORMAT, decoder.width(), decoder.height())?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder
        .read_next_frame()
        .map_err(failed)?
        .ok_or_else(|| DecodeError::corrupt(FORMAT, "it holds no image"))?;
    let palette = frame
        .palette
        .as_deref()
        .or(global.as_deref())
        .ok_or_else(|| DecodeError::corrupt(FORMAT, "the palette is missing"))?;

    let mut indices = vec![frame.transparent.unwrap_or(0); width as usize * height as usize];
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let visible = usize::from(frame.width).min((width as usize).saturating_sub(left));
    if frame.width > 0 {
        let rows = frame.buffer.chunks_exact(usize::from(frame.width));
        for (source, target) in rows.zip(indices.chunks_exact_mut(width as usize).skip(top)) {
            // A frame may lie outside of the canvas as a whole.
            if let Some(target) = target.get_mut(left..left + visible) {
                target.copy_from_slice(&source[..visible]);
            }
        }
    }
    let colour = |index: u8| {
        let start = usize::from(index) * 3;
        palette.get(start..start + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    };
    let pixels = indices.into_iter().flat_map(colour).collect();
    Ok(RgbImage { width, height, pixels })
}

fn failed(error: DecodingError) -> DecodeError {
    match &error {
        DecodingError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: FORMAT }
        }
        _ => DecodeError::corrupt(FORMAT, error),
    }
}
