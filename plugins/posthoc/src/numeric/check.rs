//! Checks of what the host hands over: a clear error in place of NaN scores.

use oodbench_sdk::{Error, Matrix, Result};

/// The matrix, if all of its values are finite. `what` names it in the error: `features`.
///
/// # Errors
/// NaN or infinity, with the row.
pub fn finite<'a>(xs: Matrix<'a>, what: &str) -> Result<Matrix<'a>> {
    // One pass over all, in pieces that have no jump in them, is quick; the row is looked for only
    // when there is something to report.
    let is_finite = |piece: &[f32]| piece.iter().fold(true, |all, x| all & x.is_finite());
    if xs.values().chunks(4096).all(is_finite) {
        return Ok(xs);
    }
    let is_bad = |row: &[f32]| row.iter().any(|x| !x.is_finite());
    let row = xs.rows().position(is_bad).unwrap_or_default();
    Err(Error::input(format!("{what} expected finite values, got NaN or infinity in row {row}")))
}

/// Finite features of images to score, as many columns as were fitted on.
///
/// # Errors
/// Another number of columns; NaN or infinity.
pub fn features(xs: Matrix<'_>, n_fitted: usize) -> Result<Matrix<'_>> {
    if xs.n_cols() != n_fitted {
        let got = xs.n_cols();
        return Err(Error::input(format!("features expected {n_fitted} columns, got {got}")));
    }
    finite(xs, "features")
}

/// Finite features to fit on, of at least one image. `which` names the split: `training`.
///
/// # Errors
/// No images; NaN or infinity.
pub fn fit_features<'a>(xs: Matrix<'a>, which: &str) -> Result<Matrix<'a>> {
    if xs.n_rows() == 0 {
        return Err(Error::input(format!("there are no {which} images")));
    }
    if xs.n_cols() == 0 {
        return Err(Error::input(format!("{which} features expected at least 1 column, got 0")));
    }
    finite(xs, &format!("{which} features"))
}

/// Finite logits of at least one class.
///
/// # Errors
/// No classes; NaN or infinity.
pub fn logits(xs: Matrix<'_>) -> Result<Matrix<'_>> {
    if xs.n_cols() == 0 && xs.n_rows() > 0 {
        return Err(Error::input("logits expected at least 1 column, got 0"));
    }
    finite(xs, "logits")
}

/// Finite logits of as many classes as the head or the fit knows.
///
/// # Errors
/// Another number of columns; NaN or infinity.
pub fn logits_of(xs: Matrix<'_>, n_classes: usize) -> Result<Matrix<'_>> {
    if xs.n_cols() != n_classes {
        let got = xs.n_cols();
        return Err(Error::input(format!("logits expected {n_classes} columns, got {got}")));
    }
    logits(xs)
}

/// Labels as indices of classes.
///
/// # Errors
/// A label that is no class.
pub fn classes(labels: &[i64], n_classes: usize) -> Result<Vec<usize>> {
    let class = |(i, &label): (usize, &i64)| {
        usize::try_from(label).ok().filter(|class| *class < n_classes).ok_or_else(|| {
            let last = n_classes.saturating_sub(1);
            Error::input(format!("label of training image {i} expected 0 to {last}, got {label}"))
        })
    };
    labels.iter().enumerate().map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_that_is_not_finite_is_named() {
        let xs = Matrix::new(&[1.0, 2.0, f32::NAN, 0.0], 2, 2).unwrap();
        let error = finite(xs, "features").unwrap_err().to_string();
        assert_eq!(error, "features expected finite values, got NaN or infinity in row 1");
    }

    #[test]
    fn a_label_that_is_no_class_is_named() {
        let error = classes(&[0, 2, -1], 2).unwrap_err().to_string();
        assert_eq!(error, "label of training image 1 expected 0 to 1, got 2");
        assert_eq!(classes(&[1, 0], 2).unwrap(), [1, 0]);
    }
}
