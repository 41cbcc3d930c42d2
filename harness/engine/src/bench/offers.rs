//! What a classifier offers to detectors, known before anything is computed: which of their needs
//! it cannot meet, which further heads it has, and how it was trained.

use oodbench_abi::Needs;

use crate::classifier::ClassifierRef;
use crate::error::EngineError;
use crate::pack::DetectorInfo;

/// What a run has to offer beside its sets of images.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers {
    /// What to call the classifier in a sentence.
    pub(super) name: String,
    /// Needs that cannot be met, with the reason.
    pub(super) lacking: Vec<(Needs, String)>,
    /// Further heads, by the names of their layers.
    pub(super) heads: Vec<String>,
    /// The training methods that the classifier may come from.
    pub(super) trainings: Vec<String>,
}

impl Offers {
    /// What a classifier offers, as far as the names and shapes of its weights tell.
    ///
    /// # Errors
    /// Weights that no network is known for.
    pub(super) fn of(classifier: &ClassifierRef) -> Result<Self, EngineError> {
        let variant = classifier.variant()?;
        let training = &variant.training;
        let name = format!("the classifier ({variant})");
        let mut lacking = Vec::new();
        if !training.has_logits() {
            for need in [Needs::LOGITS, Needs::FORWARD] {
                lacking.push((need, format!("needs logits, and {name} has none")));
            }
        }
        if !training.has_head() {
            let reason = format!("needs a linear last layer, and {name} has none");
            lacking.push((Needs::HEAD, reason));
        }
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (heads, trainings) = (owned(training.layers()), owned(training.names()));
        Ok(Self { name, lacking, heads, trainings })
    }

    /// Why a detector cannot run on this.
    pub(super) fn lacks(&self, info: &DetectorInfo) -> Option<String> {
        let missing: Vec<String> = info
            .heads()
            .filter(|head| !self.heads.iter().any(|has| has == head))
            .map(|head| format!("`{head}`"))
            .collect();
        if !missing.is_empty() {
            let training = match info.companion_of.as_str() {
                "" => String::new(),
                training => format!(", which training by {training} gives"),
            };
            let heads = if missing.len() == 1 { "the further head" } else { "the further heads" };
            let (names, name) = (missing.join(" and "), &self.name);
            return Some(format!("needs {heads} {names}{training}, and {name} has not"));
        }
        let unmet = self.lacking.iter().find(|(need, _)| info.needs.contains(*need));
        unmet.map(|(_, reason)| reason.clone())
    }

    /// Whether the classifier may come from this training.
    pub(super) fn is_of(&self, training: &str) -> bool {
        self.trainings.iter().any(|name| name == training)
    }
}
