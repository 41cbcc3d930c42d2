//! The sets of a run, and the groups that they are averaged in.

use std::io;

use oodbench_metrics::accuracy;
use oodbench_record::{ListedSet, RecordError, RunFolder, SetFile, SetRef};

use crate::error::ReportError;

/// The two groups that OOD sets are averaged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// OOD images that look like ID ones.
    Near,
    /// OOD images that look different.
    Far,
}

impl Group {
    /// Both, in the order of the reports.
    pub const ALL: [Self; 2] = [Self::Near, Self::Far];

    /// Its role in a benchmark: `near` or `far`.
    pub fn role(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    /// Its name in OpenOOD's tables: `nearood` or `farood`.
    pub fn openood_name(self) -> &'static str {
        match self {
            Self::Near => "nearood",
            Self::Far => "farood",
        }
    }
}

/// The sets that an average is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSets {
    /// Which group.
    pub group: Group,
    /// The places of its members in [`super::Leaderboard::sets`].
    pub members: Vec<usize>,
    /// What the benchmark has and the run has not: members, and ID sets that they would have been
    /// compared with. An average without them is another quantity than the benchmark's.
    pub without: Vec<SetRef>,
}

impl GroupSets {
    /// Whether averages of this group bear the mark.
    pub fn is_partial(&self) -> bool {
        !self.without.is_empty()
    }

    /// Whether the benchmark has no such group.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && !self.is_partial()
    }
}

/// A set that was scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredSet {
    /// What was planned.
    pub listed: ListedSet,
    /// Its images; absent until the classifier saw them.
    pub images: Option<SetFile>,
    /// Of the images with a class, the fraction that the classifier gets right.
    pub accuracy: Option<f64>,
}

impl ScoredSet {
    pub(super) fn read(run: &RunFolder, listed: &ListedSet) -> Result<Self, ReportError> {
        let images = match run.set(&listed.set) {
            Ok(images) => Some(images),
            Err(RecordError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                None
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(images) = &images
            && images.ids.len() != listed.n_images
        {
            return Err(ReportError::Images {
                set: listed.set.clone(),
                expected: listed.n_images,
                got: images.ids.len(),
            });
        }
        let accuracy = match &images {
            // Features without logits: nothing is predicted.
            Some(images) if images.predictions.is_empty() => None,
            Some(images) => accuracy(&images.predictions, &images.labels).map_err(|source| {
                ReportError::Metrics {
                    label: "accuracy".to_owned(),
                    set: listed.set.clone(),
                    source,
                }
            })?,
            None => None,
        };
        Ok(Self { listed: listed.clone(), images, accuracy })
    }

    /// Its group in OpenOOD's words: `id`, `nearood`, `farood` or `csid`.
    pub fn openood_group(&self) -> &str {
        match self.listed.set.role.as_str() {
            "id-test" => "id",
            "near" => Group::Near.openood_name(),
            "far" => Group::Far.openood_name(),
            other => other,
        }
    }
}
