//! The bench: from a request over a plan to records.
//!
//! 1. `select` finds the detectors and their parameters, `trial` asks them whether they take what is set;
//! 2. `stage` prepares images and fills the feature bank, from them or from exported features;
//! 3. `plan` gives every cell its key;
//! 4. `run` runs what is not there yet, a worker for each detector and set of parameters;
//! 5. `search` chooses parameters on the way, where that is asked for.

mod lacks;
mod offers;
mod params;
mod plan;
mod run;
mod search;
mod select;
mod source;
mod stage;
mod trial;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use oodbench_datasets::{Progress, Role};
use oodbench_nn::device::Gpu;
use oodbench_nn::precision::Precision;
use oodbench_record::{Machine, MissingSet, RunFolder, RunManifest, SetRef};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::EngineError;
use crate::pack::Catalogue;
use crate::supervise::WorkerCommand;

pub use params::Setting;
pub use run::{CellEnd, Isolation, Summary};
pub use search::{Grid, first_greatest};
pub use select::{Selected, Skipped};
pub use source::{ImageSource, Origin, Source};
pub use trial::Trial;

use plan::Planned;
use source::Opened;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    pub source: Source,
    /// Detectors, or `all`.
    pub methods: Vec<String>,
    /// Whether the benchmark's baselines run too.
    pub baselines: bool,
    pub settings: Vec<Setting>,
    pub cache: PathBuf,
    pub out: PathBuf,
    /// `cpu`, or `cuda:0` and so on: what `auto` has come to.
    pub device: String,
    /// What is known of it, if it is a GPU.
    pub gpu: Option<Gpu>,
    /// What the classifier computes in.
    pub precision: Precision,
    pub threads: usize,
    pub seed: u64,
    /// At most so many images of each scored set.
    pub limit: Option<usize>,
    /// Whether parameters that the user does not set are chosen on validation images.
    pub search: bool,
    pub batch_size: BatchSize,
    pub full_spectrum: bool,
    /// Run finished cells again.
    pub force: bool,
    pub isolation: Isolation,
    pub silence: Duration,
    pub memory_limit: Option<u64>,
    /// The version of oodbench.
    pub version: String,
}

/// How many images a network takes at once, and a detector that asks for pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    Of(usize),
    /// On a GPU the largest power of two that fits and is of use to the classifier; the default on
    /// the CPU.
    Auto,
}

/// What [`BatchSize::default`] is.
pub(crate) const DEFAULT_BATCH: usize = 128;

impl Default for BatchSize {
    fn default() -> Self {
        Self::Of(DEFAULT_BATCH)
    }
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = || text.parse().ok().filter(|n| *n > 0).map(Self::Of);
        let size = if text == "auto" { Some(Self::Auto) } else { number() };
        size.ok_or_else(|| "expected a number from 1, or `auto`".to_owned())
    }
}

impl<'de> Deserialize<'de> for BatchSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse().map_err(D::Error::custom)
    }
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
    /// What the user should know of the sets.
    pub warnings: Vec<String>,
    pub origin: Origin,
}

pub(crate) fn set_ref(role: Role, name: &str) -> SetRef {
    SetRef { role: role.as_str().to_owned(), name: name.to_owned() }
}

/// Opens the sets and selects the detectors, without computing anything.
fn prepare_outline<'a>(
    request: &'a BenchRequest,
    catalogue: &Catalogue,
    worker: &WorkerCommand,
) -> Result<(Outline, Opened<'a>), EngineError> {
    let opened = request.source.open(&request.cache, request.search)?;
    let (detectors, skipped) = select::select(request, catalogue, &opened)?;
    // A baseline alone is not what was asked for.
    let is_asked =
        |id: &String| request.methods.iter().any(|method| method == "all" || method == id);
    if !detectors.iter().any(|detector| is_asked(&detector.info.id)) {
        let reasons = skipped.iter().map(|s| format!("`{}` {}", s.info.id, s.reason)).collect();
        return Err(EngineError::NothingSelected { reasons });
    }
    trial::refuse_bad_values(request, &detectors, worker)?;
    let sets = opened.listed();
    let mut warnings = opened.warnings().to_vec();
    if request.full_spectrum && !sets.iter().any(|(set, _)| set.role == Role::Csid.as_str()) {
        warnings
            .push("there are no covariate-shifted images for `--full-spectrum` to count".into());
    }
    let outline = Outline {
        detectors,
        skipped,
        sets,
        missing: opened.missing().to_vec(),
        warnings,
        origin: opened.origin(),
    };
    Ok((outline, opened))
}

/// What a run would do.
///
/// # Errors
/// Whatever would keep it from starting.
pub fn outline(
    request: &BenchRequest,
    catalogue: &Catalogue,
    worker: &WorkerCommand,
) -> Result<Outline, EngineError> {
    Ok(prepare_outline(request, catalogue, worker)?.0)
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
    let (outline, opened) = prepare_outline(request, catalogue, worker)?;
    outline.warnings.iter().for_each(|warning| observer.warn(warning));
    let folder = RunFolder::new(&request.out);
    let _lock = run::lock(&folder)?;
    folder.sweep()?;
    crate::bank::sweep(&request.cache)?;
    let staged = stage::stage(request, &outline, opened, observer)?;
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

fn recorded(gpu: &Gpu) -> oodbench_record::Gpu {
    let Gpu { name, capability, driver, .. } = gpu.clone();
    oodbench_record::Gpu { name, capability, driver }
}

fn manifest(
    request: &BenchRequest,
    outline: &Outline,
    staged: &stage::Staged,
    plans: &[Planned<'_>],
) -> RunManifest {
    let about = &staged.about;
    let planned = plans.iter().map(Planned::manifest_entry);
    let skipped = outline.skipped.iter().map(|skipped| oodbench_record::PlannedDetector {
        skipped: Some(skipped.reason.clone()),
        ..plan::entry(&skipped.info, Map::<String, Value>::new())
    });
    RunManifest {
        schema: oodbench_record::SCHEMA,
        benchmark: about.benchmark.clone(),
        title: about.title.clone(),
        benchmark_version: about.version.clone(),
        classifier: about.classifier.clone(),
        seed: request.seed,
        limit: request.limit,
        full_spectrum: request.full_spectrum,
        sets: staged.scored().map(stage::StagedSet::listed).collect(),
        missing: outline.missing.clone(),
        warnings: outline.warnings.clone(),
        detectors: planned.chain(skipped).collect(),
        version: request.version.clone(),
        machine: Machine {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: request.threads,
            device: request.device.clone(),
            gpu: request.gpu.as_ref().map(recorded),
            precision: request.gpu.as_ref().map(|_| request.precision.name().to_owned()),
        },
    }
}
