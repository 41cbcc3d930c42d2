//! The bench: from a request over a plan to records.
//!
//! 1. `select` finds the detectors and their parameters;
//! 2. `stage` prepares images and fills the feature bank;
//! 3. `plan` gives every cell its key;
//! 4. `run` runs what is not there yet, a worker for each detector and set of parameters;
//! 5. `search` chooses parameters on the way, where that is asked for.

mod params;
mod plan;
mod run;
mod search;
mod select;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use oodbench_datasets::{Benchmark, DataDir, Progress, Role, locate};
use oodbench_record::{Classifier, Machine, MissingSet, RunFolder, RunManifest, SetRef};
use serde_json::{Map, Value};

use crate::classifier::ClassifierRef;
use crate::error::EngineError;
use crate::pack::Catalogue;
use crate::supervise::WorkerCommand;
use crate::text::chain;

pub use params::Setting;
pub use run::{CellEnd, Isolation, Summary};
pub use search::{Grid, first_greatest};
pub use select::{Selected, Skipped};

use plan::Planned;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    pub benchmark: Benchmark,
    /// Where relative paths of the benchmark file start.
    pub base: PathBuf,
    /// Detectors, or `all`.
    pub methods: Vec<String>,
    /// Whether the benchmark's baselines run too.
    pub baselines: bool,
    pub settings: Vec<Setting>,
    pub data: PathBuf,
    pub cache: PathBuf,
    pub out: PathBuf,
    pub classifier: Option<String>,
    pub device: String,
    pub threads: usize,
    pub seed: u64,
    /// At most so many images of each scored set.
    pub limit: Option<usize>,
    /// Whether parameters that the user does not set are chosen on validation images.
    pub search: bool,
    pub batch_size: usize,
    pub allow_missing: bool,
    pub full_spectrum: bool,
    /// Run finished cells again.
    pub force: bool,
    pub isolation: Isolation,
    pub silence: Duration,
    pub memory_limit: Option<u64>,
    /// The version of oodbench.
    pub version: String,
}

/// Who is told how a run goes.
pub trait Observer: Progress {
    /// Something that the user should know.
    fn warn(&self, message: &str);
    /// Something that helps to find a fault.
    fn debug(&self, message: &str);
    /// How the run goes.
    fn note(&self, message: &str);
    /// A detector begins.
    fn detector(&self, label: &str, nth: usize, of: usize);
    /// A cell has ended, or was there already.
    fn cell(&self, label: &str, set: &SetRef, end: &CellEnd);
}

/// What a run would do, before anything is computed.
#[derive(Clone, Debug)]
pub struct Outline {
    pub detectors: Vec<Selected>,
    pub skipped: Vec<Skipped>,
    /// Every set with its number of images.
    pub sets: Vec<(SetRef, usize)>,
    pub missing: Vec<MissingSet>,
    pub classifier: ClassifierRef,
}

pub(crate) fn set_ref(role: Role, name: &str) -> SetRef {
    SetRef { role: role.as_str().to_owned(), name: name.to_owned() }
}

fn missing_sets(
    request: &BenchRequest,
    located: &mut Vec<oodbench_datasets::Located>,
) -> Result<Vec<MissingSet>, EngineError> {
    let mut missing = Vec::new();
    let mut present = Vec::new();
    for set in located.drain(..) {
        match set.source {
            Err(error) if error.is_missing() => {
                let reason = chain(&error);
                missing.push(MissingSet { set: set_ref(set.set.role, &set.set.name), reason });
            }
            Err(error) => return Err(error.into()),
            Ok(_) => present.push(set),
        }
    }
    let no_test = missing.iter().any(|set| set.set.role == Role::IdTest.as_str());
    let no_ood = !present.iter().any(|set| matches!(set.set.role, Role::Near | Role::Far));
    if !missing.is_empty() && (!request.allow_missing || no_test || no_ood) {
        let missing = missing.into_iter().map(|set| (set.set, set.reason)).collect();
        return Err(EngineError::MissingSets {
            benchmark: request.benchmark.name.clone(),
            missing,
        });
    }
    *located = present;
    Ok(missing)
}

