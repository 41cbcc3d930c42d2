//! The correct classification rate at a false positive rate (Dhamija et al., "Reducing Network
//! Agnostophobia", 2018): of the ID images, how many are both accepted as ID and classified rightly,
//! while at most a given fraction of the OOD images is accepted too.

use crate::{
    accuracy::OOD_LABEL,
    error::{MetricError, Side, check_fraction, check_len},
    score::{Score, keys},
};

/// The largest correct classification rate of any threshold that accepts at most the fraction `fpr` of
/// the OOD images. An image is accepted when its score is at or below the threshold. `None` without
/// images on both sides.
///
/// `predictions` and `labels` belong to the ID images `id`, in the same order. At `fpr` 0 no OOD image
/// may be accepted; at 1 all may, and the result is the accuracy.
///
/// # Errors
///
/// Scores that are not finite, slices of unequal length, an ID label −1, an `fpr` outside of 0 to 1.
pub fn ccr_at_fpr<T: Score>(
    id: &[T],
    predictions: &[i64],
    labels: &[i64],
    ood: &[T],
    fpr: f64,
) -> Result<Option<f64>, MetricError> {
    let Some(mut input) = Input::new(id, predictions, labels, ood, fpr)? else { return Ok(None) };
    let n_ood = input.ood.len();
    // How many may be accepted: divided, not multiplied, so that 0.07 of 100 images is seven of them.
    let mut n_allowed = (fpr * n_ood as f64) as usize;
    while n_allowed < n_ood && (n_allowed + 1) as f64 / n_ood as f64 <= fpr {
        n_allowed += 1;
    }
    while n_allowed > 0 && n_allowed as f64 / n_ood as f64 > fpr {
        n_allowed -= 1;
    }
    // Whatever lies below the first OOD image that may not be accepted can be.
    Ok(Some(if n_allowed < n_ood {
        let (_, &mut first_refused, _) = input.ood.select_nth_unstable(n_allowed);
        input.rate_below(Some(first_refused))
    } else {
        input.rate_below(None)
    }))
}

/// The correct classification rate as OpenOOD v1.5 computes it. `None` without images on both sides.
///
/// The threshold is the ⌈`fpr` · n⌉-th lowest of the n OOD scores, and what lies strictly below is
/// accepted, so one OOD image fewer than allowed. At `fpr` 0 it takes, by a slip of indexing, the
/// *highest* OOD score and returns a rate that belongs to an `fpr` of almost 1.
///
/// # Errors
///
/// As [`ccr_at_fpr`].
pub fn ccr_at_fpr_openood<T: Score>(
    id: &[T],
    predictions: &[i64],
    labels: &[i64],
    ood: &[T],
    fpr: f64,
) -> Result<Option<f64>, MetricError> {
    let Some(mut input) = Input::new(id, predictions, labels, ood, fpr)? else { return Ok(None) };
    let n_ood = input.ood.len();
    let position = match (fpr * n_ood as f64).ceil() as usize {
        0 => n_ood - 1,
        n => n.min(n_ood) - 1,
    };
    let (_, &mut threshold, _) = input.ood.select_nth_unstable(position);
    Ok(Some(input.rate_below(Some(threshold))))
}

/// What both functions make of their arguments.
struct Input<K> {
    /// The scores of the ID images that are classified rightly.
    right: Vec<K>,
    n_id: usize,
    ood: Vec<K>,
}

impl<K: Copy + Ord> Input<K> {
    /// `None` where either side is empty.
    fn new<T: Score<Key = K>>(
        id: &[T],
        predictions: &[i64],
        labels: &[i64],
        ood: &[T],
        fpr: f64,
    ) -> Result<Option<Self>, MetricError> {
        check_fraction("fpr", fpr)?;
        check_len("predictions", id.len(), predictions.len())?;
        check_len("labels", id.len(), labels.len())?;
        if let Some(index) = labels.iter().position(|&label| label == OOD_LABEL) {
            return Err(MetricError::OodLabelAmongId { index });
        }
        let mut right = keys(id, Side::Id)?;
        let ood = keys(ood, Side::Ood)?;
        if right.is_empty() || ood.is_empty() {
            return Ok(None);
        }
        let n_id = right.len();
        let mut is_right =
            predictions.iter().zip(labels).map(|(prediction, label)| prediction == label);
        right.retain(|_| is_right.next() == Some(true));
        Ok(Some(Self { right, n_id, ood }))
    }

