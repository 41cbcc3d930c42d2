//! Cells and their keys. A key hashes the content of all that decides the scores, never names: the
//! pack's bytes, parameters, files, classifier, images, and the sets that the detector is fitted on.

use oodbench_abi::Needs;
use oodbench_datasets::Role;
use oodbench_record::{PlannedCell, PlannedDetector};
use serde_json::{Map, Value};

use super::stage::{Staged, StagedSet};
use super::{BenchRequest, Outline, Selected};
use crate::classifier::device_kind;
use crate::job::{CellJob, FitSets, Job};
use crate::key::KeyBuilder;
use crate::pack::DetectorInfo;

/// Goes into every key. Raise it when the engine gives detectors other data than before.
const CELL_VERSION: &str = "cell/1";

/// A detector with its cells.
#[derive(Clone, Debug)]
pub struct PlannedJob {
    /// What to call it in reports.
    pub label: String,
    pub(super) job: Job,
}

impl PlannedJob {
    pub(super) fn manifest_entry(&self) -> PlannedDetector {
        let cells = self.job.cells.iter();
        PlannedDetector {
            cells: cells.map(|c| PlannedCell { set: c.set.clone(), key: c.key.clone() }).collect(),
            label: self.label.clone(),
            ..entry(&self.job.detector, self.job.params.clone())
        }
    }
}

/// An entry of the manifest without cells.
pub(super) fn entry(info: &DetectorInfo, params: Map<String, Value>) -> PlannedDetector {
    PlannedDetector {
        id: info.id.clone(),
        label: info.id.clone(),
        title: info.title.clone(),
        family: info.family.clone(),
        year: info.year,
        params,
        skipped: None,
        cells: Vec::new(),
    }
}

/// All jobs with all their cells.
pub(super) fn plan(request: &BenchRequest, outline: &Outline, staged: &Staged) -> Vec<PlannedJob> {
    let job = |selected: &Selected| {
        let needs = selected.info.needs;
        let fit = |need, role| staged.of_role(role).filter(|_| needs.contains(need));
        let fitted_on = [
            fit(Needs::TRAIN, Role::IdTrain),
            fit(Needs::VAL, Role::IdVal),
            fit(Needs::VAL_OOD, Role::OodVal),
        ];
        let fitted_key = fitted_key(request, selected, staged, &fitted_on);
        let files = |nth: usize| fitted_on[nth].map(StagedSet::files);
        let cells = staged.scored().map(|set| {
            let mut key = KeyBuilder::new(CELL_VERSION);
            key.part("fitted", &fitted_key);
            key.part("images", set.images.content_hash());
            let (key, set_ref) = (key.finish(), set.set.clone());
            CellJob { key, set: set_ref, files: set.files(), of_images: set.of_images }
        });
        let job = Job {
            library: selected.library.clone(),
            pack: selected.pack.clone(),
            detector: selected.info.clone(),
            params: selected.params.clone(),
            assets: selected
                .assets
                .iter()
                .map(|(name, asset)| (name.clone(), asset.path.clone()))
                .collect(),
            seed: request.seed,
            threads: request.threads,
            device: request.device.clone(),
            batch_size: request.batch_size,
            memory_limit: request.memory_limit,
            classifier: outline.classifier.clone(),
            head: staged.head.clone(),
            fit: FitSets { train: files(0), val: files(1), val_ood: files(2) },
            cells: cells.collect(),
            run: request.out.clone(),
            state: request.cache.join("states").join(format!("{fitted_key}.state")),
            version: request.version.clone(),
        };
        PlannedJob { label: selected.info.id.clone(), job }
    };
    outline.detectors.iter().map(job).collect()
}

/// The key of a fitted detector.
fn fitted_key(
    request: &BenchRequest,
    selected: &Selected,
    staged: &Staged,
    fitted_on: &[Option<&StagedSet>; 3],
) -> String {
    let mut key = KeyBuilder::new("fitted/1");
    key.part("pack", &selected.pack.blake3);
    key.part("detector", &selected.info.id);
    for (name, value) in &selected.params {
        // A file counts by its content.
        let content = selected.assets.get(name).map(|asset| asset.blake3.clone());
        key.part(name, &content.unwrap_or_else(|| value.to_string()));
    }
    key.part("classifier", &staged.classifier_key);
    key.part("seed", &request.seed.to_string());
    key.part("device", device_kind(&request.device));
    for (role, set) in ["train", "val", "val-ood"].iter().zip(fitted_on) {
        key.part(role, set.map_or("none", |set| set.images.content_hash()));
    }
    key.finish()
}
