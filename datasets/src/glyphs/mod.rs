//! The embedded benchmark `glyphs`: images that the program draws from a seed.
//!
//! In-distribution are the ten digits, drawn as strokes with varied shapes, poses, brushes,
//! colours, backgrounds and noise; near-OOD are capital letters, far-OOD textures and noise.
//! Every image is a function of the recipe's version, its part and its index alone, so that the
//! repository ships no images, and an image can be had without drawing the ones before it.
//!
//! **Invariant:** a recipe that was published never changes, because scores and trained weights
//! depend on every pixel. A change is a new version.

mod corrupt;
mod draw;
mod strokes;
mod texture;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use draw::{Canvas, SIDE};
use strokes::Glyph;

/// The recipe of the images; part of every fingerprint.
pub const VERSION: &str = "glyphs/1";

/// Side of every image, in pixels.
pub const IMAGE_SIDE: u32 = SIDE as u32;

/// Number of classes: the digits.
pub const N_CLASSES: usize = strokes::DIGITS.len();

/// What an image shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Digits to train on.
    DigitsTrain,
    /// Digits to choose parameters with.
    DigitsVal,
    /// Digits to test with.
    DigitsTest,
    /// Corrupted digits.
    DigitsCorrupted,
    /// Letters to choose parameters with; none of them is among the test letters.
    LettersVal,
    /// Letters to test with.
    LettersTest,
    /// Textures to choose parameters with.
    TexturesVal,
    /// Textures to test with.
    TexturesTest,
    /// Noise to choose parameters with.
    NoiseVal,
    /// Noise to test with.
    NoiseTest,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::DigitsTrain => "digits-train",
            Self::DigitsVal => "digits-val",
            Self::DigitsTest => "digits-test",
            Self::DigitsCorrupted => "digits-corrupted",
            Self::LettersVal => "letters-val",
            Self::LettersTest => "letters-test",
            Self::TexturesVal => "textures-val",
            Self::TexturesTest => "textures-test",
            Self::NoiseVal => "noise-val",
            Self::NoiseTest => "noise-test",
        }
    }
}

/// A set of drawn images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlyphSet {
    pub part: Part,
    /// How many images.
    pub count: usize,
}

impl GlyphSet {
    /// Stable name of an image.
    pub fn id(&self, index: usize) -> String {
        format!("{}/{index:05}", self.part.name())
    }

    /// The class of an image: the digit, or -1.
    pub fn label(&self, index: usize) -> i64 {
        match self.part {
            Part::DigitsTrain | Part::DigitsVal | Part::DigitsTest | Part::DigitsCorrupted => {
                (index % strokes::DIGITS.len()) as i64
            }
            _ => -1,
        }
    }

    /// The pixels of an image, row-major RGB, [`IMAGE_SIDE`] squared.
    pub fn pixels(&self, index: usize) -> Vec<u8> {
        self.draw(index).into_bytes()
    }

    fn draw(&self, index: usize) -> Canvas {
        let name = format!("{VERSION}/{}/{index}", self.part.name());
        let mut rng = ChaCha8Rng::from_seed(*blake3::hash(name.as_bytes()).as_bytes());
        let rng = &mut rng;
        let digit = &strokes::DIGITS[index % strokes::DIGITS.len()];
        match self.part {
            Part::DigitsTrain | Part::DigitsVal | Part::DigitsTest => draw::character(digit, rng),
            Part::DigitsCorrupted => {
                let canvas = draw::character(digit, rng);
                let kind = rng.random_range(0..corrupt::N_CORRUPTIONS);
                corrupt::corrupt(canvas, kind, rng)
            }
            Part::LettersVal | Part::LettersTest => {
                let letters = letters(self.part == Part::LettersVal);
                draw::character(letters[index % letters.len()], rng)
            }
            Part::TexturesVal | Part::TexturesTest => {
                texture::texture(index % texture::N_TEXTURES, rng)
            }
            Part::NoiseVal | Part::NoiseTest => texture::noise(index % texture::N_NOISES, rng),
        }
    }
}

/// Every fourth letter is for validation, the others for the test.
fn letters(val: bool) -> Vec<&'static Glyph> {
    let all = strokes::LETTERS.iter().enumerate();
    all.filter(|(i, _)| (i % 4 == 0) == val).map(|(_, glyph)| glyph).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_depends_on_its_part_and_index_alone() {
        let set = |part, count| GlyphSet { part, count };
        let image = set(Part::DigitsTrain, 10).pixels(7);
        assert_eq!(image.len(), SIDE * SIDE * 3);
        assert_eq!(image, set(Part::DigitsTrain, 500).pixels(7));
        assert_ne!(image, set(Part::DigitsTest, 10).pixels(7));
        assert_ne!(image, set(Part::DigitsTrain, 10).pixels(17));
    }

    #[test]
    fn published_images_never_change() {
        // BLAKE3 of the pixels of 60 images, which show every kind. Where one of these changes,
        // published scores and the committed weights no longer hold: that is a new `VERSION`.
        let pinned = [
            (Part::DigitsTrain, "7b89be7e4c06187b"),
            (Part::DigitsVal, "df17b81c4df82137"),
            (Part::DigitsTest, "8eeafded117c916f"),
            (Part::DigitsCorrupted, "1fe9686c5fd0a445"),
            (Part::LettersVal, "624853fc4f57b3e7"),
            (Part::LettersTest, "40e4a71ee54bf72f"),
            (Part::TexturesVal, "1ff1e07637dfdf46"),
            (Part::TexturesTest, "6135548e0b1bd970"),
            (Part::NoiseVal, "f7232ed65a44c379"),
            (Part::NoiseTest, "5757c131eb96071e"),
        ];
        for (part, expected) in pinned {
            let set = GlyphSet { part, count: 60 };
            let pixels: Vec<u8> = (0..set.count).flat_map(|index| set.pixels(index)).collect();
            let hash = blake3::hash(&pixels).to_hex();
            assert_eq!(&hash[..16], expected, "{} of {VERSION}", part.name());
        }
    }

    #[test]
    fn letters_to_choose_with_are_not_those_to_test_with() {
        let names = |val| letters(val).iter().map(|glyph| glyph.name).collect::<String>();
        assert_eq!(names(true), "AEJNSW");
        assert_eq!(names(false), "BCDFGHKLMPQRTUVXYZ");
    }
}
