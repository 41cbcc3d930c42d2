//! Decoding, resizing and cropping against Pillow and torchvision: `golden/resize`.
//!
//! Keys are `zip|path|case` for images of `data/openood/images_classic`, and `formula|HxW|case` for
//! images drawn from the stream `resize/HxW`; the case is `resize-crop`, or one number for both.
//! Tolerance: one grey level. Our values are equal but for what Pillow 13 changed in the order of
//! its passes, see `datasets/src/resize.rs`.

use std::collections::HashMap;

use oodbench_datasets::{DataDir, ImageSource, Preprocess, RgbImage, SourceSpec};
use oodbench_tests::shared;
use safetensors::SafeTensors;

const TOLERANCE: u8 = 1;

#[test]
fn images_are_decoded_and_resized_as_by_pillow() {
    let path = shared().join("golden/resize/resize.safetensors");
    let bytes =
        std::fs::read(&path).unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
    let golden = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert!(!golden.is_empty(), "`{}` has no cases", path.display());
    let mut archives = HashMap::new();
    let mut failures = Vec::new();
    for (key, expected) in golden.iter() {
        let [holder, name, case] = key.split('|').collect::<Vec<_>>()[..] else {
            panic!("key `{key}` is not of the form `holder|name|case`");
        };
        let image = match holder {
            "formula" => draw(name),
            _ => archives.entry(holder).or_insert_with(|| Archive::open(holder)).read(name),
        };
        let ours = preprocess(case).apply(&image).expect("a size within bounds");
        assert_eq!(expected.shape(), [ours.height as usize, ours.width as usize, 3], "{key}");
        let pairs = ours.pixels.iter().zip(expected.data());
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(u8::MAX);
        if worst > TOLERANCE {
            failures.push(format!("{key}: off by {worst} levels"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn preprocess(case: &str) -> Preprocess {
    let (resize, crop) = case.split_once('-').unwrap_or((case, case));
    let side = |text: &str| Some(text.parse().expect("a side in pixels"));
    Preprocess { resize: side(resize), crop: side(crop) }
}

/// A zip of images, read as the program reads it.
struct Archive {
    source: Box<dyn ImageSource>,
    by_id: HashMap<String, usize>,
    /// The one folder that all paths begin with, which ids leave out.
    folder: String,
}

impl Archive {
    fn open(name: &str) -> Self {
        let data = DataDir::new(shared().join("data/openood/images_classic"), std::env::temp_dir());
        let spec = SourceSpec::Folder { path: name.to_owned(), label: None };
        let source = spec.open(&data).unwrap_or_else(|err| panic!("{err}"));
        let by_id = (0..source.len()).map(|index| (source.id(index), index)).collect();
        let folder = format!("{}/", name.trim_end_matches(".zip"));
        Self { source, by_id, folder }
    }

    fn read(&self, path: &str) -> RgbImage {
        let id = path.strip_prefix(&self.folder).unwrap_or(path);
        let index = *self.by_id.get(id).unwrap_or_else(|| panic!("there is no image `{path}`"));
        self.source.read(index).unwrap_or_else(|err| panic!("{err}"))
    }
}

/// `floor(256 u)` of the stream `resize/HxW`; see `golden/README.md`.
fn draw(name: &str) -> RgbImage {
    let (height, width) = name.split_once('x').expect("a size HxW");
    let height = height.parse().expect("a height");
    let width = width.parse().expect("a width");
    let mut state = 0xCBF2_9CE4_8422_2325_u64;
    for byte in format!("resize/{name}").bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    let pixels = (0..width * height * 3)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            // The top 8 of the 53 bits of u.
            ((z ^ (z >> 31)) >> 56) as u8
        })
        .collect();
    RgbImage { width, height, pixels }
}
