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
                // Every fourth letter is for validation, the others for the test.
                let val = self.part == Part::LettersVal;
                let letters = strokes::LETTERS.iter().enumerate();
                let letters: Vec<_> = letters.filter(|(i, _)| (i % 4 == 0) == val).collect();
                draw::character(letters[index % letters.len()].1, rng)
            }
            Part::TexturesVal | Part::TexturesTest => {
                texture::texture(index % texture::N_TEXTURES, rng)
            }
            Part::NoiseVal | Part::NoiseTest => texture::noise(index % texture::N_NOISES, rng),
        }
    }
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
}
