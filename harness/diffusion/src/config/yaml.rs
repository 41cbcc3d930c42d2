//! YAML as people write configurations in it: mappings, lists and plain values of one document.
//!
//! Values without quotes are read as PyYAML reads them (`True`, `yes`, `60_000`), and `1e-8` is a
//! number, which to PyYAML it is not. Anchors, aliases and tags are refused, duplicate keys too:
//! a configuration needs none of them, and a chain of aliases can expand without bound.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

/// What reading YAML fails with.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("expected YAML")]
    Syntax(#[from] ScanError),
    #[error("expected {expected}, got {got} in line {line}, column {column}")]
    Unsupported { expected: &'static str, got: String, line: usize, column: usize },
}

/// How deep a file may nest; sections and lists need three levels.
const MAX_DEPTH: usize = 16;

/// The content of a file; `null` where it is empty.
///
/// # Errors
/// See [`YamlError`].
pub(super) fn parse(text: &str) -> Result<Value, YamlError> {
    let mut open: Vec<Container> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event?;
        let refuse = |expected, got: String| unsupported(expected, got, &span.start);
        if !matches!(event, Event::StreamEnd | Event::DocumentEnd)
            && open.is_empty()
            && root.is_some()
        {
            return Err(refuse("one document", "another one".to_owned()));
        }
        let value = match event {
            Event::Alias(_) => return Err(refuse("a value", "an alias".to_owned())),
            Event::Scalar(_, _, anchor, ref tag)
            | Event::SequenceStart(anchor, ref tag)
            | Event::MappingStart(anchor, ref tag)
                if anchor != 0 || tag.is_some() =>
            {
                return Err(refuse("a value", "an anchor or a tag".to_owned()));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == MAX_DEPTH => {
                return Err(refuse("a flat file", format!("more than {MAX_DEPTH} levels")));
            }
            Event::SequenceStart(..) => {
                open.push(Container::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Container::Table(Map::new(), None));
                continue;
            }
            Event::Scalar(text, style, _, _) => match open.last_mut() {
                // A key stays the text that it is.
                Some(Container::Table(table, key @ None)) => {
                    if table.contains_key(text.as_ref()) {
                        return Err(refuse("a key once", format!("`{text}` again")));
                    }
                    *key = Some(text.into_owned());
                    continue;
                }
                _ if style == ScalarStyle::Plain => plain(&text),
                _ => Value::String(text.into_owned()),
            },
            Event::SequenceEnd | Event::MappingEnd => {
                match open.pop().expect("the parser closes what it opened") {
                    Container::List(items) => Value::Array(items),
                    Container::Table(table, _) => Value::Object(table),
                }
            }
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(value),
            Some(Container::List(items)) => items.push(value),
            Some(Container::Table(table, key)) => match key.take() {
                Some(key) => drop(table.insert(key, value)),
                None => return Err(refuse("a key", "a list or a table".to_owned())),
            },
        }
    }
    Ok(root.unwrap_or(Value::Null))
}

fn unsupported(expected: &'static str, got: String, at: &Marker) -> YamlError {
    YamlError::Unsupported { expected, got, line: at.line(), column: at.col() + 1 }
}

/// A list or a table that is not closed yet; a table with the key that waits for its value.
enum Container {
    List(Vec<Value>),
    Table(Map<String, Value>, Option<String>),
}

/// What a value without quotes means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return true.into();
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        _ => {}
    }
    let digits = text.trim_start_matches(['+', '-']).replace('_', "");
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit());
    if !is_number {
        return text.into();
    }
    let text_of_number = text.replace('_', "");
    if let Ok(integer) = text_of_number.parse::<u64>() {
        return integer.into();
    }
    if let Ok(integer) = text_of_number.parse::<i64>() {
        return integer.into();
    }
    let number = text_of_number.parse().ok().and_then(Number::from_f64);
    number.map_or_else(|| text.into(), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(text: &str, expected: Value) {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn values_mean_what_they_mean_to_pyyaml() {
        check("a: [ 16, ]", json!({"a": [16]}));
        check("a: [ 1, 2.5, -3 ]", json!({"a": [1, 2.5, -3]}));
        check("a: True\nb: no", json!({"a": true, "b": false}));
        check("a: 'True'\nb: \"16\"", json!({"a": "True", "b": "16"}));
        check("a: 0.00000001\nb: 0.000\nc: 60_000", json!({"a": 1e-8, "b": 0.0, "c": 60_000}));
        check("a: 1e-8\nb: .5\nc: 1.", json!({"a": 1e-8, "b": 0.5, "c": 1.0}));
        check("a: inf\nb: nan\nc: 1.2.3", json!({"a": "inf", "b": "nan", "c": "1.2.3"}));
        check("a:\n  b: ~\n  c:\nd: ddim # why", json!({"a": {"b": null, "c": null}, "d": "ddim"}));
        check("a:\n- 1\n- 2\n", json!({"a": [1, 2]}));
        check("# nothing\n", Value::Null);
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_a_configuration_does_not_need_is_refused_with_its_place() {
        assert_eq!(refused("a: 1\na: 2"), "expected a key once, got `a` again in line 2, column 1");
        assert!(refused("a: &x 1\nb: *x").contains("an anchor or a tag in line 1, column"));
        assert!(refused("a: !!str 1").contains("an anchor or a tag"));
        assert!(refused("a: 1\n---\nb: 1").contains("expected one document, got another one"));
        assert!(refused("? [1]\n: 2").contains("expected a key"));
        assert!(refused(&"[".repeat(40)).contains("more than 16 levels"));
        assert_eq!(refused("a: [1"), "expected YAML");
    }
}
