//! The row of numbers that a detector gets for one data set.

use crate::{
    error::MetricError,
    group::group_mean,
    ranked::{Positive, RankedScores},
    score::Score,
};

/// The true positive rate at which the false positive rate is reported.
const TPR: f64 = 0.95;

/// What a detector achieves on one ID and one OOD set, as fractions. A field is `None` where it is
/// undefined: all of them are without images on both sides, and none is otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OodMetrics {
    /// False positive rate where 95 % of the OOD images are detected: the fraction of ID images
    /// refused. Exact; lower is better.
    pub fpr95: Option<f64>,
    /// False positive rate where 95 % of the ID images are accepted: the fraction of OOD images
    /// accepted. Exact; lower is better.
    pub fpr95_id_positive: Option<f64>,
    /// `fpr95` as OpenOOD v1.5 reports it, see [`RankedScores::fpr_at_tpr_openood`].
    pub fpr95_openood: Option<f64>,
    /// Area under the ROC curve.
    pub auroc: Option<f64>,
    /// Area under the precision-recall curve with ID positive.
    pub aupr_in: Option<f64>,
    /// Area under the precision-recall curve with OOD positive.
    pub aupr_out: Option<f64>,
}

impl OodMetrics {
    /// All metrics of the OOD scores of ID and OOD images.
    ///
    /// # Errors
    ///
    /// As [`RankedScores::new`]: scores have to be finite.
    pub fn new<T: Score>(id: &[T], ood: &[T]) -> Result<Self, MetricError> {
        Ok(RankedScores::new(id, ood)?.metrics())
    }

    /// The mean of each metric over the data sets of a group, see [`group_mean`].
    pub fn group_mean(members: &[Self]) -> Self {
        let mean = |field: fn(&Self) -> Option<f64>| {
            group_mean(&members.iter().map(field).collect::<Vec<_>>())
        };
        Self {
            fpr95: mean(|metrics| metrics.fpr95),
            fpr95_id_positive: mean(|metrics| metrics.fpr95_id_positive),
            fpr95_openood: mean(|metrics| metrics.fpr95_openood),
            auroc: mean(|metrics| metrics.auroc),
            aupr_in: mean(|metrics| metrics.aupr_in),
            aupr_out: mean(|metrics| metrics.aupr_out),
        }
    }
}

impl RankedScores {
    /// All metrics that [`OodMetrics`] holds.
    pub fn metrics(&self) -> OodMetrics {
        OodMetrics {
            fpr95: self.fpr_where(TPR, Positive::Ood, |_| true),
            fpr95_id_positive: self.fpr_where(TPR, Positive::Id, |_| true),
            fpr95_openood: self.fpr_where(TPR, Positive::Ood, |k| self.is_corner(Positive::Ood, k)),
            auroc: self.auroc(),
            aupr_in: self.aupr_in(),
            aupr_out: self.aupr_out(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [f32; 6] = [0.1, 0.5, 0.25, 0.5, 0.0, 0.75];
    const OOD: [f32; 5] = [0.5, 0.125, 1.5, 0.75, 0.75];

    #[test]
    fn the_order_of_the_images_does_not_matter() {
        let expected = OodMetrics::new(&ID, &OOD).unwrap();
        let (mut id, mut ood) = (ID, OOD);
        for turn in 0..30 {
            id.rotate_left(1);
            ood.rotate_left(2);
            id.swap(turn % 6, (turn + 3) % 6);
            assert_eq!(OodMetrics::new(&id, &ood).unwrap(), expected);
        }
    }

    #[test]
    fn shifting_and_scaling_the_scores_does_not_matter() {
        let expected = OodMetrics::new(&ID, &OOD).unwrap();
        // All of these are exact in binary and keep distinct scores distinct, but for 0.1.
        let moved = |score: f32| score * 1024.0 - 4096.0;
        assert_eq!(OodMetrics::new(&ID.map(moved), &OOD.map(moved)).unwrap(), expected);
        let cubed = |score: f32| f64::from(score).powi(3);
        assert_eq!(OodMetrics::new(&ID.map(cubed), &OOD.map(cubed)).unwrap(), expected);
    }

    #[test]
    fn single_and_double_precision_agree() {
        let wide = OodMetrics::new(&ID.map(f64::from), &OOD.map(f64::from)).unwrap();
        assert_eq!(OodMetrics::new(&ID, &OOD).unwrap(), wide);
    }

    #[test]
    fn doubling_every_image_changes_nothing() {
        let twice = |scores: &[f32]| [scores, scores].concat();
        let once = OodMetrics::new(&ID, &OOD).unwrap();
        let doubled = OodMetrics::new(&twice(&ID), &twice(&OOD)).unwrap();
        assert_eq!(doubled, once);
    }

    #[test]
    fn exchanging_sides_and_sign_exchanges_the_conventions() {
        let negated = |score: f32| -score;
        let there = OodMetrics::new(&ID, &OOD).unwrap();
        let back = OodMetrics::new(&OOD.map(negated), &ID.map(negated)).unwrap();
        assert_eq!(there.auroc, back.auroc);
        assert_eq!((there.fpr95, there.fpr95_id_positive), (back.fpr95_id_positive, back.fpr95));
        assert_eq!((there.aupr_in, there.aupr_out), (back.aupr_out, back.aupr_in));
    }

    #[test]
    fn every_field_is_absent_without_both_sides() {
        assert_eq!(OodMetrics::new(&ID, &[]).unwrap(), OodMetrics::default());
        assert_eq!(OodMetrics::new(&[], &OOD).unwrap(), OodMetrics::default());
        assert_eq!(OodMetrics::new::<f64>(&[], &[]).unwrap(), OodMetrics::default());
    }

    #[test]
    fn every_field_is_there_with_one_image_a_side() {
        let metrics = OodMetrics::new(&[0.0], &[1.0]).unwrap();
        let all = |rate, area| OodMetrics {
            fpr95: rate,
            fpr95_id_positive: rate,
            fpr95_openood: rate,
            auroc: area,
            aupr_in: area,
            aupr_out: area,
        };
        assert_eq!(metrics, all(Some(0.0), Some(1.0)));
    }

    #[test]
    fn a_group_with_an_absent_member_is_absent() {
        let member = OodMetrics::new(&ID, &OOD).unwrap();
        assert_eq!(OodMetrics::group_mean(&[member, member]), member);
        assert_eq!(OodMetrics::group_mean(&[member, OodMetrics::default()]), OodMetrics::default());
    }
}
