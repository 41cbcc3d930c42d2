//! Objects of Python's own types, for which older protocols have no opcode: they are written as calls,
//! and read here as the plain data that the call would have made.

use std::sync::Arc;

use crate::{
    error::PickleError,
    graph::Rebuild,
    value::{Object, Value},
};

/// Makes plain data of calls to `_codecs.encode`, `bytes`, `bytearray`, `set`, `frozenset`,
/// `collections.OrderedDict` and `Counter` with their items as argument, and `copyreg._reconstructor`.
pub(crate) struct Plain {
    /// How much may still be copied. Python writes each such string once; a pickle that has one string
    /// encoded again and again would otherwise grow with the square of its length.
    budget: usize,
    limit: usize,
}

impl Plain {
    /// For a pickle in data of this length.
    pub(crate) fn new(n_bytes: usize) -> Self {
        // Text of protocol 0 may take twice the bytes in UTF-8.
        let limit = n_bytes.saturating_mul(2);
        Self { budget: limit, limit }
    }

    fn spend(&mut self, amount: usize) -> Result<(), PickleError> {
        let left = self.budget.checked_sub(amount);
        self.budget = left.ok_or(PickleError::TooLarge { limit: self.limit })?;
        Ok(())
    }

    /// The bytes of a text, or `None` where the encoding is not known or cannot hold the text.
    fn encode(&mut self, text: &str, encoding: &str) -> Result<Option<Value>, PickleError> {
        // The names of encodings are short; a long one is not worth the time to look at.
        if encoding.len() > 16 {
            return Ok(None);
        }
        self.spend(text.len())?;
        Ok(match encoding.to_ascii_lowercase().replace('_', "-").as_str() {
            "latin1" | "latin-1" | "iso-8859-1" => {
                let bytes = text.chars().map(|letter| u8::try_from(u32::from(letter)).ok());
                bytes.collect::<Option<Arc<[u8]>>>().map(Value::Bytes)
            }
            "utf8" | "utf-8" => Some(Value::Bytes(text.as_bytes().into())),
            _ => None,
        })
    }
}

impl Rebuild for Plain {
    type Error = PickleError;

    fn object(&mut self, object: &Object) -> Result<Option<Value>, PickleError> {
        let Some(global) = object.global() else { return Ok(None) };
        Ok(match (&*global.module, &*global.name, object.args()) {
            ("_codecs", "encode", [Value::Str(text), Value::Str(encoding)]) if object.is_bare() => {
                self.encode(text, encoding)?
            }
            ("builtins", "bytearray", [Value::Str(text), encoding]) if object.is_bare() => {
                match encoding.as_str() {
                    Some(encoding) => self.encode(text, encoding)?,
                    None => None,
                }
            }
            ("builtins", "bytes" | "bytearray", []) if object.is_bare() => {
                Some(Value::Bytes(Arc::new([])))
            }
            ("builtins", "bytes" | "bytearray", [Value::Bytes(bytes)]) if object.is_bare() => {
                Some(Value::Bytes(Arc::clone(bytes)))
            }
            ("builtins", "set" | "frozenset", []) if object.is_bare() => {
                Some(Value::Set(Arc::new([])))
            }
            ("builtins", "set" | "frozenset", [Value::List(items) | Value::Tuple(items)])
                if object.is_bare() =>
            {
                Some(Value::Set(Arc::clone(items)))
            }
            ("collections", "OrderedDict", [Value::List(pairs)]) => {
                self.spend(pairs.len())?;
                let pair = |pair: &Value| match pair.items()? {
                    [key, value] => Some((key.clone(), value.clone())),
                    _ => None,
                };
                pairs.iter().map(pair).collect::<Option<Vec<_>>>().map(|mut entries| {
                    entries.extend(object.entries.iter().cloned());
                    let args = Value::Tuple(Arc::new([]));
                    Value::Object(Arc::new(Object { args, entries, ..object.clone() }))
                })
            }
            ("collections", "Counter", [Value::Dict(counts)]) => {
                self.spend(counts.len())?;
                let args = Value::Tuple(Arc::new([]));
                let entries = counts.iter().chain(&object.entries).cloned().collect();
                Some(Value::Object(Arc::new(Object { args, entries, ..object.clone() })))
            }
            // How protocols 0 and 1 write an object of a class of one's own.
            ("copyreg", "_reconstructor", [class @ Value::Global(_), _, Value::None]) => {
                let (class, args) = (class.clone(), Value::Tuple(Arc::new([])));
                Some(Value::Object(Arc::new(Object { class, args, ..object.clone() })))
            }
            _ => None,
        })
    }
}
