//! Tensors, from the records that their pickles consist of.
//!
//! A tensor is written as a call to a function of `torch._utils`, the first argument of which is the
//! persistent id of a storage. What is not known here stays an object: an optimiser's state or an odd
//! tensor type does not keep the weights from being read.

use std::{collections::HashMap, sync::Arc};

use super::{Dtype, TensorRef, TorchError};
use crate::{
    graph::Rebuild,
    plain::Plain,
    value::{Global, Object, Value},
};

/// Makes [`Value::Tensor`]s and notes the storages.
pub(crate) struct Resolver {
    plain: Plain,
    /// What each storage is said to hold; `None` for a type of elements that is not known.
    pub(crate) storages: HashMap<Arc<str>, Option<Declared>>,
}

/// PyTorch's own limit. This and the next one keep a small pickle, in which many tensors share one long
/// shape or name, from growing with the square of its length.
const MAX_DIMS: usize = 64;
const MAX_KEY: usize = 256;

/// What a pickle says of a storage.
#[derive(Clone, Copy)]
pub(crate) struct Declared {
    pub(crate) dtype: Dtype,
    pub(crate) n_elements: usize,
}

/// The persistent id of a storage: a tuple of `storage`, type, key, device, number of elements, and in
/// the older format the view of the storage that is meant.
struct StorageId<'v> {
    class: &'v Global,
    key: &'v str,
    n_elements: usize,
    offset: usize,
}

impl Resolver {
    /// For a pickle in data of this length.
    pub(crate) fn new(n_bytes: usize) -> Self {
        Self { plain: Plain::new(n_bytes), storages: HashMap::new() }
    }

    /// A tensor, or `None` where its elements are of a type that is not known.
    fn tensor(
        &self,
        storage: &Value,
        offset: &Value,
        shape: &Value,
        strides: &Value,
        dtype: Option<&Value>,
    ) -> Result<Option<Value>, TorchError> {
        let id = match storage {
            Value::PersistentId(id) => StorageId::parse(id)?,
            _ => None,
        };
        let id = id.ok_or_else(|| invalid("storage", storage))?;
        let dtype = match dtype {
            None => Dtype::of_storage(&id.class.name),
            Some(dtype) => {
                let global = dtype.as_global().filter(|global| &*global.module == "torch");
                Dtype::of_name(&global.ok_or_else(|| invalid("element type", dtype))?.name)
            }
        };
        let Some(dtype) = dtype else { return Ok(None) };
        let offset = offset.as_usize().and_then(|offset| offset.checked_add(id.offset));
        let offset = offset.ok_or_else(|| invalid("offset", storage))?;
        let sizes = |part, value: &Value| {
            let sizes: Option<Vec<usize>> = value
                .items()
                .filter(|sizes| sizes.len() <= MAX_DIMS)
                .and_then(|sizes| sizes.iter().map(Value::as_usize).collect());
            sizes.ok_or_else(|| invalid(part, value))
        };
        // A shape may be a `torch.Size`, which is a call with a tuple as its argument.
        let shape_tuple = match shape.as_object().map(Object::args) {
            Some([tuple]) => tuple,
            _ => shape,
        };
        let (shape, strides) = (sizes("shape", shape_tuple)?, sizes("stride", strides)?);
        if shape.len() != strides.len() {
            return Err(TorchError::TensorRecord {
                part: "stride",
                got: format!("{strides:?} for shape {shape:?}"),
            });
        }
        // One name for all tensors of a storage. It was noted when the id itself was built.
        let storage = match self.storages.get_key_value(id.key) {
            Some((key, _)) => Arc::clone(key),
            None => id.key.into(),
        };
        Ok(Some(Value::Tensor(Arc::new(TensorRef { dtype, storage, offset, shape, strides }))))
    }
}

impl Rebuild for Resolver {
    type Error = TorchError;

    fn persistent_id(&mut self, id: &Value) -> Result<(), TorchError> {
        // The other kind of id is that of a module, whose source code was saved beside it.
        if let Some(id) = StorageId::parse(id)? {
            let (dtype, n_elements) = (Dtype::of_storage(&id.class.name), id.n_elements);
            let declared = dtype.map(|dtype| Declared { dtype, n_elements });
            // The first is the storage as it is saved; later ones may view it as another type.
            if !self.storages.contains_key(id.key) {
                self.storages.insert(id.key.into(), declared);
            }
        }
        Ok(())
    }

    fn object(&mut self, object: &Object) -> Result<Option<Value>, TorchError> {
        let tensor = match object.global() {
            Some(global) if &*global.module == "torch._utils" => {
                match (&*global.name, object.args()) {
                    (
                        "_rebuild_tensor" | "_rebuild_tensor_v2",
                        [storage, offset, shape, strides, ..],
                    ) => self.tensor(storage, offset, shape, strides, None)?,
                    ("_rebuild_tensor_v3", [storage, offset, shape, strides, _, _, dtype, ..]) => {
                        self.tensor(storage, offset, shape, strides, Some(dtype))?
                    }
                    (
                        "_rebuild_parameter" | "_rebuild_parameter_with_state",
                        [tensor @ Value::Tensor(_), ..],
                    ) => Some(tensor.clone()),
                    _ => None,
                }
            }
            _ => None,
        };
        match tensor {
            Some(tensor) => Ok(Some(tensor)),
            None => Ok(self.plain.object(object)?),
        }
    }
}

impl<'v> StorageId<'v> {
    /// `None` for an id that is not that of a storage.
    fn parse(id: &'v Value) -> Result<Option<Self>, TorchError> {
        let bad = || invalid("storage id", id);
        let (class, key, n_elements, view) = match id.as_tuple() {
            Some([kind, rest @ ..]) if kind.as_str() == Some("storage") => match rest {
                [class, key, _device, n_elements] => (class, key, n_elements, &Value::None),
                [class, key, _device, n_elements, view] => (class, key, n_elements, view),
                _ => return Err(bad()),
            },
            _ => return Ok(None),
        };
        let offset = match view {
            Value::None => 0,
            view => match view.as_tuple() {
                Some([_key, offset, _size]) => offset.as_usize().ok_or_else(bad)?,
                _ => return Err(bad()),
            },
        };
        Ok(Some(Self {
            class: class.as_global().ok_or_else(bad)?,
            key: key.as_str().filter(|key| key.len() <= MAX_KEY).ok_or_else(bad)?,
            n_elements: n_elements.as_usize().ok_or_else(bad)?,
            offset,
        }))
    }
}

fn invalid(part: &'static str, value: &Value) -> TorchError {
    TorchError::TensorRecord { part, got: value.kind() }
}
