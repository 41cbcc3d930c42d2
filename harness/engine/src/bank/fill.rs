//! Where the bank of one classifier lies, and how it is filled from prepared images.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use oodbench_datasets::{Pack, Progress};
use oodbench_nn::classifier::{Answer, Classifier};
use oodbench_nn::device::{give_back, is_out_of_memory};

use super::{HeadFile, Layout, Writer};
use crate::bench::DEFAULT_BATCH;
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
    /// A logit or feature that is not finite, a network that refuses the images, a batch that does
    /// not fit into the memory of a GPU, a full disk.
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
    let size = (pack.height() as usize, pack.width() as usize);
    let failed = |source: candle_core::Error| {
        let set = pack.name().to_owned();
        if !is_out_of_memory(&source) {
            return EngineError::Network { set, source };
        }
        EngineError::OutOfMemory { set, batch, fits: fits_below(classifier, batch, size) }
    };
    let write = |range: Range<usize>, answer: Answer| {
        write(out, pack, classifier, range.start, &answer)?;
        progress.advance(range.len() as u64);
        Ok(())
    };
    let ranges = (0..pack.len()).step_by(batch).map(|first| first..(first + batch).min(pack.len()));
    match classifier.stream(batch.min(pack.len()), size).map_err(failed)? {
        // One batch is computed while the next one is sent.
        Some(mut stream) => {
            let mut before = None;
            for range in ranges {
                let fill = |bytes: &mut [u8]| bytes.copy_from_slice(pack.pixels(range.clone()));
                let sent = stream.send(range.len(), fill).map_err(failed)?;
                if let Some((range, sent)) = before.replace((range, sent)) {
                    write(range, stream.take(sent).map_err(failed)?)?;
                }
            }
            match before {
                Some((range, sent)) => write(range, stream.take(sent).map_err(failed)?),
                None => Ok(()),
            }
        }
        None => {
            for range in ranges {
                let pixels = images(pack, range.clone());
                let outputs = classifier.forward(&pixels, size).map_err(failed)?;
                let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
                let logits = values(&outputs.logits).map_err(failed)?;
                let features = values(&outputs.features).map_err(failed)?;
                write(range, Answer { logits, features })?;
            }
            Ok(())
        }
    }
}

/// Writes what the classifier gives for the images from `first` on.
fn write(
    out: &Writer,
    pack: &Pack,
    classifier: &Classifier,
    first: usize,
    Answer { logits, features }: &Answer,
) -> Result<(), EngineError> {
    for (what, values, columns) in [
        ("logits", logits, classifier.n_classes()),
        ("features", features, classifier.n_features()),
    ] {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (set, image) = (pack.name().to_owned(), pack.id(first + at / columns));
            let (image, value) = (image.to_owned(), values[at]);
            return Err(EngineError::NotFinite { set, image, what, value });
        }
    }
    if classifier.arch().training.has_logits() {
        out.logits(first, logits)?;
    }
    out.features(first, features)
}

/// The largest power of two that fits and is of use to a classifier on a GPU: the last that doubling
/// has made 5 % faster. On the CPU it is the default.
///
/// # Errors
/// What the network says.
pub(crate) fn largest_batch(classifier: &Classifier, pack: &Pack) -> Result<usize, EngineError> {
    const MOST: usize = 4096;
    const TIMED: usize = 3;
    if classifier.device().is_cpu() {
        return Ok(DEFAULT_BATCH);
    }
    let size = (pack.height() as usize, pack.width() as usize);
    // Images a second, by batches that overlap as they will; `None` where they do not fit.
    let rate = |batch: usize| -> candle_core::Result<Option<f64>> {
        let Some(mut stream) = classifier.stream(batch, size)? else { return Ok(None) };
        let first = stream.send(batch, |bytes| bytes.fill(0))?;
        stream.take(first)?;
        let start = Instant::now();
        let mut before = None;
        for _ in 0..TIMED {
            let sent = stream.send(batch, |bytes| bytes.fill(0))?;
            if let Some(sent) = before.replace(sent) {
                stream.take(sent)?;
            }
        }
        before.map_or(Ok(()), |sent| stream.take(sent).map(drop))?;
        Ok(Some((batch * TIMED) as f64 / start.elapsed().as_secs_f64()))
    };
    let failed = |source| EngineError::Network { set: pack.name().to_owned(), source };
    let tried = |batch| match rate(batch) {
        Err(error) if is_out_of_memory(&error) => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(found) => Ok(found),
    };
    let (mut batch, mut best) = (DEFAULT_BATCH, tried(DEFAULT_BATCH)?);
    while best.is_none() && batch > 1 {
        // The pieces of what did not fit may be large, and of no use to what is smaller.
        give_back(classifier.device()).map_err(failed)?;
        batch /= 2;
        best = tried(batch)?;
    }
    while let Some(known) = best
        && batch < pack.len().min(MOST)
    {
        match tried(2 * batch)? {
            Some(rate) if rate >= 1.05 * known => (batch, best) = (2 * batch, Some(rate)),
            _ => break,
        }
    }
    Ok(batch)
}

/// The largest half, quarter and so on of a batch that the classifier's device has memory for.
fn fits_below(
    classifier: &Classifier,
    batch: usize,
    (height, width): (usize, usize),
) -> Option<usize> {
    let mut smaller = batch / 2;
    while smaller > 0 {
        give_back(classifier.device()).ok()?;
        let images = vec![0.0; 3 * smaller * height * width];
        match classifier.forward(&images, (height, width)) {
            Ok(_) => return Some(smaller),
            Err(error) if is_out_of_memory(&error) => smaller /= 2,
            Err(_) => return None,
        }
    }
    None
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
