//! Parameters of a detector: defaults, then what the benchmark presets, then what the user sets.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use oodbench_abi::ParamKind;
use serde_json::{Map, Value};

use super::BenchRequest;
use crate::asset::{Asset, resolve};
use crate::error::EngineError;
use crate::pack::{DetectorInfo, ParamInfo};

/// `detector.parameter=value`, as it is typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub detector: String,
    pub parameter: String,
    /// As JSON, or as text where it is none.
    pub value: Value,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected `detector.parameter=value`, got `{text}`");
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        let (detector, parameter) = name.split_once('.').ok_or_else(bad)?;
        if detector.is_empty() || parameter.is_empty() {
            return Err(bad());
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        Ok(Self { detector: detector.to_owned(), parameter: parameter.to_owned(), value })
    }
}

/// Parameters, and the files that some of them stand for, by parameter.
type Resolved = (Map<String, Value>, BTreeMap<String, Asset>);

/// All parameters of a detector.
pub(super) fn resolve_params(
    info: &DetectorInfo,
    request: &BenchRequest,
) -> Result<Resolved, EngineError> {
    let default = |param: &ParamInfo| (param.name.clone(), normalised(param, &param.default));
    let mut params: Map<String, Value> = info.params.iter().map(default).collect();
    let mut assets = BTreeMap::new();
    let benchmark = &request.benchmark;
    let preset = benchmark.presets.get(&info.id).into_iter().flatten();
    for (name, value) in preset {
        let param = find(info, name)?;
        set(info, param, value, &request.base, request, &mut params, &mut assets)?;
    }
    for setting in request.settings.iter().filter(|setting| setting.detector == info.id) {
        let param = find(info, &setting.parameter)?;
        set(info, param, &setting.value, Path::new(""), request, &mut params, &mut assets)?;
    }
    // One file may stand for the others, so that only a detector without any lacks something; and
    // whoever sets its parameters by hand may have told it to do without.
    let mut files = info.params.iter().filter(|param| param.kind == ParamKind::ASSET);
    let touched = request.settings.iter().any(|setting| setting.detector == info.id);
    match files.next() {
        Some(param) if assets.is_empty() && !touched => {
            Err(EngineError::NoAsset { detector: info.id.clone(), parameter: param.name.clone() })
        }
        _ => Ok((params, assets)),
    }
}

/// Whether the user sets this parameter.
pub(super) fn is_set(request: &BenchRequest, info: &DetectorInfo, parameter: &str) -> bool {
    let mut settings = request.settings.iter();
    settings.any(|setting| setting.detector == info.id && setting.parameter == parameter)
}

/// The value as keys have it: 1000 and 1000.0 are the same number, and must not be two cells.
pub(super) fn normalised(param: &ParamInfo, value: &Value) -> Value {
    match value.as_f64() {
        Some(number) if param.kind == ParamKind::NUMBER => Value::from(number),
        _ => value.clone(),
    }
}

fn find<'a>(info: &'a DetectorInfo, name: &str) -> Result<&'a ParamInfo, EngineError> {
    info.param(name).ok_or_else(|| {
        let known = info.params.iter().map(|param| param.name.as_str());
        EngineError::unknown(format!("parameter of `{}`", info.id), name, known)
    })
}

fn set(
    info: &DetectorInfo,
    param: &ParamInfo,
    value: &Value,
    base: &Path,
    request: &BenchRequest,
    params: &mut Map<String, Value>,
    assets: &mut BTreeMap<String, Asset>,
) -> Result<(), EngineError> {
    let fits = match param.kind {
        ParamKind::INTEGER => value.is_i64() || value.is_u64(),
        ParamKind::NUMBER => value.is_number(),
        ParamKind::BOOLEAN => value.is_boolean(),
        ParamKind::LIST => value.is_array(),
        ParamKind::TEXT | ParamKind::ASSET => value.is_string(),
        _ => true,
    };
    if !fits {
        return Err(EngineError::BadParameter {
            detector: info.id.clone(),
            parameter: param.name.clone(),
            expected: format!("a value of type {}", param.kind.name()),
            got: value.to_string(),
        });
    }
    if let (ParamKind::ASSET, Some(text)) = (param.kind, value.as_str()) {
        // A name among the benchmark's files, or a place of its own.
        let asset = match request.benchmark.assets.get(text) {
            Some(place) => resolve(place, &request.base, &request.cache)?,
            None => resolve(text, base, &request.cache)?,
        };
        assets.insert(param.name.clone(), asset);
    }
    params.insert(param.name.clone(), normalised(param, value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_json_or_text() {
        let setting = |text: &str| text.parse::<Setting>().map(|s| s.value);
        assert_eq!(setting("knn.K=50"), Ok(Value::from(50)));
        assert_eq!(setting("diffood.timesteps=[0,120]"), Ok(serde_json::json!([0, 120])));
        assert_eq!(setting("diffood.weights=a=b.ckpt"), Ok(Value::from("a=b.ckpt")));
        assert!(setting("knn=50").is_err() && setting("knn.K").is_err());
    }
}
