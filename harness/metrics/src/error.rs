//! Why a metric was refused. The texts read on after "failed to compute metrics: ".

use std::fmt;

/// Which of the two sets of scores an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The in-distribution images.
    Id,
    /// The out-of-distribution images.
    Ood,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Id => "ID",
            Side::Ood => "OOD",
        })
    }
}

/// An input that no metric can be computed from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MetricError {
    /// A score is NaN or infinite.
    NotFinite {
        /// The set that holds the score.
        side: Side,
        /// Its position in the slice that was passed.
        index: usize,
        /// The score.
        value: f64,
    },
    /// More scores on one side than the counts can hold (2³² - 1).
    TooMany {
        /// The set that is too large.
        side: Side,
        /// Its number of scores.
        len: usize,
    },
    /// A rate that should be a fraction lies outside of 0 to 1, or is NaN.
    NotAFraction {
        /// Which argument it was, e.g. `tpr`.
        name: &'static str,
        /// What was passed.
        value: f64,
    },
    /// Slices that describe the same images differ in length.
    LengthMismatch {
        /// The name of the longer or shorter slice.
        name: &'static str,
        /// The number of images.
        expected: usize,
        /// The length of the slice.
        got: usize,
    },
    /// An image passed as ID bears the label −1, which marks OOD images.
    OodLabelAmongId {
        /// Its position in the slice that was passed.
        index: usize,
    },
}

impl fmt::Display for MetricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricError::NotFinite { side, index, value } => {
                write!(f, "{side} score at index {index} expected a finite number, got `{value}`")
            }
            MetricError::TooMany { side, len } => {
                write!(f, "{side} scores expected at most {} of them, got {len}", u32::MAX)
            }
            MetricError::NotAFraction { name, value } => {
                write!(f, "`{name}` expected a fraction between 0 and 1, got `{value}`")?;
                if *value > 1.0 && *value <= 100.0 {
                    write!(f, "\n\nhint: percentages are divided by 100: `{}`", value / 100.0)?;
                }
                Ok(())
            }
            MetricError::LengthMismatch { name, expected, got } => {
                write!(f, "`{name}` expected {expected} entries, one for each image, got {got}")
            }
            MetricError::OodLabelAmongId { index } => {
                write!(f, "ID label at index {index} expected a class, got -1, the mark of OOD")
            }
        }
    }
}

impl std::error::Error for MetricError {}

/// Refuses what is not a fraction, so that a percentage cannot pass for one.
pub(crate) fn check_fraction(name: &'static str, value: f64) -> Result<(), MetricError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(MetricError::NotAFraction { name, value })
    }
}

/// Refuses a slice that does not have one entry for each image.
pub(crate) fn check_len(
    name: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), MetricError> {
    if expected == got { Ok(()) } else { Err(MetricError::LengthMismatch { name, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: MetricError, text: &str) {
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn texts_say_what_was_expected_before_what_was_found() {
        check(
            MetricError::NotFinite { side: Side::Ood, index: 3, value: f64::NAN },
            "OOD score at index 3 expected a finite number, got `NaN`",
        );
        check(
            MetricError::NotAFraction { name: "tpr", value: 95.0 },
            "`tpr` expected a fraction between 0 and 1, got `95`\n\n\
             hint: percentages are divided by 100: `0.95`",
        );
        check(
            MetricError::LengthMismatch { name: "labels", expected: 4, got: 3 },
            "`labels` expected 4 entries, one for each image, got 3",
        );
    }

    #[test]
    fn fractions_end_at_zero_and_one() {
        for value in [0.0, -0.0, 0.5, 1.0] {
            assert_eq!(check_fraction("tpr", value), Ok(()));
        }
        for value in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert!(check_fraction("tpr", value).is_err(), "{value}");
        }
    }
}
