//! Where the bank of one classifier lies, and how it is filled from prepared images.

use std::path::{Path, PathBuf};

use oodbench_datasets::{Pack, Progress};
use oodbench_nn::classifier::Classifier;

use super::{HeadFile, Layout, Writer};
use crate::error::EngineError;
use crate::image::images;
use crate::key::KeyBuilder;

/// Goes into every key. Raise it when networks give other numbers than before.
const BANK_VERSION: &str = "bank/1";

/// The bank of one classifier.
pub struct BankFolder {
    folder: PathBuf,
}

impl BankFolder {
    /// The bank of the classifier with this key, below the cache.
    pub fn new(cache: &Path, classifier_key: &str) -> Self {
        Self { folder: cache.join("bank").join(classifier_key) }
    }

    /// Where the head lies, or will.
    pub fn head_path(&self) -> PathBuf {
        self.folder.join("head.safetensors")
    }

    /// Where what the classifier gives for a set lies, or will.
    pub fn path(&self, pack: &Pack) -> PathBuf {
        let mut key = KeyBuilder::new(BANK_VERSION);
        key.part("images", pack.content_hash());
        self.named(pack.name(), &key.finish())
    }

    /// Where the file with this key lies, or will; the name is for people.
    pub(crate) fn named(&self, name: &str, key: &str) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = name.chars().map(plain).take(60).collect();
        self.folder.join(format!("{name}-{key}.safetensors"))
    }

    /// Writes the head, unless it is there.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn write_head(&self, classifier: &Classifier) -> Result<(), EngineError> {
        let path = self.head_path();
        if path.is_file() {
            return Ok(());
        }
        let network = |source| EngineError::Network { set: "nothing".to_owned(), source };
        let (weight, bias) = classifier.head().map_err(network)?;
        let (n_classes, n_features) = (classifier.n_classes(), classifier.n_features());
        HeadFile { weight, bias, n_classes, n_features }.write(&path)
    }

    /// Runs the classifier over a set, batch by batch, and writes what it gives. The file appears
    /// when it is whole.
    ///
    /// # Errors
    /// A logit or feature that is not finite, a network that refuses the images, a full disk.
    pub fn fill(
        &self,
        pack: &Pack,
        classifier: &Classifier,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<PathBuf, EngineError> {
        let layout = Layout {
            n: pack.len(),
            logits: classifier.arch().training.has_logits().then_some(classifier.n_classes()),
            features: Some(classifier.n_features()),
            ..Layout::default()
        };
        let out = Writer::create(&self.path(pack), layout)?;
        progress.begin(&format!("classify {}", pack.name()), pack.len() as u64);
        let filled = fill(&out, pack, classifier, batch.max(1), progress);
        progress.end();
        filled?;
        out.finish()
    }
}

fn fill(
    out: &Writer,
    pack: &Pack,
    classifier: &Classifier,
    batch: usize,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    let network = |source| EngineError::Network { set: pack.name().to_owned(), source };
    let size = (pack.height() as usize, pack.width() as usize);
    for first in (0..pack.len()).step_by(batch) {
        let range = first..(first + batch).min(pack.len());
        let outputs = classifier.forward(&images(pack, range.clone()), size).map_err(network)?;
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let logits = values(&outputs.logits).map_err(network)?;
        let features = values(&outputs.features).map_err(network)?;
        for (what, values, columns) in [
            ("logits", &logits, classifier.n_classes()),
            ("features", &features, classifier.n_features()),
        ] {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (set, image) = (pack.name().to_owned(), pack.id(first + at / columns));
                let (image, value) = (image.to_owned(), values[at]);
                return Err(EngineError::NotFinite { set, image, what, value });
            }
        }
        if classifier.arch().training.has_logits() {
            out.logits(first, &logits)?;
        }
        out.features(first, &features)?;
        progress.advance(range.len() as u64);
    }
    Ok(())
}

/// Removes what killed runs left half written in the bank.
///
/// # Errors
/// A folder that cannot be read.
pub fn sweep(cache: &Path) -> Result<(), EngineError> {
    let bank = cache.join("bank");
    let Ok(folders) = std::fs::read_dir(&bank) else { return Ok(()) };
    for folder in folders {
        let folder = folder.map_err(EngineError::io("read", &bank))?.path();
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.map_err(EngineError::io("read", &folder))?;
            // Another run may be at work: what is younger than a day may be its own.
            let old = entry.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| {
                time.elapsed().is_ok_and(|age| age > std::time::Duration::from_secs(86_400))
            });
            if old && entry.file_name().to_string_lossy().starts_with(".partial-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}