    /// The fraction of ID images that are right and score strictly below `limit`, if there is one.
    fn rate_below(&self, limit: Option<K>) -> f64 {
        let is_below = |key: &&K| limit.is_none_or(|limit| **key < limit);
        self.right.iter().filter(is_below).count() as f64 / self.n_id as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten ID images at scores 0 to 9 of which all but the last are classified rightly.
    fn ccr(ood: &[f64], fpr: f64) -> (Option<f64>, Option<f64>) {
        let id: Vec<f64> = (0..10).map(f64::from).collect();
        let predictions: Vec<i64> = (0..10).collect();
        let mut labels = predictions.clone();
        labels[9] = 0;
        (
            ccr_at_fpr(&id, &predictions, &labels, ood, fpr).unwrap(),
            ccr_at_fpr_openood(&id, &predictions, &labels, ood, fpr).unwrap(),
        )
    }

    #[test]
    fn no_ood_image_is_accepted_at_rate_zero() {
        assert_eq!(ccr(&[5.5, 7.5, 20.0], 0.0).0, Some(0.6));
        assert_eq!(ccr(&[-1.0], 0.0).0, Some(0.0));
    }

    #[test]
    fn an_id_image_tied_with_a_refused_ood_image_is_refused() {
        assert_eq!(ccr(&[5.0, 20.0], 0.0).0, Some(0.5));
        // Accepting one of two tied OOD images accepts both, which is one too many.
        assert_eq!(ccr(&[5.0, 5.0, 20.0, 20.0], 0.25).0, Some(0.5));
        assert_eq!(ccr(&[5.0, 5.0, 20.0, 20.0], 0.5).0, Some(0.9));
    }

    #[test]
    fn all_images_are_accepted_at_rate_one() {
        assert_eq!(ccr(&[-1.0, 3.0], 1.0).0, Some(0.9));
    }

    #[test]
    fn rates_that_floating_point_misses_are_met() {
        let ood: Vec<f64> = (0..100).map(|n| f64::from(n) / 10.0).collect();
        // 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
        assert_eq!(ccr(&ood, 0.07).0, Some(0.1));
        assert_eq!(ccr(&ood, 0.29).0, Some(0.3));
        assert_eq!(ccr(&ood, 0.3).0, Some(0.3));
    }

    #[test]
    fn openood_accepts_one_image_fewer_and_slips_at_zero() {
        let ood = [2.5, 4.5, 6.5, 8.5];
        assert_eq!(ccr(&ood, 0.5), (Some(0.7), Some(0.5)));
        assert_eq!(ccr(&ood, 0.25), (Some(0.5), Some(0.3)));
        assert_eq!(ccr(&ood, 1.0), (Some(0.9), Some(0.9)));
        assert_eq!(ccr(&ood, 0.0), (Some(0.3), Some(0.9)));
    }

    #[test]
    fn the_rate_is_absent_without_both_sides() {
        assert_eq!(ccr(&[], 0.5), (None, None));
        assert_eq!(ccr_at_fpr::<f32>(&[], &[], &[], &[1.0], 0.5), Ok(None));
    }

    #[test]
    fn input_that_does_not_fit_is_refused() {
        let refused = |predictions: &[i64], labels: &[i64], ood: &[f64], fpr| {
            ccr_at_fpr(&[0.0, 1.0], predictions, labels, ood, fpr).unwrap_err()
        };
        assert_eq!(
            refused(&[0, 1], &[0, -1], &[1.0], 0.1),
            MetricError::OodLabelAmongId { index: 1 }
        );
        assert_eq!(
            refused(&[0], &[0, 1], &[1.0], 0.1),
            MetricError::LengthMismatch { name: "predictions", expected: 2, got: 1 }
        );
        assert_eq!(
            refused(&[0, 1], &[0, 1], &[1.0], 5.0),
            MetricError::NotAFraction { name: "fpr", value: 5.0 }
        );
        assert!(matches!(
            refused(&[0, 1], &[0, 1], &[f64::NAN], 0.1),
            MetricError::NotFinite { side: Side::Ood, index: 0, .. }
        ));
    }
}
