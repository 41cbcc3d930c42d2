//! Worked examples: a tiny input and the scores that a detector must give for it.
//!
//! A descriptor carries one as JSON; the conformance check fits the detector on it and compares.
//! Where a detector asks for services, they are those of the **example classifier**: its features
//! are the mean of each of the three channels of an image, its logits the head applied to them,
//! and its layer `input` is the image itself. Further heads that the example states are layers too,
//! by name; a detector needs of every classifier the further heads that its example has.
//!
//! # What the check hands over
//!
//! - The host's seed is 0. The key of image `i` of the batch is `i`, counted from 0, and an image
//!   keeps its key when the check scores it in another order or another batch. Scores that depend
//!   on random numbers can therefore be stated.
//! - `n_classes` and `n_features` are the rows and columns of the head; without a head, the columns
//!   of the logits (else the number of labels) and of the features. Images are square.
//! - A parameter of kind file whose value is `null` has no file: `asset` fails for it, and nobody
//!   has to ask. The check gives no files, so an example must do without.
//! - Only the declared needs are handed over and offered; what is needed must be there or follow.
//! - Besides the batch itself the check scores a longer one, the batch and after it each row once
//!   more in reverse order, to see whether scores depend on their neighbours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A worked example. Matrices are lists of rows; whatever a detector does not need stays empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Example {
    /// Parameters; absent ones take their defaults.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Weight of the last layer, a row for each class.
    pub head_weight: Vec<Vec<f32>>,
    /// Bias of the last layer.
    pub head_bias: Vec<f32>,
    /// Further heads by the name of their layer.
    pub heads: BTreeMap<String, ExampleHead>,
    /// In-distribution training images.
    pub train: ExampleSplit,
    /// In-distribution validation images.
    pub val: ExampleSplit,
    /// Out-of-distribution validation images.
    pub val_ood: ExampleSplit,
    /// What is scored.
    pub batch: ExampleSplit,
    /// The scores.
    pub scores: Vec<f32>,
    /// How far a score may be off, relative to the greatest score's size.
    pub tolerance: f32,
}

/// A linear layer on the features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleHead {
    /// A row for each output, as many columns as there are features.
    pub weight: Vec<Vec<f32>>,
    /// As many as rows.
    pub bias: Vec<f32>,
}

/// Images of an example. Logits and features that are left empty follow from the images by the
/// example classifier, and logits from features by the head.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExampleSplit {
    /// Classes.
    pub labels: Vec<i64>,
    /// Logits, a row for each image.
    pub logits: Vec<Vec<f32>>,
    /// Features, a row for each image.
    pub features: Vec<Vec<f32>>,
    /// Images in `[0, 1]`, a row for each, `[3, side, side]` flattened.
    pub images: Vec<Vec<f32>>,
}

impl ExampleSplit {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.logits.len().max(self.features.len()).max(self.images.len())
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
