//! What was planned, on what.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cell::SetRef;
use crate::search::Search;

/// The head of a run folder, `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunManifest {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The benchmark's name.
    pub benchmark: String,
    /// Its title.
    pub title: String,
    /// Its version.
    pub benchmark_version: String,
    /// The classifier.
    pub classifier: Classifier,
    /// The seed of the run.
    pub seed: u64,
    /// At most so many images of each set were to be scored.
    pub limit: Option<usize>,
    /// Whether covariate-shifted ID images count as in-distribution.
    pub full_spectrum: bool,
    /// The sets that are scored, in the order of the benchmark.
    pub sets: Vec<ListedSet>,
    /// The sets that the benchmark has and the run has not.
    pub missing: Vec<MissingSet>,
    /// What was noticed about what the run was given, each one line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The detectors, in the order in which they are listed.
    pub detectors: Vec<PlannedDetector>,
    /// The version of oodbench.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
}

/// The classifier of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classifier {
    /// The file's name, or `embedded`; of exported features their folder's.
    pub name: String,
    /// The architecture; `exported` where only features are known of it.
    pub arch: String,
    /// BLAKE3 of the weights; of exported features that of the last layer, the numbers of classes
    /// and features, and the kind of device.
    pub blake3: String,
    /// Mean that images are normalised by; absent where no images were looked at, but features
    /// that another program exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation that images are normalised by; absent as `mean`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; 3]>,
    /// Number of features.
    pub n_features: usize,
    /// Number of classes, where the run noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_classes: Option<usize>,
    /// The accuracy that its authors state of it, a fraction, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_accuracy: Option<f64>,
}

/// A set that is scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedSet {
    /// Which one.
    pub set: SetRef,
    /// How many images are scored.
    pub n_images: usize,
    /// How many the set has.
    pub of_images: usize,
    /// Hash of the prepared images.
    pub content: String,
}

/// A set whose images are not there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MissingSet {
    /// Which one; also `id-train`, `id-val` and `ood-val`.
    pub set: SetRef,
    /// One line: what is missing, and where it was looked for.
    pub reason: String,
}

/// A detector with one set of parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedDetector {
    /// Its id.
    pub id: String,
    /// What to call this row where one detector runs with several sets of parameters; its id
    /// otherwise.
    pub label: String,
    /// Its full name.
    pub title: String,
    /// What it reads off.
    pub family: String,
    /// The year of its paper.
    pub year: u32,
    /// All of its parameters.
    pub params: Map<String, Value>,
    /// What it lacks here; it has no cells then.
    pub skipped: Option<String>,
    /// The search that `params` come from; absent where they were given. Until a search has ended
    /// there are no cells, and `params` are what it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// One cell for each scored set.
    pub cells: Vec<PlannedCell>,
}

/// A cell that was planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedCell {
    /// What is scored.
    pub set: SetRef,
    /// Hash of the content of all inputs.
    pub key: String,
}

/// Where a run ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system and processor architecture.
    pub platform: String,
    /// How many threads were used.
    pub threads: usize,
    /// `cpu`, or `cuda:0` and so on.
    pub device: String,
    /// What is known of the device, if it is a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// What the classifier computed in on a GPU: `f32` or `tf32`. Detectors that compute have
    /// parameters of their own for it. On the CPU it is `f32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// For example `NVIDIA H200`.
    pub name: String,
    /// `9.0` for Hopper.
    pub capability: String,
    /// The newest CUDA that the driver knows, for example `13.0`.
    pub driver: String,
}

impl Machine {
    /// The device with what is known of it, for people.
    pub fn device_text(&self) -> String {
        let mut text = self.device.clone();
        if let Some(Gpu { name, capability, driver }) = &self.gpu {
            text.push_str(&format!(" ({name}, capability {capability}, driver for CUDA {driver})"));
        }
        if let Some(precision) = &self.precision {
            text.push_str(&format!(", {precision}"));
        }
        text
    }
}

/// What is known of the images of a set, `sets/ROLE-NAME.json`. All lists have the same length,
/// but for predictions that are not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetFile {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Which one.
    pub set: SetRef,
    /// Names of the images.
    pub ids: Vec<String>,
    /// Classes; -1 where there is none.
    pub labels: Vec<i64>,
    /// The class that the classifier predicts; empty where its logits are not known.
    pub predictions: Vec<i64>,
}
