//! The area under the precision-recall curve, by trapezoids and as average precision.
//!
//! The curve has one point for each distinct score, and starts at recall 0 with precision 1, as in
//! scikit-learn. OpenOOD's AUPR joins the points by straight lines, which is optimistic where few
//! thresholds are far apart (constant scores give (1 + prevalence) / 2, not the prevalence); average
//! precision makes steps instead. Published tables hold the first, so [`crate::OodMetrics`] does too.

use crate::ranked::{Positive, RankedScores};

impl RankedScores {
    /// The area under the precision-recall curve with ID positive, by trapezoids: OpenOOD's `aupr_in`.
    /// `None` without images on both sides.
    pub fn aupr_in(&self) -> Option<f64> {
        self.area(Positive::Id, |before, here| 0.5 * (before + here))
    }

    /// The area under the precision-recall curve with OOD positive, by trapezoids: OpenOOD's
    /// `aupr_out`. `None` without images on both sides.
    pub fn aupr_out(&self) -> Option<f64> {
        self.area(Positive::Ood, |before, here| 0.5 * (before + here))
    }

    /// Average precision with ID positive. `None` without images on both sides.
    pub fn average_precision_in(&self) -> Option<f64> {
        self.area(Positive::Id, |_, here| here)
    }

    /// Average precision with OOD positive. `None` without images on both sides.
    pub fn average_precision_out(&self) -> Option<f64> {
        self.area(Positive::Ood, |_, here| here)
    }

    /// The sum over the thresholds of the recall gained times the height that `height` makes of the
    /// precisions before and after it.
    fn area(&self, positive: Positive, height: impl Fn(f64, f64) -> f64) -> Option<f64> {
        if !self.is_comparable() {
            return None;
        }
        let (n_positive, _) = self.totals(positive);
        let mut sum = CompensatedSum::default();
        let (mut true_before, mut precision_before) = (0, 1.0);
        for (true_positives, false_positives) in self.curve(positive) {
            let hits = f64::from(true_positives);
            let precision = hits / (hits + f64::from(false_positives));
            if true_positives > true_before {
                let gained = f64::from(true_positives - true_before);
                sum.add(gained * height(precision_before, precision));
            }
            (true_before, precision_before) = (true_positives, precision);
        }
        Some(sum.value() / f64::from(n_positive))
    }
}

/// Neumaier's sum: the rounding of ten million additions stays out of the twelfth digit.
#[derive(Default)]
struct CompensatedSum {
    sum: f64,
    lost: f64,
}

impl CompensatedSum {
    fn add(&mut self, term: f64) {
        let total = self.sum + term;
        self.lost += if self.sum.abs() >= term.abs() {
            (self.sum - total) + term
        } else {
            (term - total) + self.sum
        };
        self.sum = total;
    }

    fn value(&self) -> f64 {
        self.sum + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: AUPR in and out, average precision in and out.
    #[track_caller]
    fn check(id: &[f64], ood: &[f64], expected: [f64; 4]) {
        let ranked = RankedScores::new(id, ood).unwrap();
        let found = [
            ranked.aupr_in(),
            ranked.aupr_out(),
            ranked.average_precision_in(),
            ranked.average_precision_out(),
        ]
        .map(Option::unwrap);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} != {expected}");
        }
    }

    #[test]
    fn perfect_separation_fills_the_square() {
        check(&[0.0, 1.0], &[2.0, 3.0, 4.0], [1.0; 4]);
    }

    #[test]
    fn constant_scores_give_the_prevalence_as_average_precision() {
        check(&[1.0; 3], &[1.0], [(1.0 + 0.75) / 2.0, (1.0 + 0.25) / 2.0, 0.75, 0.25]);
    }

    #[test]
    fn a_ramp_of_precision_is_halved_by_trapezoids_and_not_by_steps() {
        // OOD positive, from the top: ID (precision 0), then OOD (precision 1/2, recall 1).
        let one_ood_below = (0.0 + 0.5) / 2.0;
        check(&[2.0], &[1.0], [one_ood_below, one_ood_below, 0.5, 0.5]);
    }

    #[test]
    fn the_curve_starts_at_precision_one() {
        // OOD positive, from the top: {OOD, ID} (1/2, recall 1/2), then OOD (2/3, recall 1).
        let out = 0.5 * (1.0 + 0.5) / 2.0 + 0.5 * (0.5 + 2.0 / 3.0) / 2.0;
        // ID positive, from the bottom: OOD (0), then {OOD, ID} (1/3, recall 1).
        let within = (0.0 + 1.0 / 3.0) / 2.0;
        check(&[1.0], &[1.0, 0.0], [within, out, 1.0 / 3.0, 0.25 + 1.0 / 3.0]);
    }

    #[test]
    fn negating_the_scores_exchanges_in_and_out() {
        let (id, ood) = ([0.4, 0.1, 0.5, 0.5], [0.5, 0.9, 0.2]);
        let (negative_id, negative_ood) = (id.map(|score| -score), ood.map(|score| -score));
        let there = RankedScores::new(&id, &ood).unwrap();
        let back = RankedScores::new(&negative_ood, &negative_id).unwrap();
        assert_eq!(there.aupr_in(), back.aupr_out());
        assert_eq!(there.average_precision_out(), back.average_precision_in());
    }

    #[test]
    fn nothing_is_defined_without_both_sides() {
        for (id, ood) in [(&[1.0, 2.0][..], &[][..]), (&[], &[1.0]), (&[], &[])] {
            let ranked = RankedScores::new(id, ood).unwrap();
            assert_eq!(ranked.aupr_in(), None);
            assert_eq!(ranked.aupr_out(), None);
            assert_eq!(ranked.average_precision_in(), None);
            assert_eq!(ranked.average_precision_out(), None);
        }
    }

    #[test]
    fn the_sum_keeps_what_large_terms_would_swallow() {
        let mut sum = CompensatedSum::default();
        sum.add(1e16);
        for _ in 0..10 {
            sum.add(1.0);
        }
        sum.add(-1e16);
        assert_eq!(sum.value(), 10.0);
    }
}
