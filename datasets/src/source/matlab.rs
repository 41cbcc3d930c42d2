//! Just enough of MATLAB's level 5 files (`save -v6`, `-v7`) to get at arrays of numbers.
//!
//! Compressed variables are inflated into a scratch file, not into memory: SVHN's extra set has
//! 1.6 GB. The newer `-v7.3` is HDF5 and not read. Format: "MAT-File Format", MathWorks, R2024.

use std::path::Path;

use flate2::read::ZlibDecoder;

use crate::error::DatasetError;
use crate::mapped::{SharedBytes, plausible_size};

const FILE_HEADER: usize = 128;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// An array of numbers, column by column.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) sizes: Vec<usize>,
    bytes: SharedBytes,
    start: usize,
    /// Bytes an element and how they are coded.
    coding: Coding,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    Signed(usize),
    Unsigned(usize),
    Float(usize),
}

impl Variable {
    /// The elements, if they are bytes.
    pub(super) fn as_bytes(&self) -> Option<&[u8]> {
        (self.coding == Coding::Unsigned(1)).then(|| &self.bytes[self.start..][..self.count])
    }

    /// The elements, if they are whole numbers; MATLAB stores them as narrow as they are.
    pub(super) fn to_integers(&self) -> Option<Vec<i64>> {
        let (Coding::Signed(size) | Coding::Unsigned(size) | Coding::Float(size)) = self.coding;
        let elements = self.bytes[self.start..][..self.count * size].chunks_exact(size);
        elements.map(|element| self.integer(element)).collect()
    }

    fn integer(&self, element: &[u8]) -> Option<i64> {
        let bits = element.iter().rev().fold(0, |sum: u64, &byte| sum << 8 | u64::from(byte));
        match self.coding {
            Coding::Unsigned(_) => i64::try_from(bits).ok(),
            Coding::Signed(size) => Some((bits << (64 - 8 * size)) as i64 >> (64 - 8 * size)),
            Coding::Float(size) => {
                let value = if size == 4 {
                    f32::from_bits(bits as u32).into()
                } else {
                    f64::from_bits(bits)
                };
                (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64)
            }
        }
    }
}

/// Every numeric variable of a file.
pub(super) fn read(path: &Path, scratch: &Path) -> Result<Vec<Variable>, DatasetError> {
    let bytes = SharedBytes::open(path)?;
    let bad = |got: &str| DatasetError::malformed(path, "a MATLAB 5 file", got);
    if bytes.starts_with(b"MATLAB 7.3") {
        return Err(bad("MATLAB 7.3, which is HDF5: save it with `-v7`"));
    }
    match bytes.get(124..FILE_HEADER) {
        Some([0, 1, b'I', b'M']) => {}
        Some([1, 0, b'M', b'I']) => return Err(bad("a big-endian one")),
        _ => return Err(bad("something else")),
    }
    let mut variables = Vec::new();
    let mut at = FILE_HEADER;
    while at < bytes.len() {
        let tag = Tag::parse(&bytes, at).ok_or_else(|| bad("one that ends too early"))?;
        let (holder, start) = match tag.kind {
            COMPRESSED => {
                let packed = &bytes[tag.start..tag.end];
                let limit = plausible_size(packed.len() as u64);
                (SharedBytes::unpack(path, ZlibDecoder::new(packed), scratch, limit)?, 0)
            }
            _ => (bytes.clone(), at),
        };
        let inner = Tag::parse(&holder, start).ok_or_else(|| bad("one that ends too early"))?;
        if inner.kind == MATRIX {
            variables.extend(matrix(&holder, inner.start, inner.end));
        }
        // A compressed element has no padding; nothing follows one that is not 8-aligned otherwise.
        at = if tag.kind == COMPRESSED { tag.end } else { tag.next };
    }
    Ok(variables)
}

/// The variable in a matrix element, unless it is no plain array of numbers.
fn matrix(bytes: &SharedBytes, start: usize, end: usize) -> Option<Variable> {
    let within = |at| Tag::parse(&bytes[..end], at);
    let flags = within(start)?;
    let class = *bytes.get(flags.start)?;
    let sizes_tag = within(flags.next)?;
    let name_tag = within(sizes_tag.next)?;
    let data = within(name_tag.next)?;
    // 6 to 15 are the numeric classes, double to uint64.
    if !(6..=15).contains(&class) {
        return None;
    }
    let sizes: Vec<usize> = bytes[sizes_tag.start..sizes_tag.end]
        .chunks_exact(4)
        .map(|size| usize::try_from(i32::from_le_bytes([size[0], size[1], size[2], size[3]])).ok())
        .collect::<Option<_>>()?;
    let coding = match data.kind {
        1 => Coding::Signed(1),
        2 => Coding::Unsigned(1),
        3 => Coding::Signed(2),
        4 => Coding::Unsigned(2),
        5 => Coding::Signed(4),
        6 => Coding::Unsigned(4),
        7 => Coding::Float(4),
        9 => Coding::Float(8),
        12 => Coding::Signed(8),
        13 => Coding::Unsigned(8),
        _ => return None,
    };
    let (Coding::Signed(size) | Coding::Unsigned(size) | Coding::Float(size)) = coding;
    let count = sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
    if count.checked_mul(size)? != data.end - data.start {
        return None;
    }
    let name = String::from_utf8_lossy(&bytes[name_tag.start..name_tag.end]).into_owned();
    Some(Variable { name, sizes, bytes: bytes.clone(), start: data.start, coding, count })
}

/// The head of an element: what it is, and where its content lies.
struct Tag {
    kind: u32,
    start: usize,
    end: usize,
    next: usize,
}

impl Tag {
    /// None where the element does not fit into the bytes.
    fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        let word = |at: usize| {
            let field = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
        };
        let first = word(at)?;
        // Up to four bytes share the tag's own eight: kind and length are 16 bits each then.
        let (kind, start, len, next) = if first >> 16 != 0 {
            (first & 0xFFFF, at + 4, (first >> 16) as usize, at + 8)
        } else {
            let len = word(at + 4)? as usize;
            let start = at + 8;
            (first, start, len, start.checked_add(len.checked_next_multiple_of(8)?)?)
        };
        let end = start.checked_add(len)?;
        (end <= bytes.len()).then_some(Self { kind, start, end, next })
    }
}
