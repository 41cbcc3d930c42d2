//! How much denoising changed an image, in the space where one looks at it.

use oodbench_sdk::prelude::*;

/// Where a denoised image is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Space {
    /// Its pixels.
    Image,
    /// The classifier's penultimate features.
    Feature,
    /// The classifier's logits.
    Logit,
}

/// Which timestep a timestep is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Mode {
    /// With the one before.
    Local,
    /// With the first one.
    Global,
}

impl Mode {
    /// The two timesteps, as indices, whose difference is change number `change`, from 1.
    pub fn pair(self, change: usize) -> [usize; 2] {
        match self {
            Self::Local => [change.saturating_sub(1), change],
            Self::Global => [0, change],
        }
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
pub fn change(before: &[f32], after: &[f32], n_images: usize, repeats: usize) -> Result<Vec<f32>> {
    let n_rows = n_images * repeats;
    if n_rows == 0 {
        return Ok(Vec::new());
    }
    if before.len() != after.len() || before.is_empty() || !before.len().is_multiple_of(n_rows) {
        return Err(Error::input(format!(
            "denoised images expected two tensors of {n_rows} rows, got {} and {} values",
            before.len(),
            after.len()
        )));
    }
    let row_len = before.len() / n_rows;
    let rows = before.chunks_exact(row_len).zip(after.chunks_exact(row_len));
    let changes: Vec<f64> = rows.map(|(before, after)| row_change(before, after)).collect();
    let mean =
        |repeats_of_image: &[f64]| (repeats_of_image.iter().sum::<f64>() / repeats as f64) as f32;
    Ok(changes.chunks_exact(repeats).map(mean).collect())
}

fn row_change(before: &[f32], after: &[f32]) -> f64 {
    let length =
        |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() + 1e-10;
    let (of_before, of_after) = (length(before), length(after));
    let pairs = before.iter().zip(after);
    pairs.map(|(&a, &b)| (f64::from(a) / of_before - f64::from(b) / of_after).abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_and_repeats_averaged() {
        // Of length 5: (0.6, 0.8) against (0.8, 0.6), and against itself at another length.
        let (before, after) = ([3.0, 4.0, 3.0, 4.0], [4.0, 3.0, 6.0, 8.0]);
        let of = |repeats| change(&before, &after, 2 / repeats, repeats).unwrap();
        assert!((of(1)[0] - 0.4).abs() < 1e-6 && of(1)[1].abs() < 1e-6);
        assert!((of(2)[0] - 0.2).abs() < 1e-6);
    }

    #[test]
    fn a_vector_of_zeros_is_no_division_by_zero() {
        assert_eq!(change(&[0.0, 0.0], &[0.0, 2.0], 1, 1).unwrap(), [1.0]);
    }

    #[test]
    fn sizes_must_agree() {
        assert!(change(&[0.0; 4], &[0.0; 2], 2, 1).is_err());
        assert!(change(&[0.0; 5], &[0.0; 5], 2, 1).is_err());
    }

    #[test]
    fn modes_name_their_timesteps() {
        assert_eq!([Mode::Local.pair(3), Mode::Global.pair(3)], [[2, 3], [0, 3]]);
    }
}