/// Opens the sets and selects the detectors, without computing anything.
fn prepare_outline(
    request: &BenchRequest,
    catalogue: &Catalogue,
) -> Result<(Outline, Vec<oodbench_datasets::Located>), EngineError> {
    let data = DataDir::new(&request.data, request.cache.join("scratch"));
    let mut located = locate(&request.benchmark, &data);
    let missing = missing_sets(request, &mut located)?;
    let roles: Vec<Role> = located.iter().map(|set| set.set.role).collect();
    let lacking = [Role::IdVal, Role::OodVal].into_iter().find(|role| !roles.contains(role));
    if let Some(role) = lacking.filter(|_| request.search) {
        let (benchmark, role) = (request.benchmark.name.clone(), role.to_string());
        return Err(EngineError::NoValidation { benchmark, role });
    }
    let (detectors, skipped) = select::select(request, catalogue, &roles)?;
    if detectors.is_empty() {
        let reasons = skipped.iter().map(|s| format!("`{}` {}", s.info.id, s.reason)).collect();
        return Err(EngineError::NothingSelected { reasons });
    }
    let sets = located
        .iter()
        .map(|set| {
            let count = set.source.as_ref().map_or(0, |source| source.len());
            (set_ref(set.set.role, &set.set.name), count)
        })
        .collect();
    let typed = request.classifier.as_deref();
    let classifier =
        ClassifierRef::resolve(typed, &request.benchmark, &request.base, &request.cache)?;
    Ok((Outline { detectors, skipped, sets, missing, classifier }, located))
}

/// What a run would do.
///
/// # Errors
/// Whatever would keep it from starting.
pub fn outline(request: &BenchRequest, catalogue: &Catalogue) -> Result<Outline, EngineError> {
    Ok(prepare_outline(request, catalogue)?.0)
}

/// Runs the bench and leaves its records in the run folder.
///
/// # Errors
/// Whatever keeps it from starting, or from saving a result. A cell that fails is no error.
pub fn bench(
    request: &BenchRequest,
    catalogue: &Catalogue,
    worker: &WorkerCommand,
    observer: &dyn Observer,
) -> Result<Summary, EngineError> {
    let (outline, located) = prepare_outline(request, catalogue)?;
    let folder = RunFolder::new(&request.out);
    let _lock = run::lock(&folder)?;
    folder.sweep()?;
    crate::bank::sweep(&request.cache)?;
    let staged = stage::stage(request, &outline, located, observer)?;
    let planner = plan::Planner { request, outline: &outline, staged: &staged };
    let mut plans = planner.plan();
    if !request.force {
        // What an earlier run has chosen stands in the manifest from the start.
        for plan in &mut plans {
            planner.settle(plan, &folder)?;
        }
    }
    let write = |plans: &[Planned<'_>]| -> Result<(), EngineError> {
        Ok(folder.write_manifest(&manifest(request, &outline, &staged, plans))?)
    };
    write(&plans)?;
    staged.write_sets(&folder)?;
    run::Runner { request, worker, folder: &folder, observer }.run(&planner, &mut plans, &write)
}

fn manifest(
    request: &BenchRequest,
    outline: &Outline,
    staged: &stage::Staged,
    plans: &[Planned<'_>],
) -> RunManifest {
    let classifier = &outline.classifier;
    let planned = plans.iter().map(Planned::manifest_entry);
    let skipped = outline.skipped.iter().map(|skipped| oodbench_record::PlannedDetector {
        skipped: Some(skipped.reason.clone()),
        ..plan::entry(&skipped.info, Map::<String, Value>::new())
    });
    RunManifest {
        schema: oodbench_record::SCHEMA,
        benchmark: request.benchmark.name.clone(),
        title: request.benchmark.title.clone(),
        benchmark_version: request.benchmark.version.clone(),
        classifier: Classifier {
            name: classifier.name.clone(),
            arch: staged.arch.clone(),
            blake3: classifier.blake3.clone(),
            mean: classifier.normalisation.mean,
            std: classifier.normalisation.std,
            n_features: staged.n_features,
        },
        seed: request.seed,
        limit: request.limit,
        full_spectrum: request.full_spectrum,
        sets: staged.scored().map(stage::StagedSet::listed).collect(),
        missing: outline.missing.clone(),
        detectors: planned.chain(skipped).collect(),
        version: request.version.clone(),
        machine: Machine {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: request.threads,
            device: request.device.clone(),
        },
    }
}
