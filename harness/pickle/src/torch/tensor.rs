//! A tensor as a view of a storage: which elements, in which order.

use std::{fmt, ops::Range, sync::Arc};

use super::TorchError;

/// The type of the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it: kind and bits")]
pub enum Dtype {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
}

impl Dtype {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// The type that a storage class is for, such as `torch.HalfStorage` or `torch.cuda.HalfStorage`.
    pub(crate) fn of_storage(class: &str) -> Option<Self> {
        Some(match class.strip_suffix("Storage")? {
            "Bool" => Dtype::Bool,
            "Byte" | "Untyped" => Dtype::U8,
            "Char" => Dtype::I8,
            "Short" => Dtype::I16,
            "Int" => Dtype::I32,
            "Long" => Dtype::I64,
            "Half" => Dtype::F16,
            "BFloat16" => Dtype::BF16,
            "Float" => Dtype::F32,
            "Double" => Dtype::F64,
            _ => return None,
        })
    }

    /// The type that PyTorch calls `torch.<name>`.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Dtype::Bool,
            "uint8" => Dtype::U8,
            "uint16" => Dtype::U16,
            "uint32" => Dtype::U32,
            "uint64" => Dtype::U64,
            "int8" => Dtype::I8,
            "int16" => Dtype::I16,
            "int32" => Dtype::I32,
            "int64" => Dtype::I64,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            "float32" => Dtype::F32,
            "float64" => Dtype::F64,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Bool => "bool",
            Dtype::U8 => "u8",
            Dtype::U16 => "u16",
            Dtype::U32 => "u32",
            Dtype::U64 => "u64",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
        })
    }
}

/// Where a tensor lies: as the checkpoint says, and not yet checked against the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef {
    /// The type of the elements.
    pub dtype: Dtype,
    /// The name of the storage, unique within the file.
    pub storage: Arc<str>,
    /// The first element, counted in elements from the start of the storage.
    pub offset: usize,
    /// The size of each dimension.
    pub shape: Vec<usize>,
    /// How many elements of the storage lie between neighbours, for each dimension.
    pub strides: Vec<usize>,
}

impl TensorRef {
    /// How many elements there are; `None` if they cannot be counted in a `usize`.
    pub fn n_elements(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size))
    }

    /// Whether the elements lie in C order with nothing in between. Strides of dimensions that are
    /// never stepped along may be anything.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = 1_usize;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 {
                if *stride != expected {
                    return false;
                }
                expected = expected.saturating_mul(*size);
            }
        }
        true
    }

    /// The bytes of the storage from the first to the last element.
    pub(crate) fn span(&self, storage_len: usize) -> Result<Range<usize>, TorchError> {
        if self.shape.contains(&0) {
            return Ok(0..0);
        }
        // Sums and products of 64-bit numbers, a few of them: 128 bits may still be too few.
        let item_size = self.dtype.size() as u128;
        let last = self.shape.iter().zip(&self.strides).try_fold(
            self.offset as u128,
            |last, (size, stride)| {
                ((*size - 1) as u128).checked_mul(*stride as u128)?.checked_add(last)
            },
        );
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(item_size));
        match end {
            Some(end) if end <= storage_len as u128 => {
                Ok(self.offset * self.dtype.size()..end as usize)
            }
            _ => Err(TorchError::OutOfStorage {
                shape: self.shape.clone(),
                offset: self.offset,
                key: self.storage.to_string(),
                expected: end.unwrap_or(u128::MAX),
                got: storage_len,
            }),
        }
    }

    /// The elements in C order, of the span that [`Self::span`] found.
    pub(crate) fn gather(&self, span: &[u8], n_bytes: usize) -> Vec<u8> {
        let item_size = self.dtype.size();
        let mut gathered = Vec::with_capacity(n_bytes);
        let mut index = vec![0; self.shape.len()];
        let mut position = 0;
        while gathered.len() < n_bytes {
            gathered.extend_from_slice(&span[position * item_size..(position + 1) * item_size]);
            // The next index, the last dimension fastest, and its place.
            for dim in (0..index.len()).rev() {
                // Wrapping, as the stride of a dimension of one element may be anything.
                index[dim] += 1;
                position = position.wrapping_add(self.strides[dim]);
                if index[dim] < self.shape[dim] {
                    break;
                }
                let back = self.shape[dim].wrapping_mul(self.strides[dim]);
                position = position.wrapping_sub(back);
                index[dim] = 0;
            }
        }
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(offset: usize, shape: &[usize], strides: &[usize]) -> TensorRef {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        TensorRef { dtype: Dtype::I16, storage: "0".into(), offset, shape, strides }
    }

    #[test]
    fn the_strides_of_single_elements_do_not_matter() {
        assert!(tensor(0, &[2, 3], &[3, 1]).is_contiguous());
        assert!(tensor(0, &[1, 3, 1], &[77, 1, 99]).is_contiguous());
        assert!(tensor(9, &[], &[]).is_contiguous());
        assert!(tensor(0, &[4, 0], &[1, 4]).is_contiguous());
        assert!(!tensor(0, &[2, 3], &[1, 2]).is_contiguous());
        assert!(!tensor(0, &[2], &[0]).is_contiguous());
    }

    #[test]
    fn spans_end_with_the_last_element() {
        assert_eq!(tensor(1, &[2, 3], &[10, 2]).span(32).unwrap(), 2..32);
        assert_eq!(tensor(5, &[], &[]).span(12).unwrap(), 10..12);
        assert_eq!(tensor(99, &[0], &[1]).span(0).unwrap(), 0..0);
    }

    #[test]
    fn elements_past_the_storage_are_refused() {
        let huge = usize::MAX;
        for tensor in [
            tensor(1, &[2, 3], &[10, 2]),
            tensor(16, &[], &[]),
            tensor(huge, &[2], &[1]),
            tensor(0, &[huge, huge, huge], &[huge, huge, huge]),
        ] {
            let error = tensor.span(31).unwrap_err();
            assert!(matches!(error, TorchError::OutOfStorage { got: 31, .. }), "{error}");
        }
    }

    #[test]
    fn views_are_gathered_in_c_order() {
        let bytes: Vec<u8> = (0..12_i16).flat_map(i16::to_le_bytes).collect();
        let check = |tensor: TensorRef, expected: &[i16]| {
            let span = tensor.span(bytes.len()).unwrap();
            let found = tensor.gather(&bytes[span], 2 * expected.len());
            let expected: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(found, expected, "{tensor:?}");
        };
        check(tensor(0, &[3, 2], &[1, 3]), &[0, 3, 1, 4, 2, 5]);
        check(tensor(1, &[2, 2], &[6, 2]), &[1, 3, 7, 9]);
        check(tensor(4, &[3], &[0]), &[4, 4, 4]);
        check(tensor(2, &[2, 3], &[1, 1]), &[2, 3, 4, 3, 4, 5]);
        check(tensor(0, &[1, 2], &[usize::MAX, 3]), &[0, 3]);
    }
}
