//! What stands before the numbers of an `.npy` file: a magic word, a version, and a Python
//! dictionary that says type, order and shape (numpy's `format.py`, versions 1.0 to 3.0).

use std::io::Read;

use super::MAX_ARRAY_BYTES;

/// The longest dictionary that is read.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// The type of an array's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F16,
    F32,
    F64,
}

/// Kind, bytes a number, and what it stands for.
const DTYPES: &[(&str, usize, Dtype)] = &[
    ("b1", 1, Dtype::Bool),
    ("i1", 1, Dtype::I8),
    ("i2", 2, Dtype::I16),
    ("i4", 4, Dtype::I32),
    ("i8", 8, Dtype::I64),
    ("u1", 1, Dtype::U8),
    ("u2", 2, Dtype::U16),
    ("u4", 4, Dtype::U32),
    ("u8", 8, Dtype::U64),
    ("f2", 2, Dtype::F16),
    ("f4", 4, Dtype::F32),
    ("f8", 8, Dtype::F64),
];

impl Dtype {
    fn row(self) -> &'static (&'static str, usize, Self) {
        DTYPES.iter().find(|row| row.2 == self).expect("the table has every type")
    }

    /// Bytes a number.
    pub fn size(self) -> usize {
        self.row().1
    }

    /// As numpy's array interface writes it.
    fn descr(self) -> String {
        let (code, size, _) = self.row();
        format!("{}{code}", if *size == 1 { '|' } else { '<' })
    }

    /// The number of these little-endian bytes, of which there are [`Dtype::size`].
    pub(super) fn value(self, bytes: &[u8]) -> f64 {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the type has")
        }
        match self {
            Self::Bool | Self::U8 => f64::from(bytes[0]),
            Self::I8 => f64::from(i8::from_le_bytes(array(bytes))),
            Self::I16 => f64::from(i16::from_le_bytes(array(bytes))),
            Self::I32 => f64::from(i32::from_le_bytes(array(bytes))),
            Self::I64 => i64::from_le_bytes(array(bytes)) as f64,
            Self::U16 => f64::from(u16::from_le_bytes(array(bytes))),
            Self::U32 => f64::from(u32::from_le_bytes(array(bytes))),
            Self::U64 => u64::from_le_bytes(array(bytes)) as f64,
            Self::F16 => half::f16::from_le_bytes(array(bytes)).to_f64(),
            Self::F32 => f64::from(f32::from_le_bytes(array(bytes))),
            Self::F64 => f64::from_le_bytes(array(bytes)),
        }
    }
}

/// A header as it was read.
pub(super) struct Header {
    pub(super) dtype: Dtype,
    pub(super) is_big_endian: bool,
    pub(super) is_fortran_order: bool,
    pub(super) shape: Vec<usize>,
    /// How many bytes follow.
    pub(super) n_bytes: u64,
}

impl Header {
    /// Reads the header of an entry of `size` bytes and leaves `entry` at its first number.
    pub(super) fn read(entry: &mut dyn Read, size: u64) -> Result<Self, String> {
        let damaged = |error: std::io::Error| format!("its header is damaged: {error}");
        let mut start = [0; 8];
        entry.read_exact(&mut start).map_err(damaged)?;
        if &start[..6] != b"\x93NUMPY" {
            return Err("expected an array in numpy's format, got another file".to_owned());
        }
        let mut length = [0; 4];
        let n_length_bytes = match start[6] {
            1 => 2,
            2 | 3 => 4,
            other => return Err(format!("expected version 1 to 3 of its format, got {other}")),
        };
        entry.read_exact(&mut length[..n_length_bytes]).map_err(damaged)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_HEADER_BYTES {
            return Err(format!(
                "its header expected at most {MAX_HEADER_BYTES} bytes, got {length}"
            ));
        }
        let mut dict = vec![0; length];
        entry.read_exact(&mut dict).map_err(damaged)?;
        let header = Self::parse(&String::from_utf8_lossy(&dict))?;
        let got = size.saturating_sub((8 + n_length_bytes + length) as u64);
        if got != header.n_bytes {
            return Err(format!("expected {} bytes, got {got}", header.n_bytes));
        }
        Ok(header)
    }

