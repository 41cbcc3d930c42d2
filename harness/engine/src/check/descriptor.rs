//! Checks of what a detector says about itself, and of how it takes its parameters.

use oodbench_abi::{ErrorCode, HostBox, Needs, ParamKind, RawError};
use serde_json::{Map, Value};

use super::memory::{MemoryData, MemoryHost};
use super::{Subject, Verdict, said};
use crate::pack::ParamInfo;

/// A name that no parameter has.
const UNKNOWN: &str = "no-such-parameter";

/// Whether the descriptor says what reports and help texts rely on.
pub(super) fn sane(subject: &Subject<'_>) -> Verdict {
    let info = subject.info;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if info.id.is_empty() || !info.id.chars().all(is_plain) {
        return Err(format!("id expected lower-case letters, digits, - and _, got `{}`", info.id));
    }
    one_line("title", &info.title)?;
    one_line("summary", &info.summary)?;
    if info.needs.names().contains(&"unknown") {
        let known = Needs::NAMES.iter().fold(0, |all, (need, _)| all | need.0);
        let unknown = info.needs.0 & !known;
        return Err(format!("needs expected flags that this host knows, got {unknown:#x} as well"));
    }
    for (i, param) in info.params.iter().enumerate() {
        if info.params[..i].iter().any(|other| other.name == param.name) {
            return Err(format!("two parameters are called `{}`", param.name));
        }
        one_line(&format!("description of parameter `{}`", param.name), &param.doc)?;
        for value in std::iter::once(&param.default).chain(&param.sweep) {
            has_kind(param, value)?;
        }
    }
    Ok(())
}

fn one_line(what: &str, text: &str) -> Verdict {
    match text.lines().count() {
        1 if !text.trim().is_empty() => Ok(()),
        1 | 0 => Err(format!("{what} expected a line, got none")),
        n => Err(format!("{what} expected one line, got {n}")),
    }
}

fn has_kind(param: &ParamInfo, value: &Value) -> Verdict {
    // A list of files may be empty; nothing else stands for one that is not there.
    if param.has_type(value) || (value.is_null() && !param.many) {
        return Ok(());
    }
    Err(format!(
        "parameter `{}` expected a value of kind {}, got `{value}`",
        param.name,
        param.type_name()
    ))
}

/// Whether `create` takes no parameters at all, and the stated defaults.
pub(super) fn defaults_are_accepted(subject: &Subject<'_>) -> Verdict {
    accepted(subject, Map::new())?;
    let params = subject.info.params.iter();
    accepted(subject, params.map(|param| (param.name.clone(), param.default.clone())).collect())
}

/// Whether `create` takes each value that a parameter search would try.
pub(super) fn sweep_is_accepted(subject: &Subject<'_>) -> Verdict {
    for param in &subject.info.params {
        for value in &param.sweep {
            accepted(subject, Map::from_iter([(param.name.clone(), value.clone())]))?;
        }
    }
    Ok(())
}

fn accepted(subject: &Subject<'_>, params: Map<String, Value>) -> Verdict {
    let text = Value::Object(params).to_string();
    match (subject.create)(&text, host(subject)) {
        Ok(_) => Ok(()),
        // A file that only the user can name.
        Err(error) if error.code != ErrorCode::PANICKED && wants_a_file(subject) => Ok(()),
        Err(error) => Err(said(&format!("create with `{text}`"), &error)),
    }
}

fn wants_a_file(subject: &Subject<'_>) -> bool {
    let params = &subject.info.params;
    let has_none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    params.iter().any(|param| param.kind == ParamKind::ASSET && has_none(&param.default))
}

/// Whether a misspelt parameter is refused instead of ignored.
pub(super) fn unknown_parameters_are_refused(subject: &Subject<'_>) -> Verdict {
    let text = format!("{{\"{UNKNOWN}\": 1}}");
    match (subject.create)(&text, host(subject)) {
        Ok(_) => Err(format!("create with `{text}` expected BAD_PARAMETER, got a detector")),
        Err(RawError { code: ErrorCode::BAD_PARAMETER, .. }) => Ok(()),
        Err(error) => {
            let code = error.code.0;
            Err(format!(
                "create with `{text}` expected BAD_PARAMETER, got code {code}: {}",
                error.message
            ))
        }
    }
}

/// The example's host; without an example, one that has nothing.
fn host(subject: &Subject<'_>) -> HostBox {
    let needs = subject.info.needs;
    match subject.prepared {
        Some(prepared) => prepared.host(needs),
        None => MemoryHost::new(needs, MemoryData::default().into()).boxed(),
    }
}
