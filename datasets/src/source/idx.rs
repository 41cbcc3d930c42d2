//! MNIST's idx files: a header of big-endian numbers, then grey images, or labels. Plain or `.gz`.

use std::path::{Path, PathBuf};

use crate::data_dir::DataDir;
use crate::decode::{MAX_PIXELS, RgbImage};
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::mapped::{SharedBytes, plausible_size};
use crate::source::ImageSource;

pub(super) struct Idx {
    bytes: SharedBytes,
    /// Where the first image begins.
    start: usize,
    count: usize,
    height: u32,
    width: u32,
    labels: Option<Vec<u8>>,
    stem: String,
    fingerprint: Fingerprint,
}

impl Idx {
    pub(super) fn open(
        data: &DataDir,
        images: &str,
        labels: Option<&str>,
    ) -> Result<Self, DatasetError> {
        let mut parts = Fingerprinter::new("idx/1");
        let (path, bytes) = open(data, "the idx images", images, &mut parts)?;
        let header = Header::parse(&path, &bytes, 3)?;
        let [count, height, width] = [header.sizes[0], header.sizes[1], header.sizes[2]];
        if count == 0 {
            return Err(DatasetError::Empty { path });
        }
        if height == 0 || width == 0 || height * width > MAX_PIXELS {
            let expected = format!("images of 1 to {MAX_PIXELS} pixels");
            return Err(DatasetError::malformed(&path, expected, format!("{width}x{height}")));
        }
        header.check_len(&path, &bytes)?;
        let labels = match labels {
            Some(name) => {
                let (label_path, label_bytes) = open(data, "the idx labels", name, &mut parts)?;
                let header = Header::parse(&label_path, &label_bytes, 1)?;
                header.check_len(&label_path, &label_bytes)?;
                if header.sizes[0] != count {
                    let expected = format!("{count} labels, as there are images");
                    let got = header.sizes[0].to_string();
                    return Err(DatasetError::malformed(&label_path, expected, got));
                }
                Some(label_bytes[header.start..].to_vec())
            }
            None => None,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split(['.', '-']).next().unwrap_or_default().to_owned();
        Ok(Self {
            start: header.start,
            bytes,
            count: count as usize,
            height: height as u32,
            width: width as u32,
            labels,
            stem,
            fingerprint: parts.finish(),
        })
    }
}

impl ImageSource for Idx {
    fn len(&self) -> usize {
        self.count
    }

    fn id(&self, index: usize) -> String {
        format!("{}/{index:05}", self.stem)
    }

