//! Turns the tree of a file into typed sections, with errors that name the key.
//!
//! serde's derived code finds what is wrong; this deserializer adds where, and what was meant.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde_json::{Map, Value};

/// A key that is wrong, with its place: section, key, and index in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// From the inside out.
    path: Vec<String>,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    UnknownField { field: String, expected: &'static [&'static str] },
    UnknownValue { value: String, expected: &'static [&'static str] },
    MissingField { field: &'static str },
    Unfit { message: String, hint: Option<&'static str> },
}

impl KeyError {
    /// A value of a right type that is refused all the same.
    pub(super) fn refused(
        key: &str,
        message: String,
        hint: impl Into<Option<&'static str>>,
    ) -> Self {
        let problem = Problem::Unfit { message, hint: hint.into() };
        Self { path: vec![key.to_owned()], problem }
    }

    /// The same error seen from the section or list around it.
    pub(super) fn within(mut self, parent: impl Into<String>) -> Self {
        self.path.push(parent.into());
        self
    }

    fn here(problem: Problem) -> Self {
        Self { path: Vec::new(), problem }
    }

    /// The place as people write it, for instance `Model.ch_mult.1`; empty at the top.
    fn place(&self) -> String {
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        let within = if place.is_empty() { String::new() } else { format!(" in `{place}`") };
        match &self.problem {
            Problem::UnknownField { field, expected } => {
                write!(f, "unknown field `{field}`{within}, expected {}", listed(expected))?;
                suggestion(f, field, expected)
            }
            Problem::UnknownValue { value, expected } => {
                write!(f, "`{place}` expected {}, got `{value}`", listed(expected))?;
                suggestion(f, value, expected)
            }
            Problem::MissingField { field } => write!(f, "no `{field}`{within}"),
            Problem::Unfit { message, hint } => {
                if place.is_empty() {
                    f.write_str(message)?;
                } else {
                    write!(f, "`{place}` {message}")?;
                }
                hint.map_or(Ok(()), |hint| write!(f, "\n\nhint: {hint}"))
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// Rust's name of a type as people say it who write no Rust.
fn in_words(expected: String) -> String {
    match expected.as_str() {
        "usize" | "u64" | "u32" => "a whole number from 0",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list",
        _ => return expected,
    }
    .to_owned()
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        many => format!("one of {}", many.join(", ")),
    }
}

fn suggestion(f: &mut fmt::Formatter<'_>, got: &str, known: &[&str]) -> fmt::Result {
    let lower = got.to_lowercase();
    let closeness = |name: &str| strsim::jaro_winkler(&lower, &name.to_lowercase());
    let best = known.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b)));
    match best.filter(|name| closeness(name) > 0.75) {
        Some(name) => write!(f, "\n\nhint: did you mean `{name}`?"),
        None => Ok(()),
    }
}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::here(Problem::Unfit { message: message.to_string(), hint: None })
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = in_words(expected.to_string());
        let got = match unexpected {
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unsigned(value) => format!("{value}"),
            Unexpected::Signed(value) => format!("{value}"),
            Unexpected::Float(value) => format!("{value}"),
            Unexpected::Str(text) => format!("`{text}`"),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            other => other.to_string(),
        };
        Self::custom(format_args!("expected {expected}, got {got}"))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::here(Problem::UnknownField { field: field.to_owned(), expected })
    }

    fn unknown_variant(value: &str, expected: &'static [&'static str]) -> Self {
        Self::here(Problem::UnknownValue { value: value.to_owned(), expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::here(Problem::MissingField { field })
    }
}

/// A part of a tree.
#[derive(Clone, Copy)]
pub(super) struct Node<'a>(pub(super) &'a Value);

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Object(entries) => visitor.visit_map(Entries::new(entries)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = KeyError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, KeyError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        self.index += 1;
        let value = seed.deserialize(Node(item));
        value.map(Some).map_err(|err| err.within((self.index - 1).to_string()))
    }
}

struct Entries<'a> {
    entries: serde_json::map::Iter<'a>,
    current: Option<(&'a str, &'a Value)>,
}

impl<'a> Entries<'a> {
    fn new(entries: &'a Map<String, Value>) -> Self {
        Self { entries: entries.iter(), current: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, KeyError> {
        self.current = self.entries.next().map(|(key, value)| (key.as_str(), value));
        let Some((key, _)) = self.current else { return Ok(None) };
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let (key, value) = self.current.expect("serde asks for a value behind its key");
        seed.deserialize(Node(value)).map_err(|err| err.within(key))
    }
}
