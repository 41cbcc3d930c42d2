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
    /// What it computes on: `CPU`, or what it says itself.
    pub built_for: String,
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
    /// Whether it is a list of files; see [`ParamKind::MANY`].
    pub many: bool,
    /// Whether `auto` is a value too; see [`ParamKind::AUTO`].
    pub auto: bool,
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

    /// The further heads that the classifier must have, by the names of their layers: those of the
    /// worked example.
    pub fn heads(&self) -> impl Iterator<Item = &str> {
        self.example.heads.keys().map(String::as_str)
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
    /// How its type is called.
    pub fn type_name(&self) -> &'static str {
        let flags = [(self.many, ParamKind::MANY), (self.auto, ParamKind::AUTO)];
        let set = flags.into_iter().filter(|(set, _)| *set);
        set.fold(self.kind, |kind, (_, flag)| kind.and(flag)).name()
    }

    /// Whether a value is of its type.
    pub fn has_type(&self, value: &Value) -> bool {
        match self.kind {
            ParamKind::INTEGER => {
                value.is_i64() || value.is_u64() || (self.auto && value == "auto")
            }
            ParamKind::NUMBER => value.is_number(),
            ParamKind::BOOLEAN => value.is_boolean(),
            ParamKind::LIST => value.is_array(),
            ParamKind::ASSET if self.many => {
                value.as_array().is_some_and(|files| files.iter().all(Value::is_string))
            }
            ParamKind::TEXT | ParamKind::ASSET => value.is_string(),
            _ => false,
        }
    }

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
            many: raw.kind.is_many(),
            auto: raw.kind.is_auto(),
            default: json(&raw.default, "default")?,
            sweep: sweep?,
            doc: raw.doc.to_string(),
            source: raw.source.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_of_files_holds_names_and_nothing_else() {
        let raw = Param {
            name: "members".into(),
            kind: ParamKind::ASSET.and(ParamKind::MANY),
            default: "[]".into(),
            sweep: Default::default(),
            doc: "".into(),
            source: "".into(),
        };
        let list = ParamInfo::read("x", &raw).unwrap();
        assert_eq!((list.kind, list.type_name()), (ParamKind::ASSET, "list of files"));
        let fits = [json!([]), json!(["a", "b"]), json!("a"), json!([1]), json!(null)];
        assert_eq!(fits.map(|value| list.has_type(&value)), [true, true, false, false, false]);
        let one = ParamInfo::read("x", &Param { kind: ParamKind::ASSET, ..raw }).unwrap();
        assert_eq!((one.many, one.type_name()), (false, "file"));
        assert!(one.has_type(&json!("a")) && !one.has_type(&json!(["a"])));
    }

    #[test]
    fn a_number_may_be_left_to_the_detector() {
        let of = |kind| {
            let (default, empty) = ("64".into(), "".into());
            let name = "batch".into();
            let raw = Param {
                name,
                kind,
                default,
                sweep: Default::default(),
                doc: empty,
                source: "".into(),
            };
            ParamInfo::read("x", &raw).unwrap()
        };
        let free = of(ParamKind::INTEGER.and(ParamKind::AUTO));
        assert_eq!(free.type_name(), "integer or `auto`");
        assert!(free.has_type(&json!("auto")) && free.has_type(&json!(8)));
        assert!(!free.has_type(&json!("many")) && !free.has_type(&json!(0.5)));
        assert!(!of(ParamKind::INTEGER).has_type(&json!("auto")));
    }
}