    fn parse(dict: &str) -> Result<Self, String> {
        let mut text = Text { rest: dict, whole: dict };
        let (mut descr, mut is_fortran_order, mut shape) = (None, None, None);
        text.take('{')?;
        while !text.has('}') {
            let key = text.quoted()?;
            text.take(':')?;
            match key {
                "descr" => descr = Some(text.quoted()?),
                "fortran_order" => is_fortran_order = Some(text.boolean()?),
                "shape" => shape = Some(text.sizes()?),
                other => return Err(format!("its header has an unknown entry `{other}`")),
            }
            if !text.has(',') && !text.rest.starts_with('}') {
                return Err(text.unexpected("`,`"));
            }
        }
        let missing = |what: &str| format!("its header expected `{what}`, got none");
        let descr = descr.ok_or_else(|| missing("descr"))?;
        let shape: Vec<usize> = shape.ok_or_else(|| missing("shape"))?;
        let code = descr.trim_start_matches(['<', '>', '|', '=']);
        let known = DTYPES.iter().find(|row| row.0 == code);
        let &(_, size, dtype) =
            known.ok_or_else(|| format!("expected plain numbers, got type `{descr}`"))?;
        let n_bytes = shape
            .iter()
            .try_fold(size as u64, |n, &length| n.checked_mul(length as u64))
            .filter(|&n| n <= MAX_ARRAY_BYTES)
            .ok_or_else(|| {
                format!(
                    "expected at most {MAX_ARRAY_BYTES} bytes, got shape {shape:?} of `{descr}`"
                )
            })?;
        Ok(Self {
            dtype,
            is_big_endian: descr.starts_with('>'),
            is_fortran_order: is_fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape,
            n_bytes,
        })
    }
}

/// The few forms of Python literals that numpy writes into a header.
struct Text<'a> {
    rest: &'a str,
    whole: &'a str,
}

impl<'a> Text<'a> {
    fn unexpected(&self, expected: &str) -> String {
        let at = self.whole.len() - self.rest.len();
        format!("its header expected {expected} at {at}, got `{}`", self.whole.trim_end())
    }

    /// Whether this character comes next; it is taken if so.
    fn has(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn take(&mut self, wanted: char) -> Result<(), String> {
        if self.has(wanted) { Ok(()) } else { Err(self.unexpected(&format!("`{wanted}`"))) }
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        let quote = if self.has('"') {
            '"'
        } else {
            self.take('\'').map_err(|_| self.unexpected("a text"))?;
            '\''
        };
        let (text, rest) = self.rest.split_once(quote).ok_or_else(|| self.unexpected("a quote"))?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("`True` or `False`"))
    }

    fn sizes(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.take('(')?;
        while !self.has(')') {
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let size = self.rest[..digits].parse().map_err(|_| self.unexpected("a size"))?;
            sizes.push(size);
            // Python 2 marked its long integers.
            self.rest = self.rest[digits..].trim_start_matches('L');
            if !self.has(',') && !self.rest.starts_with(')') {
                return Err(self.unexpected("`,`"));
            }
        }
        Ok(sizes)
    }
}

/// A header as numpy writes it, padded so that the numbers start at a multiple of 64 bytes.
pub(super) fn encode(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(|size| format!("{size}")).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let descr = dtype.descr();
    let mut dict = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        sizes.join(", ")
    );
    while (10 + dict.len() + 1) % 64 != 0 {
        dict.push(' ');
    }
    dict.push('\n');
    let length = u16::try_from(dict.len()).expect("a handful of sizes");
    [b"\x93NUMPY\x01\x00", &length.to_le_bytes()[..], dict.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_that_numpy_writes() {
        let header = encode(Dtype::F64, &[2048]);
        assert_eq!(header.len(), 128);
        let start = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, \
                      'shape': (2048,), }  ";
        assert!(header.starts_with(start));
        assert!(header.ends_with(b" \n"));
    }

    #[test]
    fn every_type_is_read_from_its_bytes() {
        for (_, size, dtype) in DTYPES {
            let mut one = vec![0; *size];
            one[0] = 1;
            let expected = match dtype {
                Dtype::F16 => 2f64.powi(-24),
                Dtype::F32 => f64::from(f32::from_bits(1)),
                Dtype::F64 => f64::from_bits(1),
                _ => 1.0,
            };
            assert_eq!(dtype.value(&one), expected, "{dtype:?}");
        }
    }
}
