//! The area under the ROC curve, and the false positive rate at a true positive rate.

use crate::{
    error::{MetricError, check_fraction},
    ranked::{Positive, RankedScores},
};

/// A point of a ROC curve, both as fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RocPoint {
    /// The false positive rate.
    pub fpr: f64,
    /// The true positive rate.
    pub tpr: f64,
}

impl RankedScores {
    /// The ROC curve: (0, 0), then a point for each distinct score, strictest first; the last is
    /// (1, 1). Nothing without images on both sides.
    pub fn roc(&self, positive: Positive) -> impl Iterator<Item = RocPoint> + '_ {
        let (n_positive, n_negative) = self.totals(positive);
        let points = self.curve(positive).map(move |(true_positives, false_positives)| RocPoint {
            fpr: f64::from(false_positives) / f64::from(n_negative),
            tpr: f64::from(true_positives) / f64::from(n_positive),
        });
        let whole = std::iter::once(RocPoint { fpr: 0.0, tpr: 0.0 }).chain(points);
        whole.take(if self.is_comparable() { usize::MAX } else { 0 })
    }

    /// The area under the ROC curve: the probability that an OOD image scores above an ID image, ties
    /// counting one half. It is the same whichever side is positive. `None` without images on both
    /// sides.
    ///
    /// Counted in integers and divided once, hence exact to the last bit or two; scikit-learn adds up
    /// floating-point trapezoids of the same curve.
    pub fn auroc(&self) -> Option<f64> {
        if !self.is_comparable() {
            return None;
        }
        let mut twice_won: u128 = 0;
        let (mut ood_before, mut id_before) = (0, 0);
        let n_id = u64::from(self.totals(Positive::Id).0);
        for (ood, id) in self.curve(Positive::Ood) {
            // Each OOD image of this score beats the ID images below and halves with those beside it.
            let id_below_twice = 2 * (n_id - u64::from(id)) + u64::from(id - id_before);
            twice_won += u128::from(ood - ood_before) * u128::from(id_below_twice);
            (ood_before, id_before) = (ood, id);
        }
        let twice_pairs = 2 * self.n_id() as u128 * self.n_ood() as u128;
        Some(twice_won as f64 / twice_pairs as f64)
    }

    /// The false positive rate at the strictest threshold whose true positive rate is at least `tpr`.
    ///
    /// Exact: every distinct score is a threshold, nothing is interpolated and no vertex of the curve
    /// is dropped. `None` without images on both sides. At `tpr` 0 the answer is 0, since nothing need
    /// be detected.
    ///
    /// # Errors
    ///
    /// [`MetricError::NotAFraction`] where `tpr` is not in 0 to 1.
    pub fn fpr_at_tpr(&self, tpr: f64, positive: Positive) -> Result<Option<f64>, MetricError> {
        check_fraction("tpr", tpr)?;
        Ok(self.fpr_where(tpr, positive, |_| true))
    }

    /// The false positive rate that OpenOOD v1.5 reports at a true positive rate.
    ///
    /// It asks scikit-learn for a ROC curve from which vertices on straight segments were dropped
    /// (`drop_intermediate`, the default), and takes the first that is left. Where tied scores make
    /// straight segments this skips to the end of the segment: where ID and OOD scores are equal, the
    /// exact answer at 0.95 is 0.95 and this one is 1. Never smaller than [`Self::fpr_at_tpr`].
    ///
    /// # Errors
    ///
    /// [`MetricError::NotAFraction`] where `tpr` is not in 0 to 1.
    pub fn fpr_at_tpr_openood(
        &self,
        tpr: f64,
        positive: Positive,
    ) -> Result<Option<f64>, MetricError> {
        check_fraction("tpr", tpr)?;
        Ok(self.fpr_where(tpr, positive, |k| self.is_corner(positive, k)))
    }

    /// The false positive rate at the first threshold with a true positive rate of at least `tpr`
    /// among those that `keep` lets pass; it has to keep the last one.
    pub(crate) fn fpr_where(
        &self,
        tpr: f64,
        positive: Positive,
        keep: impl Fn(usize) -> bool,
    ) -> Option<f64> {
        if !self.is_comparable() {
            return None;
        }
        if tpr <= 0.0 {
            return Some(0.0);
        }
        let (n_positive, n_negative) = self.totals(positive);
        // The rates are divided before they are compared, as 19 of 20 reaches 0.95 only that way.
        let reaches = |k: usize| {
            let (true_positives, _) = self.counts_at(positive, k);
            f64::from(true_positives) / f64::from(n_positive) >= tpr
        };
        let first = first_where(self.n_thresholds(), reaches);
        let kept = (first..self.n_thresholds()).find(|&k| keep(k))?;
        let (_, false_positives) = self.counts_at(positive, kept);
        Some(f64::from(false_positives) / f64::from(n_negative))
    }

    /// Whether scikit-learn keeps the `k`-th vertex: the ends, and where either count changes its step.
    /// The point (0, 0) is added after the dropping and plays no part in it.
    pub(crate) fn is_corner(&self, positive: Positive, k: usize) -> bool {
        if k == 0 || k + 1 == self.n_thresholds() {
            return true;
        }
        let (true_before, false_before) = self.counts_at(positive, k - 1);
        let (true_here, false_here) = self.counts_at(positive, k);
        let (true_after, false_after) = self.counts_at(positive, k + 1);
        true_here - true_before != true_after - true_here
            || false_here - false_before != false_after - false_here
    }
}

