//! Small data sets for the tests of this crate.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use crate::data_dir::DataDir;
use crate::error::DatasetError;
use crate::source::{ImageSource, SourceSpec};

/// A data directory that vanishes with the test.
pub(crate) struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn data(&self) -> DataDir {
        DataDir::new(self.folder.path(), self.path("scratch"))
    }

    /// Opens the value of an `images` key, in TOML.
    pub(crate) fn open(&self, images: &str) -> Result<Box<dyn ImageSource>, DatasetError> {
        #[derive(serde::Deserialize)]
        struct Set {
            images: SourceSpec,
        }
        let set: Set = toml::from_str(&format!("images = {images}")).unwrap();
        set.images.open(&self.data())
    }

    /// The error that opening gives.
    pub(crate) fn refusal(&self, images: &str) -> DatasetError {
        self.open(images).err().expect("the set is refused")
    }

    /// Error text with the folder's name taken out.
    pub(crate) fn text(&self, error: &DatasetError) -> String {
        error.to_string().replace(&self.folder.path().display().to_string(), "DATA")
    }
}

/// A PNG of one colour.
pub(crate) fn png(width: u32, height: u32, rgb: [u8; 3]) -> Vec<u8> {
    let pixels = rgb.repeat((width * height) as usize);
    encode_png(width, height, png::ColorType::Rgb, png::BitDepth::Eight, &pixels)
}

pub(crate) fn encode_png(
    width: u32,
    height: u32,
    color: png::ColorType,
    depth: png::BitDepth,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

/// A zip with the given entries, each deflated or stored.
pub(crate) fn zip(deflate: bool, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let method =
        if deflate { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(crate) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
