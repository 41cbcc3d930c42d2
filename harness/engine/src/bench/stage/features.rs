//! Sets of exported features: their numbers go into the bank, and whether features, head and logits
//! belong together is looked at.

use oodbench_datasets::Role;
use oodbench_nn::device::device;

use super::{About, SearchSets, Staged, StagedSet, Stager};
use crate::bank::{BankFolder, HeadFile};
use crate::bench::{BenchRequest, DEFAULT_BATCH, Observer, set_ref};
use crate::classifier::device_kind;
use crate::error::EngineError;
use crate::features::{FeatureFolder, content, convert, disagreement};
use crate::job::SetFiles;
use crate::key::KeyBuilder;
use crate::set::SetData;

/// Exported features that have been found.
pub(super) struct FeatureStager<'a> {
    features: FeatureFolder,
    folder: BankFolder,
    classifier_key: String,
    observer: &'a dyn Observer,
}

impl<'a> FeatureStager<'a> {
    pub(super) fn new(
        request: &BenchRequest,
        features: FeatureFolder,
        observer: &'a dyn Observer,
    ) -> Result<Self, EngineError> {
        // Detectors may compute there, and would be told of it one after the other.
        device(&request.device)?;
        let classifier_key = classifier_key(&features, &request.device);
        let folder = BankFolder::new(&request.cache, &classifier_key);
        if let Some(head) = &features.head {
            head.write(&folder.head_path())?;
        }
        Ok(Self { features, folder, classifier_key, observer })
    }

    /// Features of another layer than the head's, the commonest slip of an export, still give
    /// scores; the logits tell.
    fn warn_of_disagreement(&self, head: &HeadFile, sets: &[StagedSet]) -> Result<(), EngineError> {
        let exported = self.features.of_role(Role::IdTest).filter(|set| set.has_logits);
        let staged = sets.iter().find(|set| set.role == Role::IdTest);
        let Some((exported, staged)) = exported.filter(|set| set.has_features).zip(staged) else {
            return Ok(());
        };
        if let Some(part) = disagreement(head, staged.data.bank())? {
            self.observer.warn(&format!(
                "head and features give other logits than those in `{}`, by {:.0} % of their spread; \
                 are `features` the input of the last linear layer, and is `head` that layer?",
                exported.path().display(),
                100.0 * part
            ));
        }
        Ok(())
    }
}

/// Hash of the classifier as far as it was exported. What it gave counts with each set.
fn classifier_key(features: &FeatureFolder, on: &str) -> String {
    let mut key = KeyBuilder::new("exported-classifier/1");
    key.part("classes", &features.n_classes.to_string());
    key.part("features", &features.n_features.to_string());
    let hash = features.head.as_ref().map(|head| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytemuck::cast_slice(&head.weight));
        hasher.update(bytemuck::cast_slice(&head.bias));
        hasher.finalize().to_hex().to_string()
    });
    key.part("head", hash.as_deref().unwrap_or("none"));
    key.part("device", device_kind(on));
    key.finish()
}

impl Stager for FeatureStager<'_> {
    fn roles(&self) -> Vec<Role> {
        self.features.sets.iter().map(|set| set.role).collect()
    }

    fn set(&self, nth: usize, limit: Option<usize>) -> Result<StagedSet, EngineError> {
        let set = &self.features.sets[nth];
        let rows = limit.map_or(set.len, |limit| limit.min(set.len));
        let content = content(set, rows)?;
        let head = self.features.head.as_ref();
        let bank = convert(set, rows, &content, head, &self.folder, self.observer)?;
        let files = SetFiles { pack: None, bank };
        Ok(StagedSet {
            role: set.role,
            set: set_ref(set.role, &set.name),
            data: SetData::open(&files)?,
            files,
            content,
            of_images: set.len,
        })
    }

    fn finish(
        self: Box<Self>,
        sets: Vec<StagedSet>,
        search: Option<SearchSets>,
    ) -> Result<Staged, EngineError> {
        if let Some(head) = &self.features.head {
            self.warn_of_disagreement(head, &sets)?;
        }
        // Two runs whose exports differ in anything are not runs of the same thing.
        let mut version = KeyBuilder::new("export/1");
        version.part("classifier", &self.classifier_key);
        for set in sets.iter().filter(|set| super::is_scored(set.role)) {
            version.part(&set.set.to_string(), &set.content);
        }
        let version = version.finish();
        Ok(Staged {
            sets,
            search,
            head: self.features.head.as_ref().map(|_| self.folder.head_path()),
            n_classes: self.features.n_classes,
            n_features: self.features.n_features,
            about: About {
                benchmark: "features".to_owned(),
                title: "Exported features".to_owned(),
                version: version[..12].to_owned(),
                classifier: oodbench_record::Classifier {
                    name: self.features.name(),
                    arch: "exported".to_owned(),
                    blake3: self.classifier_key.clone(),
                    mean: None,
                    std: None,
                    n_features: self.features.n_features,
                    n_classes: Some(self.features.n_classes),
                    stated_accuracy: None,
                },
            },
            classifier_key: self.classifier_key,
            batch_size: DEFAULT_BATCH,
        })
    }
}
