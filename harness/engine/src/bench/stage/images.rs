//! Sets of images: prepared packs, and what the classifier gives for them.

use std::cell::Cell;
use std::path::PathBuf;

use oodbench_datasets::{Located, Pack, PrepareRequest, Role, prepare};
use oodbench_nn::classifier::Classifier;
use oodbench_nn::device::{DeviceError, give_back};

use super::{About, SearchSets, Staged, StagedSet, Stager};
use crate::bank::{Bank, BankFolder, largest_batch};
use crate::bench::source::OpenedImages;
use crate::bench::{BatchSize, BenchRequest, DEFAULT_BATCH, Observer, set_ref};
use crate::error::EngineError;
use crate::job::SetFiles;
use crate::set::SetData;

/// Images, and a classifier that is loaded.
pub(super) struct ImageStager<'a> {
    request: &'a BenchRequest,
    opened: OpenedImages<'a>,
    network: Classifier,
    folder: BankFolder,
    classifier_key: String,
    /// What `auto` has come to, once that is known.
    batch_size: Cell<Option<usize>>,
    observer: &'a dyn Observer,
}

impl<'a> ImageStager<'a> {
    /// Loads the classifier: weights that do not fit are reported before anything is decoded.
    pub(super) fn new(
        request: &'a BenchRequest,
        opened: OpenedImages<'a>,
        observer: &'a dyn Observer,
    ) -> Result<Self, EngineError> {
        let network = opened.classifier.load(&request.device, request.precision)?;
        let classifier_key = opened.classifier.key(&request.device, request.precision);
        let folder = BankFolder::new(&request.cache, &classifier_key);
        if network.arch().training.has_head() {
            folder.write_head(&network)?;
        }
        let batch_size = Cell::new(match request.batch_size {
            BatchSize::Of(n) => Some(n.max(1)),
            BatchSize::Auto => None,
        });
        Ok(Self { request, opened, network, folder, classifier_key, batch_size, observer })
    }

    /// How many images the classifier takes at once.
    fn batch_size(&self, images: &Pack) -> Result<usize, EngineError> {
        if let Some(known) = self.batch_size.get() {
            return Ok(known);
        }
        let found = largest_batch(&self.network, images)?;
        self.observer.debug(&format!("batch {found}: the largest that fits and is of use"));
        self.batch_size.set(Some(found));
        Ok(found)
    }

    /// What the classifier gives for prepared images.
    fn fill(&self, images: &Pack) -> Result<PathBuf, EngineError> {
        let (path, network) = (self.folder.path(images), &self.network);
        if !path.is_file() {
            let batch = self.batch_size(images)?;
            return self.folder.fill(images, network, batch, self.observer);
        }
        let bank = Bank::open(&path)?;
        let n_logits = if network.arch().training.has_logits() { network.n_classes() } else { 0 };
        let expected = [images.len(), n_logits, network.n_features()];
        let got = [bank.len(), bank.n_classes(), bank.n_features()];
        if expected == got {
            return Ok(path);
        }
        let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
        Err(EngineError::Bank { path, expected, got })
    }
}

impl Stager for ImageStager<'_> {
    fn roles(&self) -> Vec<Role> {
        self.opened.located.iter().map(|set| set.set.role).collect()
    }

    fn set(&self, nth: usize, limit: Option<usize>) -> Result<StagedSet, EngineError> {
        let Located { set, preprocess, source } = &self.opened.located[nth];
        // Sets that cannot be read do not come this far.
        let Ok(source) = source else {
            return Err(EngineError::MissingSets {
                benchmark: self.opened.source.benchmark.name.clone(),
                missing: vec![(set_ref(set.role, &set.name), "not opened".to_owned())],
            });
        };
        let images = prepare(
            source.as_ref(),
            &PrepareRequest {
                name: &format!("{}-{}-{}", self.opened.source.benchmark.name, set.role, set.name),
                preprocess: *preprocess,
                limit,
                cache_dir: &self.request.cache.join("packs"),
                progress: self.observer,
            },
        )?;
        let files = SetFiles { pack: Some(images.path().to_owned()), bank: self.fill(&images)? };
        Ok(StagedSet {
            role: set.role,
            set: set_ref(set.role, &set.name),
            data: SetData::open(&files)?,
            files,
            content: images.content_hash().to_owned(),
            of_images: source.len(),
        })
    }

    fn finish(
        self: Box<Self>,
        sets: Vec<StagedSet>,
        search: Option<SearchSets>,
    ) -> Result<Staged, EngineError> {
        let OpenedImages { source, classifier, .. } = self.opened;
        let benchmark = &source.benchmark;
        let (n_classes, n_features) = (self.network.n_classes(), self.network.n_features());
        let (arch, device) = (self.network.arch().clone(), self.network.device().clone());
        // Workers compute on the same device: all that this process had there is theirs.
        drop(self.network);
        give_back(&device).map_err(|source| {
            let name = self.request.device.clone();
            DeviceError::Unusable { name, source }
        })?;
        Ok(Staged {
            sets,
            search,
            head: arch.training.has_head().then(|| self.folder.head_path()),
            classifier_key: self.classifier_key,
            batch_size: self.batch_size.get().unwrap_or(DEFAULT_BATCH),
            n_classes,
            n_features,
            about: About {
                benchmark: benchmark.name.clone(),
                title: benchmark.title.clone(),
                version: benchmark.version.clone(),
                classifier: oodbench_record::Classifier {
                    name: classifier.name.clone(),
                    arch: arch.to_string(),
                    blake3: classifier.blake3.clone(),
                    mean: Some(classifier.normalisation.mean),
                    std: Some(classifier.normalisation.std),
                    n_features,
                    n_classes: Some(n_classes),
                    stated_accuracy: classifier.stated_accuracy,
                },
            },
        })
    }
}
