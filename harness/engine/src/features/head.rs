//! The last linear layer: read from its file, applied where logits were not exported, and held
//! against them where they were.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::FeaturesError;
use super::file::{File, Kind};
use super::set::{Sizes, described, warn_of_others};
use crate::bank::{Bank, HeadFile};
use crate::error::EngineError;

/// Rows on which head and logits are compared.
const COMPARED_ROWS: usize = 256;

/// How far the logits of a head may be off those exported, as a part of their spread. Networks that
/// ran in `bf16` are off by half a per cent; the features of another layer by about everything.
const AGREEMENT: f64 = 0.02;

/// Reads `weight` [k, d] and `bias` [k]; a layer without a bias has none to export.
pub(super) fn read(
    path: &Path,
    sizes: &mut Sizes,
    warnings: &mut Vec<String>,
) -> Result<HeadFile, FeaturesError> {
    let file = File::open(path)?;
    warn_of_others(&file, &["weight", "bias"], warnings);
    let wrong = |name, expected: &str| {
        let got = file.tensor(name).map_or("none".to_owned(), described);
        Err(FeaturesError::tensor(path, name, expected, got))
    };
    let shape = file.tensor("weight").filter(|tensor| tensor.kind == Kind::Real);
    let &[n_classes, n_features] = shape.map_or(&[][..], |tensor| &tensor.shape) else {
        return wrong("weight", "F32, F64, F16 or BF16 [k, d]");
    };
    if n_classes == 0 || n_features == 0 {
        return wrong("weight", "at least one class and one feature");
    }
    let weight = values(&file, "weight", n_features)?;
    let bias = match file.tensor("bias") {
        Some(tensor) if tensor.kind == Kind::Real && tensor.shape == [n_classes] => {
            values(&file, "bias", 1)?
        }
        Some(_) => return wrong("bias", &format!("real numbers [{n_classes}]")),
        None => vec![0.0; n_classes],
    };
    sizes.classes = Some((n_classes, path.to_owned()));
    sizes.features = Some((n_features, path.to_owned()));
    Ok(HeadFile { weight, bias, n_classes, n_features })
}

/// All numbers of a tensor.
fn values(file: &File, name: &'static str, columns: usize) -> Result<Vec<f32>, FeaturesError> {
    let n = file.tensor(name).map_or(0, |tensor| tensor.shape.iter().product());
    let mut values = vec![0.0; n];
    file.numbers(name)?.read(0, &mut values)?;
    super::convert::narrow(file.path(), name, &values, columns, 0)
}

/// A head ready to be applied to many rows.
pub(super) struct Applied {
    /// `[n_features, n_classes]`
    weight: Tensor,
    /// `[n_classes]`
    bias: Tensor,
}

impl Applied {
    pub(super) fn new(head: &HeadFile) -> candle_core::Result<Self> {
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        let (weight, bias): (Vec<f64>, Vec<f64>) = (wide(&head.weight), wide(&head.bias));
        let shape = (head.n_classes, head.n_features);
        let weight = Tensor::from_vec(weight, shape, &Device::Cpu)?.t()?.contiguous()?;
        let bias = Tensor::from_vec(bias, head.n_classes, &Device::Cpu)?;
        Ok(Self { weight, bias })
    }

    /// The logits of these features, `[n, n_features]`, in `f64`.
    pub(super) fn logits(&self, features: &[f64]) -> candle_core::Result<Vec<f64>> {
        let d = self.weight.dim(0)?;
        let features = Tensor::from_slice(features, (features.len() / d, d), &Device::Cpu)?;
        features.matmul(&self.weight)?.broadcast_add(&self.bias)?.flatten_all()?.to_vec1()
    }
}

/// How far the logits of the head are off those in the bank, as a part of their spread, where that
/// is more than rounding: then features, head and logits do not belong together.
pub(crate) fn disagreement(head: &HeadFile, bank: &Bank) -> Result<Option<f64>, EngineError> {
    let (k, d) = (bank.n_classes(), bank.n_features());
    let step = bank.len().div_ceil(COMPARED_ROWS).max(1);
    let rows: Vec<usize> = (0..bank.len()).step_by(step).collect();
    let of = |values: &[f32], columns: usize| -> Vec<f64> {
        let row = |&row: &usize| &values[row * columns..(row + 1) * columns];
        rows.iter().flat_map(row).map(|&value| f64::from(value)).collect()
    };
    let (exported, features) = (of(bank.logits(), k), of(bank.features(), d));
    let network = |source| EngineError::Network { set: "exported features".to_owned(), source };
    let ours = Applied::new(head).and_then(|head| head.logits(&features)).map_err(network)?;
    let n = exported.len().max(1) as f64;
    let mean = exported.iter().sum::<f64>() / n;
    let spread = (exported.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let pairs = ours.iter().zip(&exported);
    let off = (pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>() / n).sqrt();
    // Logits that are all the same have no spread; then any other number is wrong.
    let part = if spread > 0.0 { off / spread } else { off };
    Ok((part > AGREEMENT).then_some(part))
}
