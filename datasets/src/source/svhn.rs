//! SVHN's cropped digits: a MATLAB file with `X` [32, 32, 3, n] and the labels `y`, in which the
//! digit 0 is labelled 10.

use crate::data_dir::DataDir;
use crate::decode::RgbImage;
use crate::error::DatasetError;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::source::ImageSource;
use crate::source::matlab::{self, Variable};

pub(super) struct Svhn {
    images: Variable,
    labels: Vec<i64>,
    stem: String,
    fingerprint: Fingerprint,
}

impl Svhn {
    pub(super) fn open(data: &DataDir, path: &str) -> Result<Self, DatasetError> {
        let path = data.resolve(path);
        if !path.is_file() {
            return Err(DatasetError::NotFound { what: "SVHN".into(), looked: vec![path] });
        }
        let mut parts = Fingerprinter::new("svhn/1");
        parts.large_file(&path)?;
        let mut variables = matlab::read(&path, data.scratch())?;
        let mut take = |name: &str| {
            let at = variables.iter().position(|variable| variable.name == name);
            at.map(|at| variables.swap_remove(at)).ok_or_else(|| {
                DatasetError::malformed(&path, format!("an array of numbers `{name}`"), "none")
            })
        };
        let (images, labels) = (take("X")?, take("y")?);
        let count = match images.sizes[..] {
            [height, width, 3, count] if height > 0 && width > 0 && images.as_bytes().is_some() => {
                count
            }
            // MATLAB drops a last dimension of one.
            [height, width, 3] if height > 0 && width > 0 && images.as_bytes().is_some() => 1,
            _ => {
                let got = format!("{:?}", images.sizes);
                return Err(DatasetError::malformed(&path, "`X` of bytes [32, 32, 3, n]", got));
            }
        };
        if count == 0 {
            return Err(DatasetError::Empty { path });
        }
        let labels = labels.to_integers().unwrap_or_default();
        if labels.len() != count {
            let expected = format!("{count} whole numbers as `y`, as there are images");
            return Err(DatasetError::malformed(&path, expected, labels.len().to_string()));
        }
        if let Some(label) = labels.iter().find(|label| !(0..=10).contains(*label)) {
            return Err(DatasetError::malformed(&path, "labels from 1 to 10", label.to_string()));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { images, labels, stem, fingerprint: parts.finish() })
    }
}

impl ImageSource for Svhn {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn id(&self, index: usize) -> String {
        format!("{}/{index:05}", self.stem)
    }

    fn label(&self, index: usize) -> i64 {
        self.labels[index] % 10
    }

    fn read(&self, index: usize) -> Result<RgbImage, DatasetError> {
        let (height, width) = (self.images.sizes[0], self.images.sizes[1]);
        let size = height * width * 3;
        let columns = &self.images.as_bytes().unwrap_or_default()[index * size..][..size];
        let mut pixels = Vec::with_capacity(size);
        for row in 0..height {
            for column in 0..width {
                let at = |channel| columns[(channel * width + column) * height + row];
                pixels.extend([at(0), at(1), at(2)]);
            }
        }
        Ok(RgbImage { width: width as u32, height: height as u32, pixels })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::testing::Scene;

    const SVHN: &str = r#"{ kind = "svhn", path = "test_32x32.mat" }"#;

    fn element(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (content.len() as u32).to_le_bytes()].concat();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// A numeric array; `kind` 2 is bytes, 9 doubles.
    fn matrix(name: &str, sizes: &[i32], kind: u32, content: &[u8]) -> Vec<u8> {
        let class: u32 = if kind == 2 { 9 } else { 6 };
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let flags = [class.to_le_bytes(), [0; 4]].concat();
        // Names of up to four letters share the eight bytes of their tag.
        let mut short = (1_u32 | (name.len() as u32) << 16).to_le_bytes().to_vec();
        short.extend(name.as_bytes());
        short.resize(8, 0);
        let parts = [element(6, &flags), element(5, &sizes), short, element(kind, content)];
        element(14, &parts.concat())
    }

    fn file(variables: &[Vec<u8>], compress: bool) -> Vec<u8> {
        let mut bytes = b"MATLAB 5.0 MAT-file".to_vec();
        bytes.resize(124, b' ');
        bytes.extend(b"\0\x01IM");
        for variable in variables {
            if compress {
                let mut zlib =
                    flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                zlib.write_all(variable).unwrap();
                let packed = zlib.finish().unwrap();
                bytes.extend(15_u32.to_le_bytes());
                bytes.extend((packed.len() as u32).to_le_bytes());
                bytes.extend(packed);
            } else {
                bytes.extend(variable);
            }
        }
        bytes
    }

    /// Two images of height 1 and width 2; a double as label and one that is the digit 0.
    fn variables() -> Vec<Vec<u8>> {
        let pixels: Vec<u8> = (1..=12).collect();
        let labels: Vec<u8> =
            [10.0_f64, 3.0].iter().flat_map(|label| label.to_le_bytes()).collect();
        vec![matrix("X", &[1, 2, 3, 2], 2, &pixels), matrix("y", &[2, 1], 9, &labels)]
    }

    #[test]
    fn digits_are_read_column_by_column_and_ten_is_zero() {
        for compress in [false, true] {
            let scene = Scene::new();
            scene.write("test_32x32.mat", file(&variables(), compress));
            let source = scene.open(SVHN).unwrap();
            assert_eq!([source.label(0), source.label(1)], [0, 3]);
            assert_eq!(source.read(0).unwrap().pixels, [1, 3, 5, 2, 4, 6]);
            assert_eq!(source.read(1).unwrap().pixels, [7, 9, 11, 8, 10, 12]);
            assert_eq!(source.id(1), "test_32x32/00001");
        }
    }

    #[test]
    fn other_and_damaged_files_are_refused() {
        let check = |content: &[u8], expected: &str| {
            let scene = Scene::new();
            scene.write("test_32x32.mat", content);
            assert_eq!(
                scene.text(&scene.refusal(SVHN)),
                format!("read `DATA/test_32x32.mat`: expected {expected}")
            );
        };
        check(b"hello", "a MATLAB 5 file, got something else");
        let hdf5 = [b"MATLAB 7.3 MAT-file".as_slice(), &[0; 200]].concat();
        check(&hdf5, "a MATLAB 5 file, got MATLAB 7.3, which is HDF5: save it with `-v7`");
        let whole = file(&variables(), false);
        check(&whole[..whole.len() - 16], "a MATLAB 5 file, got one that ends too early");
        check(&file(&variables()[..1], true), "an array of numbers `y`, got none");
        // Sizes that do not fit the bytes make no array.
        let hostile = matrix("X", &[i32::MAX, i32::MAX, 3, i32::MAX], 2, &[0; 8]);
        check(&file(&[hostile], false), "an array of numbers `X`, got none");
        let flat = matrix("X", &[2, 2], 2, &[0; 4]);
        check(
            &file(&[flat, variables().remove(1)], false),
            "`X` of bytes [32, 32, 3, n], got [2, 2]",
        );
    }
}
