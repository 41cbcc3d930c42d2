//! The classifier's last layer, in a file beside the bank.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::bad;
use super::layout::{file_start, tensor_header};
use crate::error::EngineError;

/// Weight `[n_classes, n_features]` and bias `[n_classes]` of the classifier's last layer.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadFile {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub n_classes: usize,
    pub n_features: usize,
}

impl HeadFile {
    /// Reads `head.safetensors`.
    ///
    /// # Errors
    /// Anything that is no whole file with a head.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let bytes = std::fs::read(path).map_err(EngineError::io("read", path))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| bad(path, "a whole safetensors file", error.to_string()))?;
        let tensor = |name: &str| match tensors.tensor(name) {
            Ok(view) if view.dtype() == Dtype::F32 => {
                let (words, _) = view.data().as_chunks::<4>();
                let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
                Ok((view.shape().to_vec(), values))
            }
            Ok(view) => Err(bad(path, format!("F32 `{name}`"), format!("{:?}", view.dtype()))),
            Err(error) => Err(bad(path, format!("tensor `{name}`"), error.to_string())),
        };
        let ((shape, weight), (bias_shape, bias)) = (tensor("weight")?, tensor("bias")?);
        match shape[..] {
            [n_classes, n_features] if bias_shape == [n_classes] => {
                Ok(Self { weight, bias, n_classes, n_features })
            }
            _ => Err(bad(path, "`weight` [k, d] and `bias` [k]", format!("{shape:?}"))),
        }
    }

    /// Writes the file, unless it is there.
    pub(crate) fn write(&self, path: &Path) -> Result<(), EngineError> {
        if path.is_file() {
            return Ok(());
        }
        let weight_start = 4 * self.bias.len();
        let header = serde_json::json!({
            "bias": tensor_header("F32", &[self.n_classes], 0),
            "weight": tensor_header("F32", &[self.n_classes, self.n_features], weight_start),
        });
        let mut bytes = file_start(&header);
        for value in self.bias.iter().chain(&self.weight) {
            bytes.extend(value.to_le_bytes());
        }
        Ok(oodbench_record::write_atomically(path, &bytes)?)
    }
}
