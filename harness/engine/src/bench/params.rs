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

/// Parameters, and the files that some of them stand for, by parameter; those of a list under
/// [`nth_file`].
type Resolved = (Map<String, Value>, BTreeMap<String, Asset>);

/// All parameters of a detector.
pub(super) fn resolve_params(
    info: &DetectorInfo,
    request: &BenchRequest,
) -> Result<Resolved, EngineError> {
    let default = |param: &ParamInfo| (param.name.clone(), normalised(param, &param.default));
    let mut params: Map<String, Value> = info.params.iter().map(default).collect();
    let mut assets = BTreeMap::new();
    let preset = request.source.presets(&info.id).into_iter().flatten();
    for (name, value) in preset {
        let param = find(info, name)?;
        set(info, param, value, request.source.base(), request, &mut params, &mut assets)?;
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
            let (detector, parameter) = (info.id.clone(), param.name.clone());
            Err(EngineError::NoAsset { detector, parameter, many: param.many })
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
    let value = &match value {
        // A single file is a list of one.
        Value::String(_) if param.many => Value::Array(vec![value.clone()]),
        other => other.clone(),
    };
    if !param.has_type(value) && param.type_name() != "unknown" {
        return Err(EngineError::BadParameter {
            detector: info.id.clone(),
            parameter: param.name.clone(),
            expected: format!("a value of type {}", param.type_name()),
            got: value.to_string(),
        });
    }
    if param.kind == ParamKind::ASSET {
        // A list that the benchmark presets may have been longer.
        assets.retain(|name, _| !is_file_of(name, &param.name));
        for (name, place) in files(&param.name, value) {
            // A name among the benchmark's files, or a place of its own.
            let asset = match request.source.asset(place) {
                Some(place) => resolve(place, request.source.base(), &request.cache)?,
                None => resolve(place, base, &request.cache)?,
            };
            assets.insert(name, asset);
        }
    }
    params.insert(param.name.clone(), normalised(param, value));
    Ok(())
}

/// The name under which the host has a file of a list.
fn nth_file(parameter: &str, nth: usize) -> String {
    format!("{parameter}.{nth}")
}

/// Whether the host has a file of this parameter under `name`.
fn is_file_of(name: &str, parameter: &str) -> bool {
    let rest = name.strip_prefix(parameter);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The places that a value names, with the names under which the host has the files.
fn files<'a>(parameter: &str, value: &'a Value) -> Vec<(String, &'a str)> {
    match value {
        Value::String(place) => vec![(parameter.to_owned(), place)],
        Value::Array(places) => {
            let places = places.iter().filter_map(Value::as_str).enumerate();
            places.map(|(nth, place)| (nth_file(parameter, nth), place)).collect()
        }
        _ => Vec::new(),
    }
}

/// What stands for a parameter's value in keys: a file counts by its content, files of a list by
/// theirs in their order.
pub(super) fn content_of(name: &str, value: &Value, assets: &BTreeMap<String, Asset>) -> String {
    let hash = |name: &str| assets.get(name).map(|asset| asset.blake3.clone());
    if let Some(hash) = hash(name) {
        return hash;
    }
    let hashes: Option<Vec<String>> = files(name, value).iter().map(|(nth, _)| hash(nth)).collect();
    match hashes {
        Some(hashes) if !hashes.is_empty() => hashes.join(","),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_by_their_content_and_in_their_order() {
        let asset = |blake3: &str| Asset { path: "x".into(), blake3: blake3.to_owned() };
        let assets = |names: &[(&str, &str)]| -> BTreeMap<String, Asset> {
            names.iter().map(|(name, hash)| ((*name).to_owned(), asset(hash))).collect()
        };
        let list = serde_json::json!(["a", "b"]);
        let both = assets(&[("members.0", "1"), ("members.1", "2")]);
        assert_eq!(content_of("members", &list, &both), "1,2");
        let turned = assets(&[("members.0", "2"), ("members.1", "1")]);
        assert_eq!(content_of("members", &list, &turned), "2,1");
        assert_eq!(content_of("weights", &"a".into(), &assets(&[("weights", "1")])), "1");
        // What names no file is itself.
        assert_eq!(content_of("members", &serde_json::json!([]), &both), "[]");
        assert_eq!(content_of("K", &5.into(), &both), "5");
        assert_eq!(content_of("text", &"a".into(), &both), "\"a\"");
    }

    #[test]
    fn files_of_a_list_are_told_from_those_of_others() {
        assert!(is_file_of("members", "members") && is_file_of("members.10", "members"));
        assert!(!is_file_of("members2.0", "members") && !is_file_of("member", "members"));
    }

    #[test]
    fn a_value_is_json_or_text() {
        let setting = |text: &str| text.parse::<Setting>().map(|s| s.value);
        assert_eq!(setting("knn.K=50"), Ok(Value::from(50)));
        assert_eq!(setting("diffood.timesteps=[0,120]"), Ok(serde_json::json!([0, 120])));
        assert_eq!(setting("diffood.weights=a=b.ckpt"), Ok(Value::from("a=b.ckpt")));
        assert!(setting("knn=50").is_err() && setting("knn.K").is_err());
    }
}
