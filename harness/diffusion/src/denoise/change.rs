//! How much denoising changed an image, in the space where one looks at it.

use serde::{Deserialize, Serialize};

use super::error::DenoiseError;

/// Where a denoised image is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Its pixels.
    Image,
    /// The classifier's penultimate features.
    Feature,
    /// The classifier's logits.
    Logit,
}

impl Space {
    pub const ALL: [Self; 3] = [Self::Image, Self::Feature, Self::Logit];
}

/// Which timestep a timestep is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// With the one before.
    Local,
    /// With the first one.
    Global,
}

/// A change between two of several timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    pub mode: Mode,
    /// Which timestep after the first, from 1.
    pub nth: usize,
}

impl Change {
    /// The two timesteps, as indices, whose difference it is.
    pub fn pair(self) -> [usize; 2] {
        match self.mode {
            Mode::Local => [self.nth.saturating_sub(1), self.nth],
            Mode::Global => [0, self.nth],
        }
    }
}

/// One way to read a score off denoised images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Readout {
    pub space: Space,
    pub change: Change,
}

impl Readout {
    /// Every readout of so many timesteps, space by space, the global changes first. The first
    /// local change is the first global one and stands there once: 15 for four timesteps.
    pub fn all(n_timesteps: usize) -> Vec<Self> {
        let global = (1..n_timesteps).map(|nth| Change { mode: Mode::Global, nth });
        let local = (2..n_timesteps).map(|nth| Change { mode: Mode::Local, nth });
        let changes: Vec<Change> = global.chain(local).collect();
        let of_space = |space| changes.iter().map(move |&change| Self { space, change });
        Space::ALL.into_iter().flat_map(of_space).collect()
    }
}

/// The change between two timesteps: the L1 norm of the difference of two vectors that were each
/// divided by their length plus 1e-10, averaged over an image's repeats. One number per image.
///
/// # Shapes
/// `before`, `after`: `[image, repeat, …]`, flattened; sums run in `f64`.
///
/// # Errors
/// Tensors of different sizes, or of no whole number of rows.
pub fn changes<T: Copy + Into<f64>>(
    before: &[T],
    after: &[T],
    n_images: usize,
    repeats: usize,
) -> Result<Vec<f32>, DenoiseError> {
    let n_rows = n_images * repeats;
    if n_rows == 0 {
        return Ok(Vec::new());
    }
    let whole = before.len().div_ceil(n_rows).max(1) * n_rows;
    for got in [before.len(), after.len()] {
        if got != whole {
            return Err(DenoiseError::Length { what: "denoised images", expected: whole, got });
        }
    }
    let row_len = before.len() / n_rows;
    let rows = before.chunks_exact(row_len).zip(after.chunks_exact(row_len));
    let changes: Vec<f64> = rows.map(|(before, after)| row_change(before, after)).collect();
    let mean =
        |repeats_of_image: &[f64]| (repeats_of_image.iter().sum::<f64>() / repeats as f64) as f32;
    Ok(changes.chunks_exact(repeats).map(mean).collect())
}

fn row_change<T: Copy + Into<f64>>(before: &[T], after: &[T]) -> f64 {
    let length = |row: &[T]| row.iter().map(|&x| x.into().powi(2)).sum::<f64>().sqrt() + 1e-10;
    let (of_before, of_after) = (length(before), length(after));
    let pairs = before.iter().zip(after);
    pairs.map(|(&a, &b)| (a.into() / of_before - b.into() / of_after).abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_and_repeats_averaged() {
        // Of length 5: (0.6, 0.8) against (0.8, 0.6), and against itself at another length.
        let (before, after) = ([3.0f32, 4.0, 3.0, 4.0], [4.0, 3.0, 6.0, 8.0]);
        let of = |repeats| changes(&before, &after, 2 / repeats, repeats).unwrap();
        assert!((of(1)[0] - 0.4).abs() < 1e-6 && of(1)[1].abs() < 1e-6);
        assert!((of(2)[0] - 0.2).abs() < 1e-6);
    }

    #[test]
    fn a_vector_of_zeros_is_no_division_by_zero() {
        assert_eq!(changes(&[0.0f64, 0.0], &[0.0, 2.0], 1, 1).unwrap(), [1.0]);
    }

    #[test]
    fn sizes_must_agree() {
        assert!(changes(&[0.0f32; 4], &[0.0; 2], 2, 1).is_err());
        assert!(changes(&[0.0f32; 5], &[0.0; 5], 2, 1).is_err());
        assert!(changes::<f32>(&[], &[], 2, 1).is_err());
        assert!(changes::<f32>(&[], &[], 0, 1).unwrap().is_empty());
    }

    #[test]
    fn changes_name_their_timesteps() {
        let pair = |mode| Change { mode, nth: 3 }.pair();
        assert_eq!([pair(Mode::Local), pair(Mode::Global)], [[2, 3], [0, 3]]);
    }

    #[test]
    fn every_readout_is_there_once() {
        let all = Readout::all(4);
        assert_eq!(all.len(), 15);
        let pairs: std::collections::HashSet<_> =
            all.iter().map(|readout| (readout.space, readout.change.pair())).collect();
        assert_eq!(pairs.len(), 15);
        assert_eq!(Readout::all(2).len(), 3);
        assert!(Readout::all(1).is_empty() && Readout::all(0).is_empty());
    }
}
