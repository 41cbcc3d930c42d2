//! The format before PyTorch 1.6: five pickles (a magic number, the version, facts on the machine, the
//! object, the names of the storages), then the storages in that order, each behind its length.

use std::{collections::HashMap, ops::Range};

use super::{Storages as AnyStorages, TorchError, TorchFile, resolve::Resolver};
use crate::{machine, parse, value::Value};

/// The magic number 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// Where each storage lies in the file.
#[derive(Debug)]
pub(crate) struct Storages(HashMap<String, Range<usize>>);

impl Storages {
    pub(crate) fn range(&self, key: &str) -> Result<Range<usize>, TorchError> {
        let missing = || TorchError::NoSuchStorage { key: key.to_owned() };
        self.0.get(key).cloned().ok_or_else(missing)
    }
}

fn read_magic(bytes: &[u8]) -> Result<usize, TorchError> {
    let got = match parse(bytes) {
        Ok((Value::BigInt(magic), consumed)) if *magic == MAGIC => return Ok(consumed),
        Ok(_) => "a pickle of something else",
        Err(_) if bytes.is_empty() => "an empty file",
        Err(_) if bytes.get(8) == Some(&b'{') => "what may be a safetensors file",
        Err(_) => "some other file",
    };
    Err(TorchError::NotACheckpoint { got })
}

pub(super) fn parse_file(bytes: &[u8]) -> Result<TorchFile<'_>, TorchError> {
    let mut position = read_magic(bytes)?;
    let (version, consumed) = parse(&bytes[position..])?;
    position += consumed;
    if version != Value::Int(VERSION) {
        return Err(layout("version", VERSION.to_string(), format!("{version:?}")));
    }
    let (machine_facts, consumed) = parse(&bytes[position..])?;
    position += consumed;
    let is_little_endian = machine_facts.get("little_endian") != Some(&Value::Bool(false));

    let mut resolver = Resolver::new(bytes.len());
    let (value, consumed) = machine::parse_with(&bytes[position..], &mut resolver)?;
    position += consumed;
    let (keys, consumed) = parse(&bytes[position..])?;
    position += consumed;

    let not_keys = || layout("list of storages", "a list of names".into(), keys.kind());
    let mut storages = HashMap::new();
    for key in keys.as_list().ok_or_else(not_keys)? {
        let key = key.as_str().ok_or_else(not_keys)?;
        let declared = match resolver.storages.get(key) {
            Some(Some(declared)) => declared,
            Some(None) => {
                return Err(layout(
                    "a storage",
                    "elements of a known type".into(),
                    format!("another in `{key}`"),
                ));
            }
            None => return Err(TorchError::NoSuchStorage { key: key.to_owned() }),
        };
        let rest = &bytes[position..];
        let len = *rest.first_chunk().ok_or_else(|| truncated(key, 8, rest))?;
        let n_elements =
            if is_little_endian { u64::from_le_bytes(len) } else { u64::from_be_bytes(len) };
        if n_elements != declared.n_elements as u64 {
            let expected = format!("{} elements in `{key}`", declared.n_elements);
            return Err(layout("a storage", expected, n_elements.to_string()));
        }
        let rest = &rest[len.len()..];
        let n_bytes = u128::from(n_elements) * declared.dtype.size() as u128;
        if n_bytes > rest.len() as u128 {
            return Err(truncated(key, n_bytes, rest));
        }
        let start = position + len.len();
        position = start + n_bytes as usize;
        storages.insert(key.to_owned(), start..position);
    }
    let storages = AnyStorages::Legacy(Storages(storages));
    Ok(TorchFile { bytes, value, storages, is_little_endian })
}

fn truncated(key: &str, expected: u128, rest: &[u8]) -> TorchError {
    layout("a storage", format!("{expected} bytes for `{key}`"), format!("{} left", rest.len()))
}

fn layout(part: &'static str, expected: String, got: String) -> TorchError {
    TorchError::Layout { part, expected, got }
}
