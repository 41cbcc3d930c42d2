//! PNG of every colour type and depth, with Pillow's way to eight bits: palettes are looked up,
//! alpha is dropped, 16-bit colour keeps its high byte, and 16-bit grey is *clipped* at 255, which
//! is what `convert("RGB")` does to Pillow's mode `I;16`.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{DecodeError, MAX_PIXELS, RgbImage, check_size, drop_alpha, spread};

const FORMAT: &str = "PNG";

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let limits = Limits { bytes: MAX_PIXELS as usize };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = check_size(FORMAT, reader.info().width, reader.info().height)?;
    let clips = reader.info().color_type == ColorType::Grayscale;
    let size = reader.output_buffer_size().ok_or(DecodeError::TooLarge {
        format: FORMAT,
        width: width.into(),
        height: height.into(),
    })?;
    let mut raw = vec![0; size];
    let output = reader.next_frame(&mut raw).map_err(failed)?;
    raw.truncate(output.buffer_size());

    let narrow = match (output.bit_depth, clips) {
        (BitDepth::Sixteen, true) => {
            let clip = |pair: &[u8]| if pair[0] == 0 { pair[1] } else { u8::MAX };
            raw.chunks_exact(2).map(clip).collect()
        }
        (BitDepth::Sixteen, false) => raw.chunks_exact(2).map(|pair| pair[0]).collect(),
        _ => raw,
    };
    let pixels = match output.color_type {
        ColorType::Rgb => narrow,
        ColorType::Rgba => drop_alpha(&narrow),
        ColorType::Grayscale => spread(narrow),
        ColorType::GrayscaleAlpha => spread(narrow.into_iter().step_by(2)),
        ColorType::Indexed => {
            return Err(DecodeError::corrupt(FORMAT, "the palette is missing"));
        }
    };
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
