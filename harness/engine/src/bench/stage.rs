//! Prepared images and the feature bank of every set that the run needs.

use std::path::PathBuf;
use std::sync::Arc;

use oodbench_abi::Needs;
use oodbench_datasets::{Located, Pack, PrepareRequest, Role, prepare};
use oodbench_nn::classifier::Classifier;
use oodbench_record::{ListedSet, RunFolder, SCHEMA, SetFile, SetRef};

use super::{BenchRequest, Observer, Outline, set_ref};
use crate::bank::{Bank, BankFolder, HeadFile};
use crate::error::EngineError;
use crate::job::SetFiles;

/// How far the accuracy may be off what is stated of a checkpoint before the user is told.
const ACCURACY_SLACK: f64 = 0.02;

/// A set that is ready.
pub(super) struct StagedSet {
    pub(super) role: Role,
    pub(super) set: SetRef,
    pub(super) images: Arc<Pack>,
    pub(super) bank: PathBuf,
    pub(super) of_images: usize,
}

impl StagedSet {
    pub(super) fn files(&self) -> SetFiles {
        SetFiles { pack: self.images.path().to_owned(), bank: self.bank.clone() }
    }

    pub(super) fn listed(&self) -> ListedSet {
        ListedSet {
            set: self.set.clone(),
            n_images: self.images.len(),
            of_images: self.of_images,
            content: self.images.content_hash().to_owned(),
        }
    }
}

/// The sets that a search scores.
pub(super) struct SearchSets {
    pub(super) id: StagedSet,
    pub(super) ood: StagedSet,
}

/// Everything that cells are made of.
pub(super) struct Staged {
    /// What detectors are fitted on, and what they score when their parameters are known.
    pub(super) sets: Vec<StagedSet>,
    /// Absent without a search.
    pub(super) search: Option<SearchSets>,
    pub(super) head: PathBuf,
    pub(super) classifier_key: String,
    pub(super) arch: String,
    pub(super) n_features: usize,
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
        for set in self.scored() {
            let images = &set.images;
            folder.write_set(&SetFile {
                schema: SCHEMA,
                set: set.set.clone(),
                ids: (0..images.len()).map(|i| images.id(i).to_owned()).collect(),
                labels: images.labels().to_vec(),
                predictions: Bank::open(&set.bank)?.predictions(),
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

/// Prepares what is needed and not there yet.
pub(super) fn stage(
    request: &BenchRequest,
    outline: &Outline,
    located: Vec<Located>,
    observer: &dyn Observer,
) -> Result<Staged, EngineError> {
    // Weights that do not fit are reported before anything is decoded.
    let classifier = outline.classifier.load(&request.device)?;
    let classifier_key = outline.classifier.key(&request.device);
    let folder = BankFolder::new(&request.cache, &classifier_key);
    folder.write_head(&classifier)?;
    let searches = outline.detectors.iter().any(|detector| detector.search.is_some());
    let (mut sets, mut searched) = (Vec::new(), Vec::new());
    for set in located {
        let role = set.set.role;
        let source = set.source?;
        let name = format!("{}-{}-{}", request.benchmark.name, role, set.set.name);
        let stage = |limit: Option<usize>| -> Result<StagedSet, EngineError> {
            let images = prepare(
                source.as_ref(),
                &PrepareRequest {
                    name: &name,
                    preprocess: set.preprocess,
                    limit,
                    cache_dir: &request.cache.join("packs"),
                    progress: observer,
                },
            )?;
            let bank = fill(&folder, &images, &classifier, request, observer)?;
            let (set, images) = (set_ref(role, &set.set.name), Arc::new(images));
            Ok(StagedSet { role, set, images, bank, of_images: source.len() })
        };
        // A limit holds for what is scored, by a search too, but never for what is fitted on.
        if is_needed(role, outline) {
            sets.push(stage(request.limit.filter(|_| is_scored(role)))?);
        }
        if searches && matches!(role, Role::IdVal | Role::OodVal) {
            searched.push(stage(request.limit)?);
        }
    }
    let [mut id, mut ood] = [None, None];
    for set in searched {
        let place = if set.role == Role::IdVal { &mut id } else { &mut ood };
        *place = Some(set);
    }
    let staged = Staged {
        sets,
        search: id.zip(ood).map(|(id, ood)| SearchSets { id, ood }),
        head: folder.head_path(),
        classifier_key,
        arch: classifier.arch().to_string(),
        n_features: classifier.n_features(),
    };
    HeadFile::open(&staged.head)?;
    warn_of_accuracy(&staged, outline, observer)?;
    Ok(staged)
}

fn fill(
    folder: &BankFolder,
    images: &Pack,
    classifier: &Classifier,
    request: &BenchRequest,
    observer: &dyn Observer,
) -> Result<PathBuf, EngineError> {
    let path = folder.path(images);
    if !path.is_file() {
        return folder.fill(images, classifier, request.batch_size, observer);
    }
    let bank = Bank::open(&path)?;
    let expected = [images.len(), classifier.n_classes(), classifier.n_features()];
    let got = [bank.len(), bank.n_classes(), bank.n_features()];
    if expected == got {
        return Ok(path);
    }
    Err(EngineError::Bank { path, expected: format!("{expected:?}"), got: format!("{got:?}") })
}

/// A classifier with the wrong normalisation still gives scores; its accuracy tells.
fn warn_of_accuracy(
    staged: &Staged,
    outline: &Outline,
    observer: &dyn Observer,
) -> Result<(), EngineError> {
    let Some(test) = staged.of_role(Role::IdTest) else { return Ok(()) };
    let predictions = Bank::open(&test.bank)?.predictions();
    let Ok(Some(accuracy)) = oodbench_metrics::accuracy(&predictions, test.images.labels()) else {
        return Ok(());
    };
    let percent = 100.0 * accuracy;
    let chance = 1.0 / outline.classifier.n_classes as f64;
    match outline.classifier.stated_accuracy {
        Some(stated) if (stated - accuracy).abs() > ACCURACY_SLACK && test.images.len() >= 1000 => {
            observer.warn(&format!(
                "the classifier is right on {percent:.2} % of {}, and {:.2} % are stated of it: is it another data set?",
                test.set,
                100.0 * stated
            ));
        }
        None if accuracy < 2.0 * chance && test.images.len() >= 100 => observer.warn(&format!(
            "the classifier is right on {percent:.2} % of {}, which is near chance: do mean, std and the order of classes fit the weights?",
            test.set
        )),
        _ => {}
    }
    Ok(())
}
