//! Writes a pack front to back, a few images at a time, so that its size does not matter.
//!
//! Everything but the pixels is known before the first image is decoded, and goes in front of
//! them or has a known length; only the content hash is not, and gets its place in the header
//! filled in at the end.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;

use super::{ContentHash, PACK_VERSION};
use crate::error::DatasetError;

/// What a pack says about itself beside its content.
pub(crate) struct Description<'a> {
    pub(crate) name: &'a str,
    pub(crate) preprocess: &'a str,
    pub(crate) source: &'a str,
    /// How many images the whole set has.
    pub(crate) of: usize,
}

pub(crate) struct PackWriter<'a> {
    path: &'a Path,
    file: BufWriter<&'a File>,
    hash: ContentHash,
    content_at: u64,
    labels: Vec<i64>,
    ends: Vec<usize>,
    ids: Vec<u8>,
}

impl<'a> PackWriter<'a> {
    /// Begins a pack in an empty file; the path is for messages.
    pub(crate) fn begin(
        path: &'a Path,
        file: &'a File,
        (width, height): (u32, u32),
        labels: Vec<i64>,
        ids: impl Iterator<Item = String>,
        description: &Description<'_>,
    ) -> Result<Self, DatasetError> {
        let mut ends = vec![0];
        let mut text = Vec::new();
        for id in ids {
            text.extend_from_slice(id.as_bytes());
            ends.push(text.len());
        }
        let count = labels.len();
        let (header, content_at) =
            header(count, height as usize, width as usize, text.len(), description);
        let hash = ContentHash::new(count, height, width);
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut writer = Self { path, file, hash, content_at, labels, ends, ids: text };
        writer.write(&(header.len() as u64).to_le_bytes())?;
        writer.write(header.as_bytes())?;
        let words: Vec<u8> = writer.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        writer.write(&words)?;
        let words: Vec<u8> =
            writer.ends.iter().flat_map(|&end| (end as u64).to_le_bytes()).collect();
        writer.write(&words)?;
        Ok(writer)
    }

    /// The next images, [any, height, width, 3].
    pub(crate) fn pixels(&mut self, pixels: &[u8]) -> Result<(), DatasetError> {
        self.hash.bytes(pixels);
        self.write(pixels)
    }

    /// Writes the rest and waits until it is on the disk.
    pub(crate) fn finish(mut self) -> Result<(), DatasetError> {
        let ids = std::mem::take(&mut self.ids);
        self.write(&ids)?;
        self.hash.labels(&self.labels);
        self.hash.ids(&self.ends, &ids);
        let content = self.hash.finish();
        let failed = || DatasetError::io("write", self.path);
        self.file.seek(SeekFrom::Start(self.content_at)).map_err(failed())?;
        self.file.write_all(content.as_bytes()).map_err(failed())?;
        self.file.flush().map_err(failed())?;
        self.file.get_ref().sync_all().map_err(failed())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        self.file.write_all(bytes).map_err(DatasetError::io("write", self.path))
    }
}

/// The header, padded so that the 64-bit tensors behind it are aligned, and where in the file the
/// content hash goes.
fn header(
    count: usize,
    height: usize,
    width: usize,
    id_bytes: usize,
    description: &Description<'_>,
) -> (String, u64) {
    let placeholder = "0".repeat(2 * blake3::OUT_LEN);
    let mut end = 0;
    let mut tensor = |dtype: &str, shape: &[usize], bytes: usize| {
        let start = end;
        end += bytes;
        json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] })
    };
    let labels = tensor("I64", &[count], count * 8);
    let id_offsets = tensor("U64", &[count + 1], (count + 1) * 8);
    let pixels = tensor("U8", &[count, height, width, 3], count * height * width * 3);
    let ids = tensor("U8", &[id_bytes], id_bytes);
    // The hash comes first: no other value can hold its place's text before it.
    let metadata = json!({
        "content": &placeholder,
        "oodbench_pack": PACK_VERSION,
        "name": description.name,
        "preprocess": description.preprocess,
        "source": description.source,
        "of": description.of.to_string(),
    });
    let parts = [
        ("__metadata__", metadata),
        ("labels", labels),
        ("id_offsets", id_offsets),
        ("pixels", pixels),
        ("ids", ids),
    ];
    let fields: Vec<String> =
        parts.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let mut header = format!("{{{}}}", fields.join(","));
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let at = header.find(&placeholder).expect("the header has the placeholder");
    (header, (8 + at) as u64)
}