/// The first index below `len` at which a predicate holds that, once it holds, goes on to; else `len`.
fn first_where(len: usize, predicate: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if predicate(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(id: &[f64], ood: &[f64]) -> RankedScores {
        RankedScores::new(id, ood).unwrap()
    }

    #[test]
    fn the_curve_goes_from_corner_to_corner() {
        let points = |id: &[f64], ood: &[f64]| -> Vec<[f64; 2]> {
            ranked(id, ood).roc(Positive::Ood).map(|point| [point.fpr, point.tpr]).collect()
        };
        assert_eq!(
            points(&[1.0, 2.0], &[2.0, 3.0]),
            [[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
        );
        assert!(points(&[], &[1.0]).is_empty() && points(&[1.0], &[]).is_empty());
    }

    #[track_caller]
    fn check_auroc(id: &[f64], ood: &[f64], expected: f64) {
        assert_eq!(ranked(id, ood).auroc(), Some(expected));
    }

    #[track_caller]
    fn check_fpr(id: &[f64], ood: &[f64], tpr: f64, positive: Positive, expected: f64) {
        assert_eq!(ranked(id, ood).fpr_at_tpr(tpr, positive), Ok(Some(expected)));
    }

    /// `n` images of either side at each of `n` levels.
    fn diagonal(n: usize) -> Vec<f64> {
        (0..n).map(|level| level as f64).collect()
    }

    #[test]
    fn auroc_counts_the_pairs_in_which_ood_is_above() {
        check_auroc(&[1.0, 2.0], &[3.0, 4.0], 1.0);
        check_auroc(&[3.0, 4.0], &[1.0, 2.0], 0.0);
        check_auroc(&[1.0, 3.0], &[2.0, 4.0], 0.75);
        check_auroc(&[0.0], &[1.0], 1.0);
    }

    #[test]
    fn ties_share_half_the_area() {
        check_auroc(&[1.0], &[1.0], 0.5);
        check_auroc(&[5.0; 10], &[5.0; 7], 0.5);
        check_auroc(&[1.0, 2.0], &[2.0, 3.0], 0.875);
        check_auroc(&[-0.0, 1.0], &[0.0, 1.0], 0.5);
    }

    #[test]
    fn magnitude_does_not_matter() {
        check_auroc(&[f64::MIN, -1.0], &[1.0, f64::MAX], 1.0);
        check_auroc(&[0.0, 5e-324], &[5e-324, 1e-323], 0.875);
        let ranked = RankedScores::new(&[0.0_f32, 1e-45], &[1e-45, 3e-45]).unwrap();
        assert_eq!(ranked.auroc(), Some(0.875));
    }

    #[test]
    fn exchanging_the_sides_leaves_the_rest_of_the_area() {
        let (id, ood) = ([0.3, 0.1, 0.8, 0.8], [0.8, 0.2, 0.9]);
        let there = ranked(&id, &ood).auroc().unwrap();
        let back = ranked(&ood, &id).auroc().unwrap();
        assert_eq!(there + back, 1.0);
    }

    #[test]
    fn fpr_is_taken_at_the_first_threshold_that_reaches_the_level() {
        let id = diagonal(10);
        check_fpr(&id, &[8.5, 9.5], 0.5, Positive::Ood, 0.0);
        check_fpr(&id, &[8.5, 9.5], 0.95, Positive::Ood, 0.1);
        check_fpr(&id, &[8.5, 9.5], 0.9, Positive::Id, 0.0);
        check_fpr(&id, &[8.5, 9.5], 0.95, Positive::Id, 0.5);
        check_fpr(&id, &[-1.0], 0.95, Positive::Ood, 1.0);
        check_fpr(&id, &[-1.0], 0.0, Positive::Ood, 0.0);
    }

    #[test]
    fn a_level_that_is_met_exactly_counts_as_reached() {
        for n in [20, 40, 60, 100] {
            let ood = diagonal(n);
            let id: Vec<f64> = ood.iter().map(|score| score + 0.5).collect();
            let expected = (0.95 * n as f64).round() / n as f64;
            check_fpr(&id, &ood, 0.95, Positive::Ood, expected);
        }
    }

    #[test]
    fn openood_skips_straight_segments_and_the_exact_rate_does_not() {
        let levels = diagonal(100);
        let ranked = ranked(&levels, &levels);
        assert_eq!(ranked.fpr_at_tpr(0.95, Positive::Ood), Ok(Some(0.95)));
        assert_eq!(ranked.fpr_at_tpr_openood(0.95, Positive::Ood), Ok(Some(1.0)));
        assert_eq!(ranked.fpr_at_tpr_openood(0.95, Positive::Id), Ok(Some(1.0)));
        // At the first vertex, which is always kept, both agree.
        assert_eq!(ranked.fpr_at_tpr_openood(0.01, Positive::Ood), Ok(Some(0.01)));
    }

    #[test]
    fn a_percentage_is_refused() {
        let ranked = ranked(&[0.0], &[1.0]);
        assert!(ranked.fpr_at_tpr(95.0, Positive::Ood).is_err());
        assert!(ranked.fpr_at_tpr_openood(f64::NAN, Positive::Id).is_err());
    }

    #[test]
    fn nothing_is_defined_without_both_sides() {
        for ranked in [ranked(&[], &[]), ranked(&[1.0, 2.0], &[]), ranked(&[], &[1.0])] {
            assert_eq!(ranked.auroc(), None);
            for positive in [Positive::Ood, Positive::Id] {
                assert_eq!(ranked.fpr_at_tpr(0.95, positive), Ok(None));
                assert_eq!(ranked.fpr_at_tpr_openood(0.95, positive), Ok(None));
            }
        }
    }
}
