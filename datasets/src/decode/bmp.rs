//! Uncompressed Windows bitmaps of 1, 4, 8, 16, 24 and 32 bits. Written here because what it
//! takes is short, and the decoder at hand read palettes wrongly and took truncated files.

use super::{DecodeError, RgbImage, check_size};

const FORMAT: &str = "BMP";
const FILE_HEADER: usize = 14;

/// Compression 0 and 3 of the header; run lengths (1, 2) and embedded JPEG or PNG are refused.
const UNCOMPRESSED: u32 = 0;
const BIT_FIELDS: u32 = 3;

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let header = Header::parse(bytes)?;
    let (width, height) = check_size(FORMAT, header.width, header.height)?;
    let (columns, rows) = (width as usize, height as usize);
    let stride = (columns * header.bits).div_ceil(32) * 4;
    let data = bytes.get(header.data_start..).unwrap_or_default();
    if data.len() < stride * rows {
        return Err(DecodeError::Truncated { format: FORMAT });
    }
    let mut pixels = Vec::with_capacity(columns * rows * 3);
    for row in 0..rows {
        let stored = if header.top_down { row } else { rows - 1 - row };
        let line = &data[stored * stride..][..stride];
        (0..columns).for_each(|column| pixels.extend(header.pixel(line, column)));
    }
    Ok(RgbImage { width, height, pixels })
}

struct Header {
    width: u32,
    height: u32,
    top_down: bool,
    bits: usize,
    data_start: usize,
    palette: Vec<[u8; 3]>,
    /// Where red, green and blue lie in a pixel of 16 or 32 bits.
    masks: [u32; 3],
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let u16_at = |at| word(bytes, at, 2);
        let u32_at = |at| word(bytes, at, 4);
        let data_start = u32_at(10)? as usize;
        let size = u32_at(FILE_HEADER)? as usize;
        // The header of OS/2 1.x has 16-bit sizes and three bytes a colour.
        let old = size == 12;
        let (width, height, bits) = if old {
            (u16_at(18)?, u16_at(20)? as i32, u16_at(24)?)
        } else {
            (u32_at(18)?, u32_at(22)? as i32, u16_at(28)?)
        };
        let compression = if old { UNCOMPRESSED } else { u32_at(30)? };
        if !matches!(compression, UNCOMPRESSED | BIT_FIELDS) {
            let message = format!("compression {compression} is not read, only 0 and 3");
            return Err(DecodeError::corrupt(FORMAT, message));
        }
        if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return Err(DecodeError::corrupt(FORMAT, format!("it has {bits} bits a pixel")));
        }
        let masks = match (compression, bits) {
            (BIT_FIELDS, _) => [u32_at(54)?, u32_at(58)?, u32_at(62)?],
            (_, 16) => [0x7C00, 0x03E0, 0x001F],
            _ => [0xFF_0000, 0xFF00, 0xFF],
        };
        let mut palette = Vec::new();
        if bits <= 8 {
            let stated = if old { 0 } else { u32_at(46)? as usize };
            let full = 1 << bits;
            let count = if stated == 0 { full } else { stated.min(full) };
            let entry = if old { 3 } else { 4 };
            let fields = if compression == BIT_FIELDS && size == 40 { 12 } else { 0 };
            let start = FILE_HEADER.saturating_add(size).saturating_add(fields);
            let table = start
                .checked_add(count * entry)
                .and_then(|end| bytes.get(start..end))
                .ok_or(DecodeError::Truncated { format: FORMAT })?;
            palette = table.chunks_exact(entry).map(|bgr| [bgr[2], bgr[1], bgr[0]]).collect();
        }
        Ok(Self {
            width,
            height: height.unsigned_abs(),
            top_down: height < 0,
            bits: bits as usize,
            data_start,
            palette,
            masks,
        })
    }

    fn pixel(&self, line: &[u8], column: usize) -> [u8; 3] {
        match self.bits {
            bits @ (1 | 4 | 8) => {
                let at = column * bits;
                let shift = 8 - bits - at % 8;
                let index = usize::from(line[at / 8] >> shift) & ((1 << bits) - 1);
                self.palette.get(index).copied().unwrap_or_default()
            }
            24 => {
                let bgr = &line[column * 3..];
                [bgr[2], bgr[1], bgr[0]]
            }
            bits => {
                let at = column * bits / 8;
                let packed =
                    line[at..at + bits / 8].iter().rev().fold(0, |sum, &b| sum << 8 | u32::from(b));
                self.masks.map(|mask| channel(packed, mask))
            }
        }
    }
}

/// The bits under the mask, stretched to 0 to 255 and cut off as Pillow cuts them off.
fn channel(packed: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let shift = mask.trailing_zeros();
    let (value, largest) = (u64::from((packed & mask) >> shift), u64::from(mask >> shift));
    (value * 255 / largest) as u8
}

/// A little-endian number of `count` bytes.
fn word(bytes: &[u8], at: usize, count: usize) -> Result<u32, DecodeError> {
    let field = bytes.get(at..at + count).ok_or(DecodeError::Truncated { format: FORMAT })?;
    Ok(field.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte)))
}
