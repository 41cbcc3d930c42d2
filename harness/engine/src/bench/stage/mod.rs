//! What cells are made of: the feature bank of every set that the run needs, from images or from
//! exported features.

mod features;
mod images;

use std::path::PathBuf;

use oodbench_abi::Needs;
use oodbench_datasets::Role;
use oodbench_record::{Classifier, ListedSet, RunFolder, SCHEMA, SetFile, SetRef, Warning};

use super::source::Opened;
use super::{BenchRequest, Observer, Outline};
use crate::bank::HeadFile;
use crate::error::EngineError;
use crate::job::SetFiles;
use crate::set::SetData;

/// A set that is ready.
pub(super) struct StagedSet {
    pub(super) role: Role,
    pub(super) set: SetRef,
    pub(super) files: SetFiles,
    pub(super) data: SetData,
    /// Hash of all that detectors get of it.
    pub(super) content: String,
    pub(super) of_images: usize,
}

impl StagedSet {
    pub(super) fn listed(&self) -> ListedSet {
        ListedSet {
            set: self.set.clone(),
            n_images: self.data.len(),
            of_images: self.of_images,
            content: self.content.clone(),
        }
    }
}

/// The sets that a search scores.
pub(super) struct SearchSets {
    pub(super) id: StagedSet,
    pub(super) ood: StagedSet,
}

/// What a run is of, as the records have it.
pub(super) struct About {
    pub(super) benchmark: String,
    pub(super) title: String,
    pub(super) version: String,
    pub(super) classifier: Classifier,
}

/// Everything that cells are made of.
pub(super) struct Staged {
    /// What detectors are fitted on, and what they score when their parameters are known.
    pub(super) sets: Vec<StagedSet>,
    /// Absent without a search.
    pub(super) search: Option<SearchSets>,
    /// Absent where it was not exported.
    pub(super) head: Option<PathBuf>,
    pub(super) classifier_key: String,
    pub(super) n_classes: usize,
    pub(super) n_features: usize,
    /// How many images a network takes at once, and a detector that asks for pixels.
    pub(super) batch_size: usize,
    pub(super) about: About,
}

impl Staged {
    /// The sets that are scored, in the order of the benchmark.
    pub(super) fn scored(&self) -> impl Iterator<Item = &StagedSet> {
        self.sets.iter().filter(|set| is_scored(set.role))
    }

    pub(super) fn of_role(&self, role: Role) -> Option<&StagedSet> {
        self.sets.iter().find(|set| set.role == role)
    }

    /// Writes ids, labels and predictions of the scored sets.
    pub(super) fn write_sets(&self, folder: &RunFolder) -> Result<(), EngineError> {
        for StagedSet { set, data, .. } in self.scored() {
            folder.write_set(&SetFile {
                schema: SCHEMA,
                set: set.clone(),
                ids: (0..data.len()).map(|i| data.id(i).into_owned()).collect(),
                labels: data.labels().to_vec(),
                predictions: data.bank().predictions(),
            })?;
        }
        Ok(())
    }
}

fn is_scored(role: Role) -> bool {
    matches!(role, Role::IdTest | Role::Near | Role::Far | Role::Csid)
}

/// Whether any detector looks at a set of this role.
fn is_needed(role: Role, outline: &Outline) -> bool {
    let need = match role {
        Role::IdTrain => Needs::TRAIN,
        Role::IdVal => Needs::VAL,
        Role::OodVal => Needs::VAL_OOD,
        _ => return true,
    };
    outline.detectors.iter().any(|detector| detector.info.needs.contains(need))
}

/// A source whose sets are made ready one by one.
trait Stager {
    /// The role of each set.
    fn roles(&self) -> Vec<Role>;

    /// Makes a set ready; at most `limit` images of it.
    fn set(&self, nth: usize, limit: Option<usize>) -> Result<StagedSet, EngineError>;

    /// What holds for all sets.
    fn finish(
        self: Box<Self>,
        sets: Vec<StagedSet>,
        search: Option<SearchSets>,
    ) -> Result<Staged, EngineError>;
}

/// Prepares what is needed and not there yet.
pub(super) fn stage(
    request: &BenchRequest,
    outline: &Outline,
    opened: Opened<'_>,
    observer: &dyn Observer,
) -> Result<Staged, EngineError> {
    let stager: Box<dyn Stager + '_> = match opened {
        Opened::Images(opened) => Box::new(images::ImageStager::new(request, opened, observer)?),
        Opened::Features(folder) => {
            Box::new(features::FeatureStager::new(request, folder, observer)?)
        }
    };
    let searches = outline.detectors.iter().any(|detector| detector.search.is_some());
    let (mut sets, mut id, mut ood) = (Vec::new(), None, None);
    for (nth, role) in stager.roles().into_iter().enumerate() {
        // A limit holds for what is scored, by a search too, but never for what is fitted on.
        if is_needed(role, outline) {
            sets.push(stager.set(nth, request.limit.filter(|_| is_scored(role)))?);
        }
        if searches && matches!(role, Role::IdVal | Role::OodVal) {
            let place = if role == Role::IdVal { &mut id } else { &mut ood };
            *place = Some(stager.set(nth, request.limit)?);
        }
    }
    let search = id.zip(ood).map(|(id, ood)| SearchSets { id, ood });
    let staged = stager.finish(sets, search)?;
    if let Some(head) = &staged.head {
        HeadFile::open(head)?;
    }
    warn_of_accuracy(&staged, observer);
    Ok(staged)
}

/// A classifier with the wrong normalisation still gives scores; its accuracy tells.
fn warn_of_accuracy(staged: &Staged, observer: &dyn Observer) {
    let Some(StagedSet { set, data, .. }) = staged.of_role(Role::IdTest) else { return };
    let predictions = data.bank().predictions();
    let Ok(Some(accuracy)) = oodbench_metrics::accuracy(&predictions, data.labels()) else {
        return;
    };
    let stated = staged.about.classifier.stated_accuracy;
    let warning = Warning::of_accuracy(set, accuracy, data.len(), stated, staged.n_classes);
    if let Some(warning) = warning {
        observer.warn(&warning.to_string());
    }
}
