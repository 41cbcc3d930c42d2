//! A detector's worked example as data to run it on, and the example classifier; their contract
//! is stated at [`oodbench_abi::example`].

mod network;
mod sizes;

use std::path::PathBuf;
use std::sync::Arc;

use oodbench_abi::{ExampleSplit, HostBox, Needs, ParamKind};
use serde_json::Value;

use super::memory::{ImageNetwork, MemoryData, MemoryHost, MemorySplit};
use crate::pack::DetectorInfo;
use network::ExampleClassifier;
use sizes::Sizes;

/// Channels of an image, and features of the example classifier.
const CHANNELS: usize = 3;

/// A worked example, ready to run.
pub(super) struct Prepared {
    pub(super) data: Arc<MemoryData>,
    /// What the example scores.
    pub(super) batch: MemorySplit,
    /// The same, and then the mirror image of each row, so that there are at least two images.
    pub(super) longer: MemorySplit,
    /// Of `batch`.
    pub(super) scores: Vec<f32>,
    pub(super) tolerance: f32,
    /// The example's parameters, as JSON.
    pub(super) params: String,
    /// The files that the parameters name, by what the host has them under. None of them is there.
    files: Vec<(String, PathBuf)>,
    network: Arc<ExampleClassifier>,
}

impl Prepared {
    /// Checks an example and derives what it leaves out.
    ///
    /// # Errors
    /// One line: what of it is missing or has the wrong size.
    pub(super) fn new(info: &DetectorInfo) -> Result<Self, String> {
        let example = &info.example;
        if example.scores.is_empty() {
            return Err("the descriptor has no worked example".to_owned());
        }
        if example.scores.len() != example.batch.len() {
            return Err(format!(
                "the example expected a score for each of {} images, got {}",
                example.batch.len(),
                example.scores.len()
            ));
        }
        if !(example.tolerance >= 0.0 && example.scores.iter().all(|score| score.is_finite())) {
            return Err("the example expected finite scores and a tolerance from 0".to_owned());
        }
        let sizes = Sizes::of(example)?;
        let head = sizes.head(example)?;
        let network = Arc::new(ExampleClassifier {
            head: head.clone(),
            n_classes: sizes.n_classes,
            heads: sizes.further_heads(example)?,
        });
        let split = |split: &ExampleSplit, name: &str| sizes.split(split, name, &network);
        let data = MemoryData {
            n_classes: sizes.n_classes,
            n_features: sizes.n_features,
            image_size: sizes.side.map(|side| (side, side)),
            head,
            train: split(&example.train, "train")?,
            val: split(&example.val, "val")?,
            val_ood: match example.val_ood.is_empty() {
                true => None,
                false => Some(split(&example.val_ood, "val_ood")?),
            },
        };
        let batch = split(&example.batch, "batch")?;
        let longer = split(&with_mirror_images(&example.batch), "batch")?;
        let params = Value::Object(example.params.clone()).to_string();
        let prepared = Self {
            data: Arc::new(data),
            batch,
            longer,
            scores: example.scores.clone(),
            tolerance: example.tolerance,
            params,
            files: files(info),
            network,
        };
        prepared.has_what_is_needed(info.needs)?;
        Ok(prepared)
    }

    /// A host of this example, with seed 0.
    pub(super) fn host(&self, needs: Needs) -> HostBox {
        let network: Arc<dyn ImageNetwork> = Arc::clone(&self.network) as _;
        let host = MemoryHost::new(needs, Arc::clone(&self.data)).network(network);
        let files = self.files.iter();
        files.fold(host, |host, (name, path)| host.asset(name, path.clone())).boxed()
    }

    fn has_what_is_needed(&self, needs: Needs) -> Result<(), String> {
        let data = &self.data;
        let has = |need: Needs| match need {
            Needs::LOGITS => !self.batch.logits.is_absent(),
            Needs::FEATURES => !self.batch.features.is_absent(),
            Needs::IMAGES => !self.batch.images.is_absent(),
            Needs::HEAD | Needs::FORWARD | Needs::GRADIENT => data.head.is_some(),
            Needs::TRAIN => !data.train.is_empty(),
            Needs::VAL => !data.val.is_empty(),
            Needs::VAL_OOD => data.val_ood.is_some(),
            Needs::LABELS => [&data.train, &data.val].iter().any(|split| !split.labels.is_empty()),
            _ => true,
        };
        let missing = Needs::NAMES.iter().find(|(need, _)| needs.contains(*need) && !has(*need));
        match missing {
            Some((Needs::FORWARD | Needs::GRADIENT, name)) => {
                Err(format!("the detector needs `{name}`, but its example has no head"))
            }
            Some((_, name)) => {
                Err(format!("the detector needs `{name}`, but its example has none"))
            }
            None => Ok(()),
        }
    }
}

/// The rows, and after them each row again in reverse order.
fn with_mirror_images(split: &ExampleSplit) -> ExampleSplit {
    let both = |rows: &[Vec<f32>]| {
        let mirrored = rows.iter().map(|row| row.iter().rev().copied().collect());
        rows.iter().cloned().chain(mirrored).collect()
    };
    ExampleSplit {
        labels: Vec::new(),
        logits: both(&split.logits),
        features: both(&split.features),
        images: both(&split.images),
    }
}

/// The files that an example's parameters name, by what the host has them under.
fn files(info: &DetectorInfo) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for param in info.params.iter().filter(|param| param.kind == ParamKind::ASSET) {
        match info.example.params.get(&param.name) {
            Some(Value::String(place)) => files.push((param.name.clone(), place.into())),
            Some(Value::Array(places)) => {
                let places = places.iter().filter_map(Value::as_str).enumerate();
                files.extend(places.map(|(nth, it)| (format!("{}.{nth}", param.name), it.into())));
            }
            _ => {}
        }
    }
    files
}
