//! Prepared packs: one image set, decoded, resized and cropped, as a memory-mapped safetensors
//! file that any program can read.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `labels` | I64 | [n] |
//! | `id_offsets` | U64 | [n + 1], where each id ends; the first is 0 |
//! | `pixels` | U8 | [n, height, width, 3] |
//! | `ids` | U8 | all ids in UTF-8, one after the other |
//!
//! The metadata holds the version of this layout, what was prepared and how, and `content`: a
//! BLAKE3 over shape, pixels, labels and ids, which is what a cell's key is made of. Packs are
//! written by [`crate::prepare()`], read only here.

mod write;

use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::error::DatasetError;
use crate::mapped::SharedBytes;

pub(crate) use write::{Description, PackWriter};

/// The version of the layout; another one is refused.
pub const PACK_VERSION: &str = "1";

/// An open pack. Pixels stay in the mapped file; labels and ids are small.
pub struct Pack {
    path: PathBuf,
    bytes: SharedBytes,
    pixels: Range<usize>,
    ids: Range<usize>,
    id_ends: Vec<usize>,
    labels: Vec<i64>,
    height: u32,
    width: u32,
    content: String,
    name: String,
}

impl Pack {
    /// Maps a pack and checks that its header, sizes and ids make sense. The pixels are not read;
    /// [`Pack::verify`] does that.
    ///
    /// # Errors
    /// [`DatasetError::Pack`] for anything that is not a whole pack of this version.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let bytes = SharedBytes::open(path)?;
        let bad = |expected: &str, got: String| DatasetError::Pack {
            path: path.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let readable = "a whole safetensors file";
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| bad(readable, error.to_string()))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| bad(readable, error.to_string()))?;
        let text = metadata.metadata().clone().unwrap_or_default();
        let field = |key: &str| {
            let value = text.get(key).cloned();
            value.ok_or_else(|| bad(&format!("metadata `{key}`"), "none".into()))
        };
        let version = field("oodbench_pack")?;
        if version != PACK_VERSION {
            return Err(bad(&format!("layout version {PACK_VERSION}"), version));
        }
        let tensor = |name: &str, dtype: Dtype| match tensors.tensor(name) {
            Ok(view) if view.dtype() == dtype => {
                let data = view.data();
                // Where the slice lies within the file, for it outlives `tensors`.
                let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
                Ok((view.shape().to_vec(), start..start + data.len()))
            }
            Ok(view) => Err(bad(&format!("`{name}` of {dtype:?}"), format!("{:?}", view.dtype()))),
            Err(_) => Err(bad(&format!("tensor `{name}`"), "none".into())),
        };
        let (shape, pixels) = tensor("pixels", Dtype::U8)?;
        let (_, labels) = tensor("labels", Dtype::I64)?;
        let (_, offsets) = tensor("id_offsets", Dtype::U64)?;
        let (_, ids) = tensor("ids", Dtype::U8)?;
        let &[count, height, width, 3] = &shape[..] else {
            return Err(bad("`pixels` [n, height, width, 3]", format!("{shape:?}")));
        };
        let labels: Vec<i64> = words(&bytes[labels]).map(u64::cast_signed).collect();
        let ends: Vec<usize> = words(&bytes[offsets]).map(|end| end as usize).collect();
        let text_of = std::str::from_utf8(&bytes[ids.clone()]).ok();
        let sound = text_of.is_some_and(|text| {
            ends.first() == Some(&0)
                && ends.last() == Some(&text.len())
                && ends.is_sorted()
                && ends.iter().all(|&end| text.is_char_boundary(end))
        });
        if labels.len() != count || ends.len() != count + 1 || !sound {
            let got = format!("{} labels, {} id offsets", labels.len(), ends.len());
            return Err(bad(&format!("labels and ids of {count} images"), got));
        }
        let side = |side: usize| u32::try_from(side).ok().filter(|&side| side > 0);
        let (Some(height), Some(width)) = (side(height), side(width)) else {
            return Err(bad("images with pixels", format!("{shape:?}")));
        };
        let (content, name) = (field("content")?, field("name")?);
        let path = path.to_owned();
        Ok(Self { path, bytes, pixels, ids, id_ends: ends, labels, height, width, content, name })
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// What the pack was named when it was prepared.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The images of a range of indices, one after the other: [range, height, width, 3].
    ///
    /// # Panics
    /// When the range reaches beyond [`Pack::len`], like a slice.
    #[must_use]
    pub fn pixels(&self, images: Range<usize>) -> &[u8] {
        let size = self.height as usize * self.width as usize * 3;
        &self.bytes[self.pixels.clone()][images.start * size..images.end * size]
    }

    /// The class of each image, or -1.
    #[must_use]
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// What names the image in reports.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn id(&self, index: usize) -> &str {
        let range = self.id_ends[index]..self.id_ends[index + 1];
        std::str::from_utf8(&self.bytes[self.ids.clone()][range])
            .expect("ids are checked to be UTF-8 when the pack is opened")
    }

    /// BLAKE3 over shape, pixels, labels and ids, in hexadecimal, as it was when written.
    #[must_use]
    pub fn content_hash(&self) -> &str {
        &self.content
    }

    /// Reads everything and compares with [`Pack::content_hash`].
    ///
    /// # Errors
    /// [`DatasetError::PackContent`] when bytes have changed since they were written.
    pub fn verify(&self) -> Result<(), DatasetError> {
        let mut content = ContentHash::new(self.len(), self.height, self.width);
        content.bytes(&self.bytes[self.pixels.clone()]);
        content.labels(&self.labels);
        content.ids(&self.id_ends, &self.bytes[self.ids.clone()]);
        let got = content.finish();
        if got == self.content {
            return Ok(());
        }
        let expected = self.content.clone();
        Err(DatasetError::PackContent { path: self.path.clone(), expected, got })
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// The hash that names the content of a pack: in this order, and little-endian.
struct ContentHash(blake3::Hasher);

impl ContentHash {
    fn new(count: usize, height: u32, width: u32) -> Self {
        let mut hash = Self(blake3::Hasher::new());
        for size in [count as u64, height.into(), width.into(), 3] {
            hash.bytes(&size.to_le_bytes());
        }
        hash
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn labels(&mut self, labels: &[i64]) {
        labels.iter().for_each(|label| self.bytes(&label.to_le_bytes()));
    }

    fn ids(&mut self, ends: &[usize], ids: &[u8]) {
        ends.iter().for_each(|&end| self.bytes(&(end as u64).to_le_bytes()));
        self.bytes(ids);
    }

    fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}
