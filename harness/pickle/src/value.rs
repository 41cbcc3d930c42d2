//! What a pickle holds, as a finite tree of plain data.

use std::{fmt, sync::Arc};

use crate::torch::TensorRef;

/// A value from a pickle.
///
/// Values that a pickle shares are shared here too, so a clone is cheap. Trees from [`crate::parse`]
/// are finite, at most [`crate::MAX_DEPTH`] deep and at most [`crate::MAX_VALUES`] large even when each
/// repeat of a shared value is counted; recursive code over them cannot overflow the stack or run
/// forever.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// Any other integer: two's complement, little endian, no byte more than needed.
    BigInt(Arc<[u8]>),
    /// A float.
    Float(f64),
    /// `bytes`, `bytearray`, or a `str` that Python 2 wrote; see [`Value::as_str`].
    Bytes(Arc<[u8]>),
    /// A string.
    Str(Arc<str>),
    /// A list.
    List(Arc<[Value]>),
    /// A tuple.
    Tuple(Arc<[Value]>),
    /// A dict in the order written. A key that was set twice is there twice; the last one counts.
    Dict(Arc<[(Value, Value)]>),
    /// A `set` or `frozenset` in the order written.
    Set(Arc<[Value]>),
    /// A class or function, by name only.
    Global(Arc<Global>),
    /// What calling a class or function would have made, had anything been called.
    Object(Arc<Object>),
    /// A reference to something kept outside the pickle.
    PersistentId(Arc<Value>),
    /// A tensor of a PyTorch checkpoint; only [`crate::torch::TorchFile`] makes it.
    Tensor(Arc<TensorRef>),
}

/// The name of a class or function. The modules that Python 2 called `__builtin__` and `copy_reg` have
/// their names of Python 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// The module, e.g. `collections`.
    pub module: Arc<str>,
    /// The name within it, e.g. `OrderedDict`.
    pub name: Arc<str>,
}

impl Global {
    /// Whether this is `module.name`.
    pub fn is(&self, module: &str, name: &str) -> bool {
        &*self.module == module && &*self.name == name
    }
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// The recipe of an object: which callable, with what, and what was put into the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The class or function, nearly always a [`Value::Global`].
    pub class: Value,
    /// Its positional arguments.
    pub args: Value,
    /// Its keyword arguments, where there are any.
    pub kwargs: Option<Value>,
    /// What `__setstate__` would have been given, or the attributes.
    pub state: Option<Value>,
    /// What was appended or added to it, in order.
    pub items: Vec<Value>,
    /// The keys that were set on it, in order: what a subclass of dict holds.
    pub entries: Vec<(Value, Value)>,
}

impl Object {
    /// The name of the class, if it is one by name.
    pub fn global(&self) -> Option<&Global> {
        match &self.class {
            Value::Global(global) => Some(global),
            _ => None,
        }
    }

    /// The positional arguments.
    pub fn args(&self) -> &[Value] {
        self.args.as_tuple().unwrap_or_default()
    }

    /// Whether it was made by the call alone.
    pub(crate) fn is_bare(&self) -> bool {
        self.kwargs.is_none()
            && self.state.is_none()
            && self.items.is_empty()
            && self.entries.is_empty()
    }
}

impl Value {
    /// A string, or bytes that are valid UTF-8: what Python 2 called `str` is bytes here.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The bytes of [`Value::Bytes`]; a string has none until it is encoded.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// An integer that fits 64 bits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// An integer that is a size or an index.
    pub fn as_usize(&self) -> Option<usize> {
        usize::try_from(self.as_i64()?).ok()
    }

