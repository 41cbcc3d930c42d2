//! How often the classifier is right on the images that have a class.

use crate::error::{MetricError, check_len};

/// The label of an OOD image, in OpenOOD's lists and here.
pub const OOD_LABEL: i64 = -1;

/// The fraction of right predictions among the images whose label is not [`OOD_LABEL`]; `None` where
/// there is no such image.
///
/// # Errors
///
/// [`MetricError::LengthMismatch`] unless there are as many labels as predictions.
pub fn accuracy(predictions: &[i64], labels: &[i64]) -> Result<Option<f64>, MetricError> {
    check_len("labels", predictions.len(), labels.len())?;
    let (mut n_labelled, mut n_right) = (0_usize, 0_usize);
    for (prediction, &label) in predictions.iter().zip(labels) {
        if label != OOD_LABEL {
            n_labelled += 1;
            n_right += usize::from(*prediction == label);
        }
    }
    Ok((n_labelled > 0).then(|| n_right as f64 / n_labelled as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(predictions: &[i64], labels: &[i64], expected: Option<f64>) {
        assert_eq!(accuracy(predictions, labels), Ok(expected));
    }

    #[test]
    fn ood_images_are_not_counted() {
        check(&[0, 1, 2, 3], &[0, 1, 1, 3], Some(0.75));
        check(&[0, 1, 2, 3], &[0, -1, 1, -1], Some(0.5));
        check(&[-1, 1], &[-1, 1], Some(1.0));
    }

    #[test]
    fn accuracy_is_absent_where_nothing_has_a_class() {
        check(&[], &[], None);
        check(&[1, 2], &[-1, -1], None);
    }

    #[test]
    fn lengths_have_to_agree() {
        assert_eq!(
            accuracy(&[1, 2], &[1]),
            Err(MetricError::LengthMismatch { name: "labels", expected: 2, got: 1 })
        );
    }
}
