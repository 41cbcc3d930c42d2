//! The search for a detector's parameters on validation images, as in OpenOOD's APS: every
//! combination of the sweeps in its descriptor scores the ID and the OOD validation set, and the
//! one with the greatest AUROC between them scores the test sets. Test images are never looked at.
//!
//! Combinations are in OpenOOD's order, in which the first parameter changes fastest, and of
//! several that are equally good the first is chosen, as by OpenOOD's evaluation API. What would
//! run without a search is a combination too, the last one where it is not among the others, so
//! that a search never ends worse on the validation images than no search.

use oodbench_abi::ParamKind;
use oodbench_metrics::RankedScores;
use oodbench_record::{CellState, RunFolder, Search};
use serde_json::{Map, Value};

use super::params::{is_set, normalised};
use super::{BenchRequest, plan::PlannedJob};
use crate::error::EngineError;
use crate::pack::DetectorInfo;

/// The combinations of parameters that a search tries.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The parameters that differ, in the descriptor's order.
    pub parameters: Vec<String>,
    /// All parameters of each combination.
    pub combinations: Vec<Map<String, Value>>,
}

impl Grid {
    /// The combinations of a detector that without a search would have these parameters. `None`
    /// where there is nothing to choose: no sweeps, or every one of its parameters set by the user.
    pub(super) fn new(
        info: &DetectorInfo,
        request: &BenchRequest,
        params: &Map<String, Value>,
    ) -> Option<Self> {
        // A file is no value that a descriptor could know of.
        let searched = info.params.iter().filter(|param| {
            !param.sweep.is_empty()
                && param.kind != ParamKind::ASSET
                && !is_set(request, info, &param.name)
        });
        let sweeps: Vec<(String, Vec<Value>)> = searched
            .map(|param| {
                let values = param.sweep.iter().map(|value| normalised(param, value));
                (param.name.clone(), values.collect())
            })
            .collect();
        let mut grid = Self::over(params, &sweeps);
        if !grid.combinations.contains(params) {
            grid.combinations.push(params.clone());
        }
        (grid.combinations.len() > 1).then_some(grid)
    }

    /// Every combination of these values in the order of the search, each once. What is not swept
    /// is as in `params`.
    pub fn over(params: &Map<String, Value>, sweeps: &[(String, Vec<Value>)]) -> Self {
        let mut combinations = vec![params.clone()];
        for (name, values) in sweeps {
            let with = |value: &Value| -> Vec<Map<String, Value>> {
                let mut with_value = combinations.clone();
                for params in &mut with_value {
                    params.insert(name.clone(), value.clone());
                }
                with_value
            };
            combinations = values.iter().flat_map(with).collect();
        }
        let mut distinct: Vec<Map<String, Value>> = Vec::new();
        for params in combinations {
            if !distinct.contains(&params) {
                distinct.push(params);
            }
        }
        let parameters = sweeps.iter().map(|(name, _)| name.clone()).collect();
        Self { parameters, combinations: distinct }
    }

    /// Places of combinations that differ in readouts alone, so that one pass scores them.
    pub fn groups(&self, info: &DetectorInfo) -> Vec<Vec<usize>> {
        let is_readout = |name: &str| info.param(name).is_some_and(|param| param.readout);
        let mut groups: Vec<(Map<String, Value>, Vec<usize>)> = Vec::new();
        for (place, params) in self.combinations.iter().enumerate() {
            let mut fixed = params.clone();
            fixed.retain(|name, _| !is_readout(name));
            match groups.iter_mut().find(|(other, _)| *other == fixed) {
                Some((_, places)) => places.push(place),
                None => groups.push((fixed, vec![place])),
            }
        }
        groups.into_iter().map(|(_, places)| places).collect()
    }

    /// What a combination sets, for people: `temperature=1, noise=0.0014`.
    pub fn text(&self, place: usize) -> String {
        let params = &self.combinations[place];
        let pairs = self.parameters.iter().map(|name| match &params[name] {
            Value::String(value) => format!("{name}={value}"),
            value => format!("{name}={value}"),
        });
        pairs.collect::<Vec<_>>().join(", ")
    }
}

/// A search with what there is to run for it.
pub(super) struct PlannedSearch {
    pub(super) grid: Grid,
    /// A job for each group of combinations that one pass scores.
    pub(super) jobs: Vec<PlannedJob>,
    /// As it stands in the run folder.
    pub(super) record: Search,
}

impl PlannedSearch {
    /// Whether every cell has ended, well or not.
    pub(super) fn has_ended(&self, folder: &RunFolder) -> Result<bool, EngineError> {
        for combination in &self.record.combinations {
            for key in [&combination.id, &combination.ood] {
                if folder.cell(key)? == CellState::Outstanding {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The place and the AUROC of the best combination; `None` where every one of them failed.
    pub(super) fn best(&self, folder: &RunFolder) -> Result<Option<(usize, f64)>, EngineError> {
        let mut aurocs = Vec::new();
        for combination in &self.record.combinations {
            let scores = |key: &str| -> Result<Option<Vec<f32>>, EngineError> {
                match folder.cell(key)? {
                    CellState::Done(_, scores) => Ok(Some(scores)),
                    CellState::Failed(_) | CellState::Outstanding => Ok(None),
                }
            };
            let (id, ood) = (scores(&combination.id)?, scores(&combination.ood)?);
            // Scores in records are finite; sets without images have no AUROC.
            aurocs
                .push(id.zip(ood).and_then(|(id, ood)| RankedScores::new(&id, &ood).ok()?.auroc()));
        }
        Ok(first_greatest(&aurocs))
    }
}

/// The first of the greatest values, with its place; `None` where all are absent. With the AUROC of
/// each combination it is what a search chooses.
pub fn first_greatest(values: &[Option<f64>]) -> Option<(usize, f64)> {
    let present = values.iter().enumerate().filter_map(|(i, value)| Some((i, (*value)?)));
    present.fold(None, |best, (i, value)| match best {
        Some((_, greatest)) if value <= greatest => best,
        _ => Some((i, value)),
    })
}

#[cfg(test)]
mod tests;
