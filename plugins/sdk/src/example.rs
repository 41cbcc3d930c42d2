//! Shorthands for worked examples.

use oodbench_abi::{Example as Raw, ExampleHead, ExampleSplit};

/// A worked example: a tiny input, and the scores that the detector must give for it.
///
/// The conformance check fits a detector on it and compares. Where a detector asks for services,
/// the check offers an example classifier: its features are the mean of each of the three
/// channels of an image, its logits the head applied to them, its layers `input` and the further
/// heads of the example.
#[derive(Clone, Debug, Default)]
pub struct Example(pub Raw);

impl Example {
    /// Logits and their scores.
    pub fn of_logits(logits: &[&[f32]], scores: &[f32]) -> Self {
        let batch = ExampleSplit { logits: rows(logits), ..ExampleSplit::default() };
        Self(Raw { batch, scores: scores.to_vec(), tolerance: 1e-5, ..Raw::default() })
    }

    /// Features and their scores; logits follow from them by the head.
    pub fn of_features(features: &[&[f32]], scores: &[f32]) -> Self {
        let batch = ExampleSplit { features: rows(features), ..ExampleSplit::default() };
        Self(Raw { batch, scores: scores.to_vec(), tolerance: 1e-5, ..Raw::default() })
    }

    /// Images `[3, side, side]` and their scores; features and logits follow from them by the
    /// example classifier.
    pub fn of_images(images: &[&[f32]], scores: &[f32]) -> Self {
        let batch = ExampleSplit { images: rows(images), ..ExampleSplit::default() };
        Self(Raw { batch, scores: scores.to_vec(), tolerance: 1e-5, ..Raw::default() })
    }

    /// The last linear layer.
    #[must_use]
    pub fn head(mut self, weight: &[&[f32]], bias: &[f32]) -> Self {
        self.0.head_weight = rows(weight);
        self.0.head_bias = bias.to_vec();
        self
    }

    /// A further head: a linear layer on the features, which [`crate::Host::layers`] gives by this
    /// name. A classifier without a layer of this name is not for the detector: it is skipped there,
    /// with the reason.
    #[must_use]
    pub fn further_head(mut self, name: &str, weight: &[&[f32]], bias: &[f32]) -> Self {
        let head = ExampleHead { weight: rows(weight), bias: bias.to_vec() };
        self.0.heads.insert(name.to_owned(), head);
        self
    }

    /// Training features and classes.
    #[must_use]
    pub fn train(mut self, features: &[&[f32]], labels: &[i64]) -> Self {
        self.0.train.features = rows(features);
        self.0.train.labels = labels.to_vec();
        self
    }

    /// Training images and classes.
    #[must_use]
    pub fn train_images(mut self, images: &[&[f32]], labels: &[i64]) -> Self {
        self.0.train.images = rows(images);
        self.0.train.labels = labels.to_vec();
        self
    }

    /// Validation features.
    #[must_use]
    pub fn val(mut self, features: &[&[f32]]) -> Self {
        self.0.val.features = rows(features);
        self
    }

    /// Validation images.
    #[must_use]
    pub fn val_images(mut self, images: &[&[f32]]) -> Self {
        self.0.val.images = rows(images);
        self
    }

    /// Features of out-of-distribution validation images.
    #[must_use]
    pub fn val_ood(mut self, features: &[&[f32]]) -> Self {
        self.0.val_ood.features = rows(features);
        self
    }

    /// Out-of-distribution validation images.
    #[must_use]
    pub fn val_ood_images(mut self, images: &[&[f32]]) -> Self {
        self.0.val_ood.images = rows(images);
        self
    }

    /// A parameter that differs from its default.
    #[must_use]
    pub fn param(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.0.params.insert(name.to_owned(), value.into());
        self
    }

    /// How far a score may be off, relative to the size of the greatest one.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f32) -> Self {
        self.0.tolerance = tolerance;
        self
    }
}

fn rows(matrix: &[&[f32]]) -> Vec<Vec<f32>> {
    matrix.iter().map(|row| row.to_vec()).collect()
}
