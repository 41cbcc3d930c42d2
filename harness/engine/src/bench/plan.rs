//! Cells and their keys. A key hashes the content of all that decides the scores, never names: the
//! pack's bytes, parameters, files, classifier, images, and the sets that the detector is fitted on.
//! A cell of a search has the key that it would have as a cell of its own.

use oodbench_abi::Needs;
use oodbench_datasets::Role;
use oodbench_record::{Combination, PlannedCell, PlannedDetector, RunFolder, Search};
use serde_json::{Map, Value};

use super::params::content_of;
use super::search::{Grid, PlannedSearch};
use super::stage::{SearchSets, Staged, StagedSet};
use super::{BenchRequest, Outline, Selected};
use crate::classifier::device_kind;
use crate::error::EngineError;
use crate::job::{CellJob, FitSets, Job, Variant};
use crate::key::KeyBuilder;
use crate::pack::DetectorInfo;

/// Goes into every key. Raise it when the engine gives detectors other data than before.
const CELL_VERSION: &str = "cell/1";

/// What one worker does.
#[derive(Clone, Debug)]
pub(super) struct PlannedJob {
    /// What to call it while it runs.
    pub(super) label: String,
    pub(super) job: Job,
}

/// A detector with what there is to do for it.
pub(super) struct Planned<'a> {
    pub(super) selected: &'a Selected,
    pub(super) search: Option<PlannedSearch>,
    /// Scores the sets; absent where a search has not chosen the parameters yet, or cannot.
    pub(super) test: Option<PlannedJob>,
}

impl Planned<'_> {
    /// What to call it in reports.
    pub(super) fn label(&self) -> &str {
        &self.selected.info.id
    }

    pub(super) fn manifest_entry(&self) -> PlannedDetector {
        let cells = self.test.iter().flat_map(|test| &test.job.cells);
        let cells = cells.map(|c| PlannedCell { set: c.set.clone(), key: c.key.clone() }).collect();
        let chosen = self.test.as_ref().map(|test| &test.job.variants[0].params);
        let params = chosen.unwrap_or(&self.selected.params).clone();
        let search = self.search.as_ref().map(|search| search.record.clone());
        PlannedDetector { cells, search, ..entry(&self.selected.info, params) }
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
        search: None,
        cells: Vec::new(),
    }
}

/// Makes jobs of detectors.
pub(super) struct Planner<'a> {
    pub(super) request: &'a BenchRequest,
    pub(super) outline: &'a Outline,
    pub(super) staged: &'a Staged,
}

/// The sets that a detector is fitted on.
type FittedOn<'a> = [Option<&'a StagedSet>; 3];

