//! Sizes that all parts of an example share, and its arrays, which must have them.

use std::collections::BTreeMap;

use oodbench_abi::{Example, ExampleHead, ExampleSplit};

use super::CHANNELS;
use super::network::{ExampleClassifier, channel_means};
use crate::check::memory::{MemoryHead, MemorySplit, MemoryTensor};

/// Sizes that all parts of an example share.
pub(super) struct Sizes {
    pub(super) n_classes: usize,
    pub(super) n_features: usize,
    /// Height and width of the images, if there are any.
    pub(super) side: Option<usize>,
}

impl Sizes {
    pub(super) fn of(example: &Example) -> Result<Self, String> {
        let splits = [&example.batch, &example.train, &example.val, &example.val_ood];
        let row = |rows: fn(&ExampleSplit) -> &Vec<Vec<f32>>| {
            splits.iter().find_map(|split| rows(split).first()).map(Vec::len)
        };
        let side = match row(|split| &split.images) {
            Some(len) => {
                let side = (len / CHANNELS).isqrt();
                if side == 0 || CHANNELS * side * side != len {
                    return Err(format!(
                        "an image of the example expected 3 * side * side values, got {len}"
                    ));
                }
                Some(side)
            }
            None => None,
        };
        let greatest_label = splits.iter().flat_map(|split| &split.labels).max().copied();
        let of_labels = greatest_label.and_then(|label| usize::try_from(label + 1).ok());
        let (n_classes, n_features) = match example.head_weight.first() {
            Some(weights) => (example.head_weight.len(), weights.len()),
            None => (
                row(|split| &split.logits).or(of_labels).unwrap_or(0),
                row(|split| &split.features).or(side.map(|_| CHANNELS)).unwrap_or(0),
            ),
        };
        Ok(Self { n_classes, n_features, side })
    }

    pub(super) fn head(&self, example: &Example) -> Result<Option<MemoryHead>, String> {
        if example.head_weight.is_empty() {
            return Ok(None);
        }
        let weight = flat(&example.head_weight, self.n_features, "head_weight")?;
        if example.head_bias.len() != self.n_classes {
            let (expected, got) = (self.n_classes, example.head_bias.len());
            return Err(format!(
                "`head_bias` of the example expected {expected} values, got {got}"
            ));
        }
        Ok(Some(MemoryHead { weight, bias: example.head_bias.clone() }))
    }

    /// The further heads by name.
    pub(super) fn further_heads(
        &self,
        example: &Example,
    ) -> Result<BTreeMap<String, MemoryHead>, String> {
        let read = |(name, head): (&String, &ExampleHead)| {
            let what = format!("heads.{name}.weight");
            let weight = flat(&head.weight, self.n_features, &what)?;
            let (expected, got) = (head.weight.len(), head.bias.len());
            if expected != got || expected == 0 {
                return Err(format!(
                    "`heads.{name}` of the example expected as many values of `bias` as rows of `weight`, got {got} and {expected}"
                ));
            }
            Ok((name.clone(), MemoryHead { weight, bias: head.bias.clone() }))
        };
        example.heads.iter().map(read).collect()
    }

    /// The arrays of a split, with what follows from its images and features.
    pub(super) fn split(
        &self,
        split: &ExampleSplit,
        name: &str,
        network: &ExampleClassifier,
    ) -> Result<MemorySplit, String> {
        let n = split.len();
        let side = self.side.unwrap_or(0);
        let array = |rows: &[Vec<f32>], what: &str, shape: &[usize]| {
            if rows.is_empty() {
                return Ok(MemoryTensor::default());
            }
            let what = format!("{name}.{what}");
            if rows.len() != n {
                return Err(format!(
                    "`{what}` of the example expected {n} rows, got {}",
                    rows.len()
                ));
            }
            let data = flat(rows, shape.iter().product(), &what)?;
            Ok(MemoryTensor::new(data, &[&[n], shape].concat()))
        };
        let images = array(&split.images, "images", &[CHANNELS, side, side])?;
        let mut features = array(&split.features, "features", &[self.n_features])?;
        if features.is_absent() && !images.is_absent() && self.n_features == CHANNELS {
            features = MemoryTensor::new(channel_means(&images.data, side * side), &[n, CHANNELS]);
        }
        let mut logits = array(&split.logits, "logits", &[self.n_classes])?;
        if logits.is_absent() && !features.is_absent() && network.head.is_some() {
            logits = MemoryTensor::new(network.logits(&features.data), &[n, self.n_classes]);
        }
        if !split.labels.is_empty() && split.labels.len() != n {
            let got = split.labels.len();
            return Err(format!("`{name}.labels` of the example expected {n} values, got {got}"));
        }
        Ok(MemorySplit { labels: split.labels.clone(), logits, features, images })
    }
}

/// Rows one after the other, each of this length.
fn flat(rows: &[Vec<f32>], len: usize, what: &str) -> Result<Vec<f32>, String> {
    match rows.iter().position(|row| row.len() != len) {
        Some(i) => Err(format!(
            "row {i} of `{what}` of the example expected {len} values, got {}",
            rows[i].len()
        )),
        None => Ok(rows.concat()),
    }
}
