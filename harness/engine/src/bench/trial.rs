//! Whether detectors take the values that a user or a benchmark gives their parameters, asked before
//! anything is computed: an hour of classifying for a misprint is an hour lost.
//!
//! A worker for each pack makes the detectors, and does nothing with them. Only values that they
//! refuse count here; whatever else goes wrong becomes the outcome of cells, as ever.

use std::collections::BTreeMap;

use oodbench_abi::{ErrorCode, Needs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{BenchRequest, Selected};
use crate::catalogue;
use crate::check::memory::{MemoryData, MemoryHost};
use crate::error::EngineError;
use crate::pack::Pack;
use crate::supervise::WorkerCommand;
use crate::text::one_line;

/// A detector, and the sets of parameters that it is to be made with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub detector: String,
    pub needs: Needs,
    pub params: Vec<Map<String, Value>>,
    /// Where the detector is to compute.
    pub device: String,
    /// The files that parameters stand for, by parameter.
    pub assets: BTreeMap<String, std::path::PathBuf>,
}

impl Trial {
    fn new(selected: &Selected, device: &str) -> Self {
        let combinations = selected.search.as_ref().map(|grid| grid.combinations.clone());
        let assets = selected.assets.iter();
        Self {
            detector: selected.info.id.clone(),
            needs: selected.info.needs,
            params: combinations.unwrap_or_else(|| vec![selected.params.clone()]),
            device: device.to_owned(),
            assets: assets.map(|(name, asset)| (name.clone(), asset.path.clone())).collect(),
        }
    }

    /// Why the detector takes none of the sets; `None` where it takes one, or fails otherwise. In a
    /// search one that is refused is left out, and the others are not its fault.
    pub(crate) fn run(&self, pack: &Pack) -> Option<String> {
        let data = std::sync::Arc::new(MemoryData::default());
        let mut first = None;
        for params in &self.params {
            let mut host = MemoryHost::new(self.needs, data.clone()).device(&self.device);
            for (name, path) in &self.assets {
                host = host.asset(name, path.clone());
            }
            let params = Value::Object(params.clone()).to_string();
            match pack.create(&self.detector, &params, host.boxed()) {
                Err(error) if error.code == ErrorCode::BAD_PARAMETER => {
                    first.get_or_insert(one_line(&error.message));
                }
                _ => return None,
            }
        }
        first
    }
}

/// Asks every detector whose parameters somebody has set.
///
/// # Errors
/// The first that takes none of what it is to run with.
pub(super) fn refuse_bad_values(
    request: &BenchRequest,
    selected: &[Selected],
    worker: &WorkerCommand,
) -> Result<(), EngineError> {
    let is_set = |selected: &&Selected| {
        let id = &selected.info.id;
        request.settings.iter().any(|setting| setting.detector == *id)
            || request.source.presets(id).is_some()
    };
    let mut asked: Vec<(&std::path::Path, Vec<Trial>)> = Vec::new();
    for selected in selected.iter().filter(is_set) {
        let trial = Trial::new(selected, &request.device);
        match asked.iter_mut().find(|(library, _)| *library == selected.library) {
            Some((_, trials)) => trials.push(trial),
            None => asked.push((&selected.library, vec![trial])),
        }
    }
    for (library, trials) in asked {
        if let Some((detector, message)) = catalogue::try_values(worker, library, &trials) {
            return Err(EngineError::RefusedValue { detector, message });
        }
    }
    Ok(())
}