    /// A float, or an integer as one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(float) => Some(*float),
            Value::Int(int) => Some(*int as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The elements of a list, or what was appended to a subclass of it.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            Value::Object(object) if !object.items.is_empty() => Some(&object.items),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn as_tuple(&self) -> Option<&[Value]> {
        match self {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of a list, tuple or set.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Value::Tuple(items) | Value::Set(items) => Some(items),
            _ => self.as_list(),
        }
    }

    /// Keys and values of a dict or of one of its subclasses, such as `OrderedDict`.
    pub fn entries(&self) -> Option<&[(Value, Value)]> {
        match self {
            Value::Dict(entries) => Some(entries),
            Value::Object(object) => {
                let is_mapping = |global: &Global| {
                    &*global.module == "collections"
                        && matches!(&*global.name, "OrderedDict" | "defaultdict" | "Counter")
                };
                (!object.entries.is_empty() || object.global().is_some_and(is_mapping))
                    .then_some(&*object.entries)
            }
            _ => None,
        }
    }

    /// The value of a dict, or of one of its subclasses, at a key that is a string.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut entries = self.entries()?.iter().rev();
        entries.find(|(found, _)| found.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// The object, if it is one.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The name of a class or function, if it is one.
    pub fn as_global(&self) -> Option<&Global> {
        match self {
            Value::Global(global) => Some(global),
            _ => None,
        }
    }

    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Arc<TensorRef>> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// A few words for messages: what it is, not what is in it.
    pub fn kind(&self) -> String {
        match self {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::BigInt(_) => "an integer".into(),
            Value::Float(_) => "a float".into(),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Str(_) => "a string".into(),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Tuple(items) => format!("a tuple of {}", items.len()),
            Value::Dict(entries) => format!("a dict of {}", entries.len()),
            Value::Set(items) => format!("a set of {}", items.len()),
            Value::Global(global) => format!("`{global}`"),
            Value::Object(object) => match object.global() {
                Some(global) => format!("a `{global}` object"),
                None => "an object".into(),
            },
            Value::PersistentId(_) => "a persistent id".into(),
            Value::Tensor(tensor) => format!("a tensor {:?}", tensor.shape),
        }
    }
}

/// Bytes and text beyond this many are left out of the debug text.
const SHOWN: usize = 64;

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(truth) => truth.fmt(f),
            Value::Int(int) => int.fmt(f),
            Value::BigInt(bytes) => debug_bytes("int", bytes, f),
            Value::Float(float) => float.fmt(f),
            Value::Bytes(bytes) => debug_bytes("b", bytes, f),
            Value::Str(text) => match text.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(f, "{:?}… ({} bytes)", &text[..end], text.len()),
                None => fmt::Debug::fmt(text, f),
            },
            Value::List(items) => f.debug_list().entries(items.iter()).finish(),
            Value::Tuple(items) if items.is_empty() => f.write_str("()"),
            Value::Tuple(items) => {
                let mut tuple = f.debug_tuple("");
                for item in items.iter() {
                    tuple.field(item);
                }
                tuple.finish()
            }
            Value::Dict(entries) => {
                f.debug_map().entries(entries.iter().map(|(key, value)| (key, value))).finish()
            }
            Value::Set(items) => f.debug_set().entries(items.iter()).finish(),
            Value::Global(global) => write!(f, "{global}"),
            Value::Object(object) => object.fmt(f),
            Value::PersistentId(id) => f.debug_tuple("PersistentId").field(id).finish(),
            Value::Tensor(tensor) => tensor.fmt(f),
        }
    }
}

fn debug_bytes(name: &str, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if bytes.len() <= SHOWN {
        write!(f, "{name}\"{}\"", bytes.escape_ascii())
    } else {
        write!(f, "{name}\"{}\"… ({} bytes)", bytes[..SHOWN].escape_ascii(), bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Str(text.into())
    }

    #[test]
    fn python_2_strings_read_as_text_where_they_are_utf_8() {
        assert_eq!(Value::Bytes((*b"conv1").into()).as_str(), Some("conv1"));
        assert_eq!(Value::Bytes([0xff, 0x00].into()).as_str(), None);
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let entries =
            [(text("a"), Value::Int(1)), (text("b"), Value::Int(2)), (text("a"), Value::None)];
        let dict = Value::Dict(entries.into());
        assert_eq!(dict.get("a"), Some(&Value::None));
        assert_eq!(dict.get("c"), None);
        assert_eq!(Value::Int(3).get("a"), None);
    }

    #[test]
    fn debug_text_stays_short_however_long_the_data_are() {
        assert_eq!(format!("{:?}", Value::Bytes([0, b'a'].into())), "b\"\\x00a\"");
        let long =
            Value::List([Value::Bytes(vec![0; 100_000].into()), text(&"ä".repeat(1000))].into());
        assert!(format!("{long:?}").len() < 500);
    }
}
