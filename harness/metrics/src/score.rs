//! Scores as integers that sort the same way.
//!
//! An unsigned integer compares in one instruction and sorts without a comparator that has to think
//! of NaN. It is made from the bits of the float: those of a negative number are all inverted,
//! those of a positive number get the sign bit set.

use crate::error::{MetricError, Side};

/// A score: `f32` or `f64`. Sealed, since the metrics rely on the order of [`Score::Key`].
pub trait Score: Copy + sealed::Sealed {
    /// An integer that orders as the scores do; −0.0 and 0.0 have the same one.
    type Key: Copy + Ord;

    /// The key of a finite score, `None` for NaN and the infinities.
    fn key(self) -> Option<Self::Key>;

    /// The score as `f64`, which is exact.
    fn to_f64(self) -> f64;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

macro_rules! impl_score {
    ($float:ty, $key:ty) => {
        impl Score for $float {
            type Key = $key;

            #[inline]
            fn key(self) -> Option<$key> {
                if !self.is_finite() {
                    return None;
                }
                // Adding zero turns -0.0 into 0.0 and leaves every other number as it is.
                let bits = (self + 0.0).to_bits();
                const SIGN: $key = 1 << (<$key>::BITS - 1);
                Some(if bits & SIGN == 0 { bits | SIGN } else { !bits })
            }

            #[inline]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
        }
    };
}

impl_score!(f32, u32);
impl_score!(f64, u64);

/// The keys of `scores` in the order given.
pub(crate) fn keys<T: Score>(scores: &[T], side: Side) -> Result<Vec<T::Key>, MetricError> {
    let mut keys = Vec::with_capacity(scores.len());
    for (index, score) in scores.iter().enumerate() {
        let not_finite = || MetricError::NotFinite { side, index, value: score.to_f64() };
        keys.push(score.key().ok_or_else(not_finite)?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_the_scores_do() {
        let ascending = [f32::MIN, -2.5, -1e-38, -1e-45, 0.0, 1e-45, 1e-38, 0.1, 3.0, f32::MAX];
        let of_f32 = keys(&ascending, Side::Id).unwrap();
        assert!(of_f32.is_sorted_by(|a, b| a < b), "{of_f32:?}");

        let ascending = [f64::MIN, -1.0, -5e-324, 0.0, 5e-324, 1.0, 1.0 + f64::EPSILON, f64::MAX];
        let of_f64 = keys(&ascending, Side::Id).unwrap();
        assert!(of_f64.is_sorted_by(|a, b| a < b), "{of_f64:?}");
    }

    #[test]
    fn zeros_of_either_sign_are_equal() {
        assert_eq!((-0.0_f32).key(), 0.0_f32.key());
        assert_eq!((-0.0_f64).key(), 0.0_f64.key());
    }

    #[test]
    fn a_score_that_is_not_finite_is_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            match keys(&[1.0, 2.0, value], Side::Ood) {
                Err(MetricError::NotFinite { side: Side::Ood, index: 2, value: found }) => {
                    assert_eq!(found.to_bits(), f64::from(value).to_bits());
                }
                other => panic!("{value}: {other:?}"),
            }
        }
    }
}
