//! OOD detection metrics over slices of scores.
//!
//! A score is a finite `f32` or `f64`, and **higher means more out-of-distribution**; the `conf` of
//! OpenOOD is its negative. Results are fractions between 0 and 1; percentages are left to reports.
//!
//! - [`RankedScores`] sorts once; every threshold metric is then one pass over counts.
//! - [`OodMetrics`] is the row that records and leaderboards keep.
//! - [`accuracy`] and [`ccr_at_fpr`] also look at what the classifier predicted.
//! - [`group_mean`] and [`over_seeds`] summarise several data sets or several seeds.
//!
//! **Invariant**: an undefined metric is `None`. A ranking compares ID images with OOD images, so
//! without either there is nothing to rank and all six fields of [`OodMetrics`] are absent; no
//! placeholder such as 0, 0.5 or NaN is ever returned. A NaN or infinite score is refused with the
//! side and the index it was found at.
//!
//! What agrees with scikit-learn and OpenOOD, and what does not, is said at each item; the functions
//! named `*_openood` reproduce a quirk of OpenOOD v1.5 for comparison with published tables and are
//! no good for anything else.
//!
//! ```
//! use oodbench_metrics::{OodMetrics, accuracy, group_mean};
//!
//! let id = [0.1_f32, 0.2, 0.2, 0.4];
//! let near = OodMetrics::new(&id, &[0.2, 0.5])?;
//! let far = OodMetrics::new(&id, &[0.7, 0.9, 1.5])?;
//!
//! assert_eq!(near.auroc, Some(0.75)); // The ties at 0.2 count one half each.
//! assert_eq!(near.fpr95, Some(0.75));
//! assert_eq!(far.auroc, Some(1.0));
//! assert_eq!(group_mean(&[near.auroc, far.auroc]), Some(0.875));
//!
//! // Nothing to compare with: absent, not a number.
//! assert_eq!(OodMetrics::new(&id, &[])?.auroc, None);
//! assert_eq!(accuracy(&[3, 5, 7], &[3, 4, -1])?, Some(0.5));
//! # Ok::<(), oodbench_metrics::MetricError>(())
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod accuracy;
mod ccr;
mod error;
mod group;
mod ood_metrics;
mod precision_recall;
mod ranked;
mod roc;
mod score;

pub use crate::{
    accuracy::{OOD_LABEL, accuracy},
    ccr::{ccr_at_fpr, ccr_at_fpr_openood},
    error::{MetricError, Side},
    group::{Spread, group_mean, over_seeds},
    ood_metrics::OodMetrics,
    ranked::{Positive, RankedScores},
    roc::RocPoint,
    score::Score,
};
