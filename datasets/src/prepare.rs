//! From a source to a prepared pack: found again if it is there, decoded and written if not.
//!
//! A pack appears under its name only when it is whole and on the disk. Two processes that prepare
//! the same set do it once: the second waits for the first, and takes over if that is killed.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::DatasetError;
use crate::fingerprint::Fingerprinter;
use crate::pack::{Description, PACK_VERSION, Pack, PackWriter};
use crate::preprocess::Preprocess;
use crate::progress::Progress;
use crate::source::ImageSource;

/// Goes into every key. Raise it when decoding or resizing gives other pixels than before.
const READER_VERSION: &str = "1";

/// How many bytes of pixels are in memory at once, beside what decoding takes.
const CHUNK_BYTES: usize = 1 << 25;

/// What to prepare, and where.
pub struct PrepareRequest<'a> {
    /// Begins the file's name and is shown while working.
    pub name: &'a str,
    pub preprocess: Preprocess,
    /// Take only so many images, spread evenly: of `n` images with `limit` k, the i-th taken is
    /// `floor(i * n / k)`. Lists are sorted by class in part, so that the first k would not do.
    pub limit: Option<usize>,
    /// The folder of packs; created if need be.
    pub cache_dir: &'a Path,
    pub progress: &'a dyn Progress,
}

/// Returns the pack of a source, preparing it first if there is none yet.
///
/// Decoding runs on rayon's current thread pool; the images are in the order of the source. What
/// identifies an earlier pack is the source's fingerprint, the preprocessing and the limit.
///
/// Not to be called from within a rayon task: while it waits for its images, rayon may start
/// another task on this thread, and if that prepares the same set, it waits for itself.
///
/// # Errors
/// The first image, in order, that cannot be read; images of different sizes without a crop; a
/// cache that cannot be written to. Nothing is left under the pack's name then.
pub fn prepare(
    source: &dyn ImageSource,
    request: &PrepareRequest<'_>,
) -> Result<Pack, DatasetError> {
    let cache = request.cache_dir;
    std::fs::create_dir_all(cache).map_err(DatasetError::io("create", cache))?;
    let path = cache.join(file_name(source, request));
    if path.is_file() {
        return Pack::open(&path);
    }
    // Without a claim the process that we waited for has done it.
    if let Some(claim) = Claim::take(&path, request.progress)? {
        match write(source, request, &claim) {
            Ok(()) => claim.publish(&path)?,
            Err(error) => {
                claim.abandon();
                return Err(error);
            }
        }
    }
    Pack::open(&path)
}

/// Where [`prepare`] puts the pack, whether or not it is there.
#[must_use]
pub fn pack_path(source: &dyn ImageSource, request: &PrepareRequest<'_>) -> PathBuf {
    request.cache_dir.join(file_name(source, request))
}

fn file_name(source: &dyn ImageSource, request: &PrepareRequest<'_>) -> String {
    let mut key = Fingerprinter::new("pack");
    key.bytes(PACK_VERSION.as_bytes());
    key.bytes(READER_VERSION.as_bytes());
    key.bytes(source.fingerprint().as_bytes());
    key.bytes(describe(request.preprocess).as_bytes());
    let count = source.len();
    key.number(request.limit.map_or(count, |limit| limit.min(count)) as i64);
    let key = key.finish().to_string();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = request.name.chars().map(plain).take(80).collect();
    format!("{name}-{}.safetensors", &key[..24])
}

fn describe(preprocess: Preprocess) -> String {
    let side = |side: Option<u32>| side.map_or("none".to_owned(), |side| side.to_string());
    format!("resize {}, crop {}", side(preprocess.resize), side(preprocess.crop))
}

