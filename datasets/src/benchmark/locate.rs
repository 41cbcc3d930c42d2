//! Opens every set of a benchmark, or says of each what is missing and where it was looked for.

use super::{Benchmark, Role, SetSpec};
use crate::data_dir::DataDir;
use crate::error::DatasetError;
use crate::preprocess::Preprocess;
use crate::source::{ImageSource, Relabelled};

/// A set of a benchmark, and its images if they are there.
pub struct Located {
    pub set: SetSpec,
    /// The preprocessing that holds for it.
    pub preprocess: Preprocess,
    /// [`DatasetError::is_missing`] tells what a run may go on without.
    pub source: Result<Box<dyn ImageSource>, DatasetError>,
}

/// Goes through all sets in the order of the file. Nothing is decoded.
///
/// Out-of-distribution sets get the label -1 throughout, as in OpenOOD, whatever their lists say.
#[must_use]
pub fn locate(benchmark: &Benchmark, data: &DataDir) -> Vec<Located> {
    benchmark
        .sets
        .iter()
        .map(|set| Located {
            set: set.clone(),
            preprocess: benchmark.preprocess_of(set),
            source: open(set, benchmark.classes, data),
        })
        .collect()
}

fn open(
    set: &SetSpec,
    classes: usize,
    data: &DataDir,
) -> Result<Box<dyn ImageSource>, DatasetError> {
    let source = set.images.open(data)?;
    let (role, name) = (set.role.as_str(), set.name.clone());
    if let Some(expected) = set.size
        && source.len() != expected
    {
        return Err(DatasetError::WrongSize { role, set: name, expected, got: source.len() });
    }
    if set.role.is_ood() {
        return Ok(Box::new(Relabelled { source, label: -1 }));
    }
    let in_range =
        |index: &usize| usize::try_from(source.label(*index)).is_ok_and(|label| label < classes);
    match (0..source.len()).find(|index| !in_range(index)) {
        // A shifted set without any labels still serves for the scores, if not for the accuracy.
        Some(_) if set.role == Role::Csid && (0..source.len()).all(|i| source.label(i) == -1) => {
            Ok(source)
        }
        Some(index) => Err(DatasetError::LabelOutOfRange {
            role,
            set: name,
            id: source.id(index),
            last: classes - 1,
            label: source.label(index),
        }),
        None => Ok(source),
    }
}
