//! The one sort that all threshold metrics share.
//!
//! Each side is sorted alone and the two are merged from the top into cumulative counts, one pair for
//! each distinct score. Eight bytes a distinct score are kept; the scores themselves are not.

use crate::{
    error::{MetricError, Side},
    score::{Score, keys},
};

/// Which side counts as positive: detected rightly when beyond the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Positive {
    /// OOD images are to be found: the convention of OpenOOD's tables and of this project.
    Ood,
    /// ID images are to be accepted: the convention of "FPR at 95 % TPR" in ODIN and most papers.
    Id,
}

/// How many images of either side score at or above a distinct score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    ood: u32,
    id: u32,
}

/// ID and OOD scores after the sort: what every threshold metric is computed from.
///
/// Only the order of the scores matters, and equal scores stay together: the result does not depend
/// on the order of the images. Time is O(n log n), memory four (`f32`) or eight (`f64`) bytes a score
/// while sorting and eight bytes for each distinct score afterwards.
#[derive(Clone, Debug)]
pub struct RankedScores {
    /// Cumulative counts at the distinct scores, highest first; the last holds the totals.
    thresholds: Vec<Counts>,
    n_id: u32,
    n_ood: u32,
}

impl RankedScores {
    /// Sorts the scores of the ID and the OOD images. Either may be empty.
    ///
    /// # Errors
    ///
    /// [`MetricError::NotFinite`] for the first NaN or infinity, those of `id` first;
    /// [`MetricError::TooMany`] from 2³² scores on one side.
    pub fn new<T: Score>(id: &[T], ood: &[T]) -> Result<Self, MetricError> {
        let count = |side, len| u32::try_from(len).map_err(|_| MetricError::TooMany { side, len });
        let (n_id, n_ood) = (count(Side::Id, id.len())?, count(Side::Ood, ood.len())?);

        let mut id = keys(id, Side::Id)?;
        let mut ood = keys(ood, Side::Ood)?;
        id.sort_unstable();
        ood.sort_unstable();
        Ok(Self { thresholds: merge_from_the_top(&id, &ood), n_id, n_ood })
    }

    /// The number of ID images.
    pub fn n_id(&self) -> usize {
        self.n_id as usize
    }

    /// The number of OOD images.
    pub fn n_ood(&self) -> usize {
        self.n_ood as usize
    }

    /// The number of distinct scores.
    pub fn n_thresholds(&self) -> usize {
        self.thresholds.len()
    }

    /// Whether there are images on both sides, without which no metric here is defined.
    pub fn is_comparable(&self) -> bool {
        self.n_id > 0 && self.n_ood > 0
    }

    /// All positives and all negatives.
    pub(crate) fn totals(&self, positive: Positive) -> (u32, u32) {
        match positive {
            Positive::Ood => (self.n_ood, self.n_id),
            Positive::Id => (self.n_id, self.n_ood),
        }
    }

    /// True and false positives at the `k`-th threshold, strictest first.
    pub(crate) fn counts_at(&self, positive: Positive, k: usize) -> (u32, u32) {
        match positive {
            Positive::Ood => {
                let counts = self.thresholds[k];
                (counts.ood, counts.id)
            }
            // ID images are accepted from the lowest score upwards: all but those above the threshold.
            Positive::Id => match self.thresholds.len() - 1 - k {
                0 => (self.n_id, self.n_ood),
                above => {
                    let counts = self.thresholds[above - 1];
                    (self.n_id - counts.id, self.n_ood - counts.ood)
                }
            },
        }
    }

    /// True and false positives at each threshold, strictest first; the point (0, 0) is not among them.
    pub(crate) fn curve(&self, positive: Positive) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..self.thresholds.len()).map(move |k| self.counts_at(positive, k))
    }
}

/// Cumulative counts at the distinct keys, from the highest down, of two ascending slices.
fn merge_from_the_top<K: Copy + Ord>(id: &[K], ood: &[K]) -> Vec<Counts> {
    let n_distinct = count_distinct(id, ood);
    let mut thresholds = Vec::with_capacity(n_distinct);
    let (mut n_id_left, mut n_ood_left) = (id.len(), ood.len());
    while let Some(key) = id[..n_id_left].last().max(ood[..n_ood_left].last()) {
        while n_id_left > 0 && id[n_id_left - 1] == *key {
            n_id_left -= 1;
        }
        while n_ood_left > 0 && ood[n_ood_left - 1] == *key {
            n_ood_left -= 1;
        }
        // Both fit: the lengths were checked to.
        let ood = (ood.len() - n_ood_left) as u32;
        let id = (id.len() - n_id_left) as u32;
        thresholds.push(Counts { ood, id });
    }
    thresholds
}

/// The number of distinct keys, so that the counts take the memory they need and not twice of it.
fn count_distinct<K: Ord>(id: &[K], ood: &[K]) -> usize {
    let (mut i, mut o, mut n_distinct) = (0, 0, 0);
    while let Some(key) = match (id.get(i), ood.get(o)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    } {
        while id.get(i) == Some(key) {
            i += 1;
        }
        while ood.get(o) == Some(key) {
            o += 1;
        }
        n_distinct += 1;
    }
    n_distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(ranked: &RankedScores, positive: Positive) -> Vec<(u32, u32)> {
        ranked.curve(positive).collect()
    }

    #[test]
    fn equal_scores_make_one_threshold() {
        let ranked = RankedScores::new(&[1.0, 2.0, 2.0, 0.0], &[2.0, 3.0, -0.0]).unwrap();
        assert_eq!(curve(&ranked, Positive::Ood), [(1, 0), (2, 2), (2, 3), (3, 4)]);
        assert_eq!(curve(&ranked, Positive::Id), [(1, 1), (2, 1), (4, 2), (4, 3)]);
        assert_eq!(ranked.n_thresholds(), 4);
    }

    #[test]
    fn the_curve_of_id_is_that_of_ood_with_scores_and_sides_negated() {
        let (id, ood) = ([0.5, 0.1, 0.7, 0.7], [0.7, 0.9, 0.1]);
        let negated = |scores: &[f64]| scores.iter().map(|score| -score).collect::<Vec<_>>();
        let ranked = RankedScores::new(&id, &ood).unwrap();
        let swapped = RankedScores::new(&negated(&ood), &negated(&id)).unwrap();
        assert_eq!(curve(&ranked, Positive::Id), curve(&swapped, Positive::Ood));
    }

    #[test]
    fn sides_may_be_empty() {
        let nothing = RankedScores::new::<f32>(&[], &[]).unwrap();
        assert_eq!((nothing.n_id(), nothing.n_ood(), nothing.n_thresholds()), (0, 0, 0));
        assert!(!nothing.is_comparable());

        let no_ood = RankedScores::new(&[1.0_f32, 2.0], &[]).unwrap();
        assert_eq!(curve(&no_ood, Positive::Ood), [(0, 1), (0, 2)]);
        assert_eq!(curve(&no_ood, Positive::Id), [(1, 0), (2, 0)]);
    }

    #[test]
    fn id_scores_are_looked_at_before_ood_scores() {
        let error = RankedScores::new(&[1.0, f32::INFINITY], &[f32::NAN]).unwrap_err();
        assert_eq!(
            error,
            MetricError::NotFinite { side: Side::Id, index: 1, value: f64::INFINITY }
        );
    }
}