fn write(
    source: &dyn ImageSource,
    request: &PrepareRequest<'_>,
    claim: &Claim,
) -> Result<(), DatasetError> {
    let count = request.limit.map_or(source.len(), |limit| limit.min(source.len()));
    if count == 0 {
        let path = PathBuf::from(request.name);
        return Err(DatasetError::Empty { path });
    }
    let index = |nth: usize| (nth as u128 * source.len() as u128 / count as u128) as usize;
    let load = |nth: usize| {
        let index = index(nth);
        let image = source.read(index)?;
        request.preprocess.apply(&image).map_err(|source_error| DatasetError::OutputTooLarge {
            id: source.id(index),
            source: source_error,
        })
    };
    let size = load(0).map(|image| (image.width, image.height))?;
    let bytes = size.0 as usize * size.1 as usize * 3;
    let description = Description {
        name: request.name,
        preprocess: &describe(request.preprocess),
        source: &source.fingerprint().to_string(),
        of: source.len(),
    };
    let labels = (0..count).map(|nth| source.label(index(nth))).collect();
    let ids = (0..count).map(|nth| source.id(index(nth)));
    let mut writer = PackWriter::begin(&claim.path, &claim.file, size, labels, ids, &description)?;

    let images = (CHUNK_BYTES / bytes).clamp(1, 4096).min(count);
    let mut chunk = vec![0; images * bytes];
    request.progress.begin(request.name, count as u64);
    let mut work = || {
        for start in (0..count).step_by(images) {
            let part = &mut chunk[..images.min(count - start) * bytes];
            let outcomes: Vec<Result<(), DatasetError>> = part
                .par_chunks_exact_mut(bytes)
                .enumerate()
                .map(|(offset, target)| {
                    let image = load(start + offset)?;
                    let got = (image.width, image.height);
                    if got != size {
                        let id = source.id(index(start + offset));
                        return Err(DatasetError::MixedSizes { id, expected: size, got });
                    }
                    target.copy_from_slice(&image.pixels);
                    request.progress.advance(1);
                    Ok(())
                })
                .collect();
            // The first in order, so that the same data always gives the same message.
            outcomes.into_iter().collect::<Result<(), _>>()?;
            writer.pixels(part)?;
        }
        Ok(())
    };
    let outcome = work();
    request.progress.end();
    outcome.and_then(|()| writer.finish())
}

/// The file that becomes the pack, held under a lock while it is written. The system drops the
/// lock of a process that dies, and the next one writes over what is left.
struct Claim {
    path: PathBuf,
    file: File,
}

impl Claim {
    /// None when the pack has appeared meanwhile.
    fn take(pack: &Path, progress: &dyn Progress) -> Result<Option<Self>, DatasetError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(pack.file_name().unwrap_or_default());
        name.push(".partial");
        let path = pack.with_file_name(name);
        let locked = || DatasetError::io("lock", &path);
        loop {
            let options = File::options().create(true).truncate(false).write(true).open(&path);
            let file = options.map_err(DatasetError::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress.begin("waiting for another process that prepares the same set", 0);
                    let waited = file.lock();
                    progress.end();
                    waited.map_err(locked())?;
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Self::unlocked(pack).map(Some);
                }
                Err(TryLockError::Error(error)) => return Err(locked()(error)),
            }
            // Whoever held the lock before may have renamed this very file to the pack, or removed
            // it: only the file that is still at the path may be written to.
            let is_at_path = is_at(&file, &path);
            if pack.is_file() {
                if is_at_path {
                    Self { path, file }.abandon();
                }
                return Ok(None);
            }
            if is_at_path {
                file.set_len(0).map_err(DatasetError::io("write", &path))?;
                return Ok(Some(Self { path, file }));
            }
        }
    }

    /// On a file system without locks each process writes a file of its own; the last one wins,
    /// with the same content.
    fn unlocked(pack: &Path) -> Result<Self, DatasetError> {
        let folder = pack.parent().unwrap_or(Path::new("."));
        let failed = DatasetError::io("create a file in", folder);
        let file = tempfile::Builder::new().prefix(".pack-").suffix(".partial").tempfile_in(folder);
        let (file, path) =
            file.and_then(|file| file.keep().map_err(|error| error.error)).map_err(failed)?;
        Ok(Self { path, file })
    }

    fn publish(self, pack: &Path) -> Result<(), DatasetError> {
        std::fs::rename(&self.path, pack).map_err(DatasetError::io("rename to", pack))?;
        // The name is on the disk only when the folder is.
        if let Some(folder) = pack.parent()
            && let Ok(folder) = File::open(folder)
        {
            drop(folder.sync_all());
        }
        Ok(())
    }

    fn abandon(self) {
        drop(std::fs::remove_file(&self.path));
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let open = file.try_clone().and_then(same_file::Handle::from_file);
    matches!((open, same_file::Handle::from_path(path)), (Ok(open), Ok(named)) if open == named)
}

#[cfg(test)]
mod tests;