impl<'a> Planner<'a> {
    /// All detectors with all that is known of their cells.
    pub(super) fn plan(&self) -> Vec<Planned<'a>> {
        let plan = |selected: &'a Selected| {
            let grid = selected.search.as_ref().zip(self.staged.search.as_ref());
            let search = grid.map(|(grid, sets)| self.search(selected, grid, sets));
            let test = search.is_none().then(|| self.test(selected, &selected.params));
            Planned { selected, search, test }
        };
        self.outline.detectors.iter().map(plan).collect()
    }

    /// Once a search has ended, notes what it has chosen and plans the cells of the sets. Returns
    /// the AUROC of what was chosen.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub(super) fn settle(
        &self,
        plan: &mut Planned<'a>,
        folder: &RunFolder,
    ) -> Result<Option<f64>, EngineError> {
        let Some(search) = plan.search.as_mut() else { return Ok(None) };
        if !search.has_ended(folder)? {
            return Ok(None);
        }
        let best = search.best(folder)?;
        search.record.chosen = best.map(|(place, _)| place);
        let params = search.record.chosen.map(|place| &search.grid.combinations[place]);
        plan.test = params.map(|params| self.test(plan.selected, params));
        Ok(best.map(|(_, auroc)| auroc))
    }

    /// The job that scores the sets.
    fn test(&self, selected: &Selected, params: &Map<String, Value>) -> PlannedJob {
        let label = selected.info.id.clone();
        let sets: Vec<&StagedSet> = self.staged.scored().collect();
        let variants = vec![Variant { label: label.clone(), params: params.clone() }];
        PlannedJob { label, job: self.job(selected, variants, &sets) }
    }

    fn search(&self, selected: &Selected, grid: &Grid, sets: &SearchSets) -> PlannedSearch {
        let SearchSets { id, ood } = sets;
        let info = &selected.info;
        let fitted_on = self.fitted_on(info.needs);
        let combinations = grid.combinations.iter().map(|params| {
            let fitted = self.fitted_key(selected, params, &fitted_on, Keyed::All);
            let (id, ood) = (cell_key(&fitted, id), cell_key(&fitted, ood));
            Combination { params: params.clone(), id, ood }
        });
        let jobs = grid.groups(info).into_iter().map(|places| {
            let label = match places[..] {
                [place] => format!("{} with {}", info.id, grid.text(place)),
                _ => format!("{} with {} combinations", info.id, places.len()),
            };
            let variant = |&place: &usize| {
                let params = grid.combinations[place].clone();
                Variant { label: format!("{} with {}", info.id, grid.text(place)), params }
            };
            let variants = places.iter().map(variant).collect();
            PlannedJob { label, job: self.job(selected, variants, &[id, ood]) }
        });
        PlannedSearch {
            jobs: jobs.collect(),
            record: Search {
                id: id.listed(),
                ood: ood.listed(),
                parameters: grid.parameters.clone(),
                combinations: combinations.collect(),
                chosen: None,
            },
            grid: grid.clone(),
        }
    }

    /// A job with a cell for each of these sets and variants, which differ in readouts alone.
    fn job(&self, selected: &Selected, variants: Vec<Variant>, sets: &[&StagedSet]) -> Job {
        let Self { request, outline, staged } = self;
        let fitted_on = self.fitted_on(selected.info.needs);
        let key = |variant: &Variant, keyed| {
            self.fitted_key(selected, &variant.params, &fitted_on, keyed)
        };
        let fitted: Vec<String> = variants.iter().map(|it| key(it, Keyed::All)).collect();
        let state = key(&variants[0], Keyed::ButReadouts);
        let files = |nth: usize| fitted_on[nth].map(|set| set.files.clone());
        let cells = sets.iter().flat_map(|set| {
            fitted.iter().enumerate().map(|(variant, fitted)| CellJob {
                key: cell_key(fitted, set),
                variant,
                set: set.set.clone(),
                files: set.files.clone(),
                of_images: set.of_images,
            })
        });
        Job {
            library: selected.library.clone(),
            pack: selected.pack.clone(),
            detector: selected.info.clone(),
            cells: cells.collect(),
            variants,
            assets: selected
                .assets
                .iter()
                .map(|(name, asset)| (name.clone(), asset.path.clone()))
                .collect(),
            seed: request.seed,
            threads: request.threads,
            device: request.device.clone(),
            gpu: request.gpu.as_ref().map(|gpu| gpu.name.clone()),
            precision: request.precision,
            batch_size: staged.batch_size,
            memory_limit: request.memory_limit,
            classifier: outline.origin.classifier().cloned(),
            head: staged.head.clone(),
            n_classes: staged.n_classes,
            n_features: staged.n_features,
            fit: FitSets { train: files(0), val: files(1), val_ood: files(2) },
            run: request.out.clone(),
            state: request.cache.join("states").join(format!("{state}.state")),
            version: request.version.clone(),
        }
    }

    fn fitted_on(&self, needs: Needs) -> FittedOn<'a> {
        let fit = |need, role| self.staged.of_role(role).filter(|_| needs.contains(need));
        [
            fit(Needs::TRAIN, Role::IdTrain),
            fit(Needs::VAL, Role::IdVal),
            fit(Needs::VAL_OOD, Role::OodVal),
        ]
    }

    /// The key of a fitted detector.
    fn fitted_key(
        &self,
        selected: &Selected,
        params: &Map<String, Value>,
        fitted_on: &FittedOn<'_>,
        keyed: Keyed,
    ) -> String {
        let info = &selected.info;
        let is_readout = |name: &str| info.param(name).is_some_and(|param| param.readout);
        let mut key = KeyBuilder::new("fitted/1");
        key.part("pack", &selected.pack.blake3);
        key.part("detector", &info.id);
        for (name, value) in params {
            if keyed == Keyed::ButReadouts && is_readout(name) {
                continue;
            }
            key.part(name, &content_of(name, value, &selected.assets));
        }
        key.part("classifier", &self.staged.classifier_key);
        key.part("seed", &self.request.seed.to_string());
        key.part("device", device_kind(&self.request.device));
        for (role, set) in ["train", "val", "val-ood"].iter().zip(fitted_on) {
            key.part(role, set.map_or("none", |set| &set.content));
        }
        key.finish()
    }
}

/// Which parameters go into a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyed {
    /// All, for scores.
    All,
    /// Those that a fitted state depends on.
    ButReadouts,
}

fn cell_key(fitted: &str, set: &StagedSet) -> String {
    let mut key = KeyBuilder::new(CELL_VERSION);
    key.part("fitted", fitted);
    key.part("images", &set.content);
    key.finish()
}
