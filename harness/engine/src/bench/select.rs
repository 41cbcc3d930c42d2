//! Which detectors run, with which parameters, and which lack something.

use std::collections::BTreeMap;

use oodbench_record::PackId;
use serde_json::{Map, Value};

use super::BenchRequest;
use super::params::resolve_params;
use super::search::Grid;
use super::source::Opened;
use crate::asset::Asset;
use crate::error::EngineError;
use crate::pack::{Catalogue, DetectorInfo, PackSummary};

/// A detector that runs.
#[derive(Clone, Debug)]
pub struct Selected {
    pub info: DetectorInfo,
    pub pack: PackId,
    pub library: std::path::PathBuf,
    /// What it runs with; where there is a search, what that starts from.
    pub params: Map<String, Value>,
    pub assets: BTreeMap<String, Asset>,
    /// What to choose from, where parameters are searched.
    pub search: Option<Grid>,
}

/// A detector that was asked for and cannot run here.
#[derive(Clone, Debug)]
pub struct Skipped {
    pub info: DetectorInfo,
    /// What it lacks.
    pub reason: String,
}

/// Finds what was asked for, in the order in which it was asked, the benchmark's baselines last.
pub(super) fn select(
    request: &BenchRequest,
    catalogue: &Catalogue,
    opened: &Opened<'_>,
) -> Result<(Vec<Selected>, Vec<Skipped>), EngineError> {
    let all = request.methods.iter().any(|method| method == "all");
    let mut wanted: Vec<Found<'_>> = Vec::new();
    for method in request.methods.iter().filter(|method| *method != "all") {
        want(&mut wanted, catalogue.find(method)?);
    }
    if all {
        catalogue.detectors().for_each(|found| want(&mut wanted, found));
    }
    if request.baselines {
        for baseline in request.source.baselines() {
            want(&mut wanted, catalogue.find(baseline)?);
        }
    }
    check_settings(request, catalogue, &wanted)?;
    let (mut selected, mut skipped) = (Vec::new(), Vec::new());
    for (pack, info) in wanted {
        let is_named = request.methods.contains(&info.id);
        let is_no_companion = || opened.is_no_companion(info).filter(|_| !is_named);
        let reason = opened.lacks(info, request.search).or_else(is_no_companion);
        if let Some(reason) = reason {
            skipped.push(Skipped { info: info.clone(), reason });
            continue;
        }
        let (params, assets) = match resolve_params(info, request) {
            // Among all detectors, one that needs a file of the user's own is passed over.
            Err(error @ EngineError::NoAsset { .. }) if !is_named => {
                let hint = error.hint().unwrap_or_default();
                skipped.push(Skipped { info: info.clone(), reason: format!("{error}; {hint}") });
                continue;
            }
            other => other?,
        };
        let (name, version) = (pack.name.clone(), pack.version.clone());
        let pack_id = PackId { name, version, blake3: pack.blake3.clone() };
        let (info, library) = (info.clone(), pack.path.clone());
        let search = request.search.then(|| Grid::new(&info, request, &params)).flatten();
        selected.push(Selected { info, pack: pack_id, library, params, assets, search });
    }
    Ok((selected, skipped))
}

/// A detector and its pack.
type Found<'a> = (&'a PackSummary, &'a DetectorInfo);

/// Adds a detector that is not there yet.
fn want<'a>(wanted: &mut Vec<Found<'a>>, found: Found<'a>) {
    if !wanted.iter().any(|(_, info)| info.id == found.1.id) {
        wanted.push(found);
    }
}

/// A setting for a detector that does not run would do nothing, silently.
fn check_settings(
    request: &BenchRequest,
    catalogue: &Catalogue,
    wanted: &[Found<'_>],
) -> Result<(), EngineError> {
    for setting in &request.settings {
        catalogue.find(&setting.detector)?;
        if !wanted.iter().any(|(_, info)| info.id == setting.detector) {
            let known = wanted.iter().map(|(_, info)| info.id.as_str());
            return Err(EngineError::unknown("detector of `--set`", &setting.detector, known));
        }
    }
    Ok(())
}
