//! The sections `Dataset` and `Sample`: what is trained on, and how much is sampled.

use serde::{Deserialize, Serialize};

use super::keys::KeyError;

/// Section `Dataset`. Every key may be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct DatasetConfig {
    /// What the images are, for instance `CIFAR10`; case does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Side that images are resized to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Classes of the data set, and so of the classifier that goes with it. Whether the diffusion
    /// network knows of classes is said by `Model.num_classes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Channels of an image; images are RGB, so only 3 is accepted.
    pub channels: usize,
    /// Images in a step of training. The reference's loader is built from this key, and its
    /// `Train.batch_size` is read by nothing: see [`super::Config::batch_size`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Without effect in the reference, and refused here unless `false`: images go in as they are.
    pub logit_transform: bool,
    /// As `logit_transform`.
    pub uniform_dequantization: bool,
    /// As `logit_transform`.
    pub gaussian_dequantization: bool,
    /// Whether half of the images are mirrored in training.
    pub random_flip: bool,
    /// Images are scaled to `[-1, 1]`: the reference does it whatever the key says, so only `true`
    /// is accepted.
    pub rescaled: bool,
    /// Without effect: images are decoded once and mapped, and no process loads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_workers: Option<usize>,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self {
            name: None,
            image_size: None,
            num_classes: None,
            channels: 3,
            batch_size: None,
            logit_transform: false,
            uniform_dequantization: false,
            gaussian_dequantization: false,
            random_flip: true,
            rescaled: true,
            num_workers: None,
        }
    }
}

impl DatasetConfig {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        if self.channels != 3 {
            let message = format!("expected 3, got {}", self.channels);
            return Err(KeyError::refused("channels", message, "images are RGB here"));
        }
        let transforms = [
            ("logit_transform", self.logit_transform),
            ("uniform_dequantization", self.uniform_dequantization),
            ("gaussian_dequantization", self.gaussian_dequantization),
        ];
        for (key, is_on) in transforms {
            if is_on {
                let hint = "images are not transformed but for the scale, neither here nor by the \
                            reference, which reads no such key; set it to `false`";
                return Err(KeyError::refused(key, "expected `false`, got `true`".into(), hint));
            }
        }
        if !self.rescaled {
            let hint = "images are scaled to [-1, 1], here as by the reference; set it to `true`";
            let message = "expected `true`, got `false`".to_owned();
            return Err(KeyError::refused("rescaled", message, hint));
        }
        for (key, value) in [("image_size", self.image_size), ("batch_size", self.batch_size)] {
            positive(key, value)?;
        }
        Ok(())
    }
}

/// Section `Sample`: how images are sampled for the FID. Every key may be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct SampleConfig {
    /// Images that are sampled at once.
    pub batch_size: usize,
    /// Without effect: the last state alone is kept in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_only: Option<bool>,
    /// Images to sample. The reference means them for each process, and ships a quarter of 50,000.
    pub total_num: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { batch_size: 512, last_only: None, total_num: 12_500 }
    }
}

impl SampleConfig {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        positive("batch_size", Some(self.batch_size))?;
        positive("total_num", Some(self.total_num))
    }
}

pub(super) fn positive(key: &str, value: Option<usize>) -> Result<(), KeyError> {
    if value == Some(0) {
        return Err(KeyError::refused(key, "expected at least 1, got 0".to_owned(), None));
    }
    Ok(())
}