    fn label(&self, index: usize) -> i64 {
        self.labels.as_ref().map_or(-1, |labels| labels[index].into())
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        let size = self.height as usize * self.width as usize;
        let grey = &self.bytes[self.start + index * size..][..size];
        let pixels = grey.iter().flat_map(|&value| [value; 3]).collect();
        Ok(RgbImage { width: self.width, height: self.height, pixels })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// Opens the file, or the compressed file beside the place where it would be.
fn open(
    data: &DataDir,
    what: &str,
    name: &str,
    parts: &mut Fingerprinter,
) -> Result<(PathBuf, SharedBytes), DatasetError> {
    let plain = data.resolve(name);
    let packed = data.resolve(&format!("{name}.gz"));
    let path = match (plain.is_file(), packed.is_file()) {
        (true, _) => plain,
        (false, true) => packed,
        (false, false) => {
            return Err(DatasetError::NotFound { what: what.into(), looked: vec![plain, packed] });
        }
    };
    parts.large_file(&path)?;
    let bytes = SharedBytes::open(&path)?;
    if !bytes.starts_with(&[0x1F, 0x8B]) {
        return Ok((path, bytes));
    }
    let limit = plausible_size(bytes.len() as u64);
    let bytes = SharedBytes::gunzip(&path, data.scratch(), limit)?;
    Ok((path, bytes))
}

struct Header {
    sizes: Vec<u64>,
    start: usize,
}

impl Header {
    fn parse(path: &Path, bytes: &[u8], dimensions: u8) -> Result<Self, DatasetError> {
        let start = 4 + 4 * usize::from(dimensions);
        let magic = [0, 0, 8, dimensions];
        if bytes.len() < start || bytes[..4] != magic {
            let expected =
                format!("an idx header of {dimensions} dimensions of bytes ({magic:02x?})");
            let got = format!("{:02x?}", &bytes[..bytes.len().min(4)]);
            return Err(DatasetError::malformed(path, expected, got));
        }
        let size = |field: &[u8]| field.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let sizes = bytes[4..start].chunks_exact(4).map(size).collect();
        Ok(Self { sizes, start })
    }

    /// Checks the sizes against the bytes that are there, before anything trusts them.
    fn check_len(&self, path: &Path, bytes: &[u8]) -> Result<(), DatasetError> {
        let stated = self.sizes.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
        let there = (bytes.len() - self.start) as u64;
        if stated == Some(there) {
            return Ok(());
        }
        let sizes: Vec<String> = self.sizes.iter().map(u64::to_string).collect();
        let stated = stated.map_or("more than fit".to_owned(), |stated| stated.to_string());
        let expected = format!("{stated} bytes after the header, which states {}", sizes.join("x"));
        Err(DatasetError::malformed(path, expected, format!("{there} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Scene, gzip};

    const IDX: &str = r#"{ kind = "idx", images = "t10k-images-idx3-ubyte", labels = "labels" }"#;

    fn idx(dimensions: &[u32], content: &[u8]) -> Vec<u8> {
        let sizes = dimensions.iter().flat_map(|size| size.to_be_bytes());
        [0, 0, 8, dimensions.len() as u8]
            .into_iter()
            .chain(sizes)
            .chain(content.iter().copied())
            .collect()
    }

    #[test]
    fn grey_images_and_labels_are_read_plain_and_compressed() {
        let scene = Scene::new();
        let images = idx(&[2, 1, 2], &[1, 2, 3, 4]);
        scene.write("t10k-images-idx3-ubyte.gz", gzip(&images));
        scene.write("labels", idx(&[2], &[7, 9]));
        let check = || {
            let source = scene.open(IDX).unwrap();
            let image = source.read(1).unwrap();
            assert_eq!((image.width, image.height), (2, 1));
            assert_eq!(image.pixels, [3, 3, 3, 4, 4, 4]);
            assert_eq!((source.label(1), source.id(1)), (9, "t10k/00001".to_owned()));
        };
        check();
        scene.write("t10k-images-idx3-ubyte", images);
        check();
    }

    #[test]
    fn hostile_and_wrong_headers_are_refused() {
        let check = |images: Vec<u8>, labels: Vec<u8>, expected: &str| {
            let scene = Scene::new();
            scene.write("t10k-images-idx3-ubyte", images);
            scene.write("labels", labels);
            let text = scene.text(&scene.refusal(IDX));
            assert_eq!(text.replace("t10k-images-idx3-ubyte", "images"), expected);
        };
        let fine = || idx(&[2, 1, 2], &[1, 2, 3, 4]);
        check(
            idx(&[1 << 31, 28, 28], &[0; 100]),
            idx(&[2], &[0, 0]),
            "read `DATA/images`: expected 1683627180032 bytes after the header, which states \
             2147483648x28x28, got 100 bytes",
        );
        check(
            idx(&[1, u32::MAX, u32::MAX], &[]),
            vec![],
            "read `DATA/images`: expected images of 1 to 67108864 pixels, got \
             4294967295x4294967295",
        );
        check(
            b"PK\x03\x04".to_vec(),
            vec![],
            "read `DATA/images`: expected an idx header of 3 dimensions of bytes \
             ([00, 00, 08, 03]), got [50, 4b, 03, 04]",
        );
        check(
            fine(),
            idx(&[3], &[1, 2, 3]),
            "read `DATA/labels`: expected 2 labels, as there are images, got 3",
        );
        check(
            idx(&[0, 1, 1], &[]),
            vec![],
            "read `DATA/images`: expected at least one image, got none",
        );
    }

    #[test]
    fn a_truncated_gzip_file_is_refused() {
        let scene = Scene::new();
        let packed = gzip(&idx(&[2, 40, 40], &[5; 3200]));
        scene.write("t10k-images-idx3-ubyte.gz", &packed[..packed.len() - 12]);
        let error = scene.refusal(IDX);
        assert_eq!(scene.text(&error), "open archive `DATA/t10k-images-idx3-ubyte.gz`");
    }
}
