//! What a pack says about itself, as plain values: they outlive the process that opened the pack,
//! and travel from a worker to the host as JSON.

use std::path::PathBuf;

use oodbench_abi::{Descriptor, Example, Needs, Param, ParamKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A pack and its detectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackSummary {
    /// Name of the crate.
    pub name: String,
    /// Version of the crate.
    pub version: String,
    /// Version of the SDK that it was built with.
    pub sdk_version: String,
    /// The file, absolute.
    pub path: PathBuf,
    /// BLAKE3 hash of the file, hexadecimal: what a cell's key holds in place of the version.
    pub blake3: String,
    /// In the order of the pack.
    pub detectors: Vec<DetectorInfo>,
}

/// A detector's descriptor; see [`Descriptor`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorInfo {
    pub id: String,
    pub title: String,
    pub family: String,
    pub summary: String,
    pub paper: String,
    /// 0 where there is none.
    pub year: u32,
    pub url: String,
    pub needs: Needs,
    pub params: Vec<ParamInfo>,
    pub deterministic: bool,
    /// Empty for a post-hoc detector.
    pub companion_of: String,
    pub example: Example,
}

/// A parameter; see [`Param`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamInfo {
    pub name: String,
    /// The type, without flags.
    pub kind: ParamKind,
    /// Whether it only chooses how a score is read out; see [`ParamKind::READOUT`].
    pub readout: bool,
    pub default: Value,
    pub sweep: Vec<Value>,
    pub doc: String,
    pub source: String,
}

impl DetectorInfo {
    /// The parameter with this name.
    pub fn param(&self, name: &str) -> Option<&ParamInfo> {
        self.params.iter().find(|param| param.name == name)
    }

    /// Whether several sets of its parameters can be scored in one pass.
    pub fn has_readout(&self) -> bool {
        self.params.iter().any(|param| param.readout)
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// JSON that cannot be read, as one line.
    pub(super) fn read(raw: &Descriptor) -> Result<Self, String> {
        let example = serde_json::from_str(&raw.example)
            .map_err(|err| format!("worked example of `{}`: {err}", raw.id))?;
        let params: Result<_, String> =
            raw.params.iter().map(|param| ParamInfo::read(&raw.id, param)).collect();
        Ok(Self {
            id: raw.id.to_string(),
            title: raw.title.to_string(),
            family: raw.family.to_string(),
            summary: raw.summary.to_string(),
            paper: raw.paper.to_string(),
            year: raw.year,
            url: raw.url.to_string(),
            needs: raw.needs,
            params: params?,
            deterministic: raw.deterministic,
            companion_of: raw.companion_of.to_string(),
            example,
        })
    }
}

impl ParamInfo {
    fn read(id: &str, raw: &Param) -> Result<Self, String> {
        let json = |text: &str, what: &str| -> Result<Value, String> {
            serde_json::from_str(text).map_err(|err| {
                format!(
                    "{what} of parameter `{}` of `{id}` expected JSON, got `{text}`: {err}",
                    raw.name
                )
            })
        };
        let sweep: Result<_, String> = raw.sweep.iter().map(|value| json(value, "sweep")).collect();
        Ok(Self {
            name: raw.name.to_string(),
            kind: raw.kind.without_flags(),
            readout: raw.kind.is_readout(),
            default: json(&raw.default, "default")?,
            sweep: sweep?,
            doc: raw.doc.to_string(),
            source: raw.source.to_string(),
        })
    }
}
