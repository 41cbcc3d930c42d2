//! Arrays of numpy, from the records that their pickles consist of.
//!
//! Three forms are in use: `_reconstruct` and a state with the raw data (protocols 0 to 4),
//! `_frombuffer` (protocol 5), and `scalar` for single numbers. numpy 2 renamed `numpy.core` to
//! `numpy._core`; both are read. Nothing is converted: an array keeps its byte order and its layout.

use std::sync::Arc;

use thiserror::Error;

use crate::value::{Global, Object, Value};

/// An array of numpy as it was stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NdArray {
    /// The element type as numpy's array interface writes it: byte order, kind, bytes an element, e.g.
    /// `<f4`, `|u1`.
    pub descr: String,
    /// The size of each dimension; none for a scalar.
    pub shape: Vec<usize>,
    /// Whether the first index runs fastest.
    pub fortran_order: bool,
    /// The elements, one after the other: exactly as many bytes as the shape needs.
    pub data: Arc<[u8]>,
}

/// A value that is no array of plain numbers.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NumpyError {
    /// Something other than a numpy array.
    #[error("expected a numpy array, got {got}")]
    NotAnArray {
        /// What it is.
        got: String,
    },
    /// A part of an array that is not as numpy writes it.
    #[error("numpy array has an invalid {part}: {got}")]
    Invalid {
        /// Which part.
        part: &'static str,
        /// What is there.
        got: String,
    },
    /// Elements that are not plain numbers or text of fixed length.
    #[error("numpy elements of type `{descr}` are not supported")]
    UnsupportedType {
        /// The type.
        descr: String,
    },
    /// The data do not fill the shape.
    #[error("numpy array of {descr} and shape {shape:?} expected {expected} bytes, got {got}")]
    WrongLength {
        /// The type of the elements.
        descr: String,
        /// The shape.
        shape: Vec<usize>,
        /// How many bytes the two need.
        expected: u128,
        /// How many there are.
        got: usize,
    },
}

impl NdArray {
    /// The array that `value` records. The data are shared with it, not copied.
    ///
    /// # Errors
    ///
    /// Values that are not arrays, arrays of objects or records, and damaged ones.
    pub fn from_value(value: &Value) -> Result<Self, NumpyError> {
        let not_an_array = || NumpyError::NotAnArray { got: value.kind() };
        let object = value.as_object().ok_or_else(not_an_array)?;
        let name = object.global().and_then(name_in_numpy).ok_or_else(not_an_array)?;
        match (name, object.args()) {
            ("multiarray._reconstruct", _) => Self::from_state(object),
            ("numeric._frombuffer", [data, dtype, shape, order]) => {
                Self::new(dtype, shape, order.as_str() == Some("F"), data)
            }
            ("multiarray.scalar", [dtype, data]) => {
                Self::new(dtype, &Value::Tuple(Arc::new([])), false, data)
            }
            _ => Err(not_an_array()),
        }
    }

    /// How many elements there are.
    pub fn n_elements(&self) -> usize {
        // A zero first: what stands beside it may be of any size.
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }

    fn from_state(object: &Object) -> Result<Self, NumpyError> {
        let state = object.state.as_ref().unwrap_or(&Value::None);
        match state.as_tuple() {
            // The version was left out long ago.
            Some([_, shape, dtype, is_fortran, data] | [shape, dtype, is_fortran, data]) => {
                // Python 2 had no booleans to spare: 0 and 1 are seen as well.
                let fortran_order =
                    *is_fortran == Value::Bool(true) || *is_fortran == Value::Int(1);
                Self::new(dtype, shape, fortran_order, data)
            }
            _ => Err(invalid("state", state)),
        }
    }

    fn new(
        dtype: &Value,
        shape: &Value,
        fortran_order: bool,
        data: &Value,
    ) -> Result<Self, NumpyError> {
        let (descr, item_size) = describe_dtype(dtype)?;
        let sizes = shape.as_tuple().and_then(|sizes| sizes.iter().map(Value::as_usize).collect());
        let shape: Vec<usize> = sizes.ok_or_else(|| invalid("shape", shape))?;
        let Value::Bytes(data) = data else { return Err(invalid("data", data)) };
        let n_bytes = shape
            .iter()
            .try_fold(item_size as u128, |n_bytes, size| n_bytes.checked_mul(*size as u128));
        if n_bytes != Some(data.len() as u128) {
            let (expected, got) = (n_bytes.unwrap_or(u128::MAX), data.len());
            return Err(NumpyError::WrongLength { descr, shape, expected, got });
        }
        Ok(Self { descr, shape, fortran_order, data: Arc::clone(data) })
    }
}

/// The name within `numpy.core` of old or `numpy._core` of new.
fn name_in_numpy(global: &Global) -> Option<&'static str> {
    let module = &*global.module;
    let module = module.strip_prefix("numpy.core.").or(module.strip_prefix("numpy._core."))?;
    match (module, &*global.name) {
        ("multiarray", "_reconstruct") => Some("multiarray._reconstruct"),
        ("multiarray", "scalar") => Some("multiarray.scalar"),
        ("numeric", "_frombuffer") => Some("numeric._frombuffer"),
        _ => None,
    }
}

/// The type string and the size of an element.
fn describe_dtype(dtype: &Value) -> Result<(String, usize), NumpyError> {
    let object = dtype.as_object().ok_or_else(|| invalid("dtype", dtype))?;
    if !object.global().is_some_and(|global| global.is("numpy", "dtype")) {
        return Err(invalid("dtype", dtype));
    }
    let code = object.args().first().and_then(Value::as_str);
    let code = code.ok_or_else(|| invalid("dtype", dtype))?;
    // Some write the byte order into the code as well.
    let code = code.trim_start_matches(['<', '>', '|', '=']);
    let state = object.state.as_ref().and_then(Value::as_tuple).unwrap_or_default();
    let unsupported = || NumpyError::UnsupportedType { descr: code.into() };

    let mut letters = code.chars();
    let (kind, digits) = (letters.next(), letters.as_str());
    let count: usize = digits.parse().map_err(|_| unsupported())?;
    let item_size = match kind {
        Some('b' | 'i' | 'u' | 'f' | 'c' | 'S' | 'V' | 'm' | 'M') => Some(count),
        Some('U') => count.checked_mul(4),
        _ => None,
    };
    let item_size = item_size.filter(|size| *size > 0).ok_or_else(unsupported)?;
    // (version, byte order, sub-array, field names, fields, …)
    let has_parts = matches!(state, [_, _, subarray, names, ..]
        if *subarray != Value::None || *names != Value::None);
    if has_parts {
        return Err(unsupported());
    }
    let order = match state.get(1).and_then(Value::as_str) {
        Some(order @ ("<" | ">" | "|")) => order,
        _ if item_size == 1 => "|",
        // Native, on the little-endian machines that wrote it.
        _ => "<",
    };
    Ok((format!("{order}{code}"), item_size))
}

fn invalid(part: &'static str, value: &Value) -> NumpyError {
    NumpyError::Invalid { part, got: value.kind() }
}
