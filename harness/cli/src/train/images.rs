//! The images that a network is trained on: prepared packs, which stay in their mapped files.

use std::path::{Path, PathBuf};

use oodbench_datasets::{
    DataDir, DatasetError, ImageSource, Pack, PrepareRequest, Preprocess, Role, SourceSpec,
    TrainTest, builtin, locate, prepare,
};
use oodbench_nn::examples::Examples;

use crate::environment as env;
use crate::exit::{Failure, SETUP};
use crate::observer::Talk;

/// An image set, ready to be trained on.
pub(super) struct Images {
    pack: Pack,
}

impl Images {
    /// What the pixels and labels are, as a hash.
    pub(super) fn content(&self) -> &str {
        self.pack.content_hash()
    }
}

impl Examples for Images {
    fn len(&self) -> usize {
        self.pack.len()
    }

    fn size(&self) -> (usize, usize) {
        (self.pack.height() as usize, self.pack.width() as usize)
    }

    fn pixels(&self, index: usize) -> &[u8] {
        self.pack.pixels(index..index + 1)
    }

    fn label(&self, index: usize) -> u32 {
        // No set for training has images without a class, but where classes do not matter.
        u32::try_from(self.pack.labels()[index]).unwrap_or(u32::MAX)
    }
}

/// Where images are, and where they are put when they are prepared.
pub(super) struct Places {
    pub(super) data: PathBuf,
    pub(super) cache: PathBuf,
}

impl Places {
    pub(super) fn new(data: &Path, cache: Option<&Path>) -> Result<Self, Failure> {
        Ok(Self { data: data.to_owned(), cache: env::cache(cache)? })
    }

    fn data_dir(&self) -> DataDir {
        DataDir::new(&self.data, self.cache.join("scratch"))
    }

    /// The images of a role of a benchmark; none where the benchmark has no such set. `side`
    /// replaces the benchmark's own size.
    pub(super) fn of_benchmark(
        &self,
        named: &str,
        role: Role,
        side: Option<usize>,
        talk: &Talk,
    ) -> Result<Option<Images>, Failure> {
        let (mut benchmark, _) = env::benchmark(named)?;
        // Only this set is looked for: a training needs no far images.
        benchmark.sets.retain(|set| set.role == role);
        let Some(located) = locate(&benchmark, &self.data_dir()).into_iter().next() else {
            return Ok(None);
        };
        let name = format!("{}-{role}-{}", benchmark.name, located.set.name);
        let preprocess = square(side)?.unwrap_or(located.preprocess);
        self.prepare(located.source?.as_ref(), &name, preprocess, talk).map(Some)
    }

    /// The training images of a name in a configuration: `CIFAR10`, `CIFAR100` or `SVHN` as their
    /// authors distribute them, or the training set of a benchmark that comes with the program.
    pub(super) fn of_dataset(
        &self,
        named: &str,
        side: Option<usize>,
        talk: &Talk,
    ) -> Result<Images, Failure> {
        let name = named.to_lowercase();
        let data = self.data_dir();
        let mut looked = Vec::new();
        for spec in official(&name) {
            match spec.open(&data) {
                Ok(source) => {
                    let name = format!("{name}-train");
                    let preprocess = square(side)?.unwrap_or_default();
                    return self.prepare(source.as_ref(), &name, preprocess, talk);
                }
                Err(error) if error.is_missing() => looked.extend_from_slice(error.looked()),
                Err(error) => return Err(error.into()),
            }
        }
        if builtin(&name).is_none() {
            return Err(nowhere(named, &looked));
        }
        match self.of_benchmark(&name, Role::IdTrain, side, talk) {
            Ok(Some(images)) => Ok(images),
            Ok(None) => Err(nowhere(named, &looked)),
            // Both layouts are missing: all places are named, not those of the last try alone.
            Err(failure) if failure.code == SETUP && !looked.is_empty() => {
                let mut all = nowhere(named, &looked);
                all.message = format!("{}; as a benchmark: {}", all.message, failure.message);
                Err(all)
            }
            Err(failure) => Err(failure),
        }
    }

    fn prepare(
        &self,
        source: &dyn ImageSource,
        name: &str,
        preprocess: Preprocess,
        talk: &Talk,
    ) -> Result<Images, Failure> {
        let cache_dir = &self.cache.join("packs");
        let request = PrepareRequest { name, preprocess, limit: None, cache_dir, progress: talk };
        Ok(Images { pack: prepare(source, &request)? })
    }
}

/// The shorter side becomes `side`, and a square is cut out.
fn square(side: Option<usize>) -> Result<Option<Preprocess>, DatasetError> {
    let Some(side) = side else { return Ok(None) };
    let side = u32::try_from(side).unwrap_or(u32::MAX);
    let preprocess = Preprocess { resize: Some(side), crop: Some(side) };
    preprocess.check().map_err(|(expected, got)| DatasetError::Benchmark {
        origin: "Dataset.image_size".to_owned(),
        expected,
        got,
    })?;
    Ok(Some(preprocess))
}

/// Where the files of a data set's authors may lie below `--data`.
fn official(name: &str) -> Vec<SourceSpec> {
    let places = |folder: &str| ["".to_owned(), folder.to_owned()];
    let (split, label) = (TrainTest::Train, None);
    match name {
        "cifar10" => places(name)
            .into_iter()
            .map(|path| SourceSpec::Cifar10 { path, split, label })
            .collect(),
        "cifar100" => places(name)
            .into_iter()
            .map(|path| SourceSpec::Cifar100 { path, split, label })
            .collect(),
        "svhn" => places(name)
            .into_iter()
            .map(|folder| Path::new(&folder).join("train_32x32.mat").display().to_string())
            .map(|path| SourceSpec::Svhn { path, label })
            .collect(),
        _ => Vec::new(),
    }
}

fn nowhere(named: &str, looked: &[PathBuf]) -> Failure {
    if looked.is_empty() {
        let message =
            format!("`Dataset.name` expected CIFAR10, CIFAR100, SVHN or glyphs, got `{named}`");
        let hint = "`--benchmark FILE.toml` trains on the training images of any benchmark file";
        return Failure::usage(message, Some(hint.to_owned()));
    }
    let places: Vec<String> = looked.iter().map(|path| format!("`{}`", path.display())).collect();
    Failure {
        message: format!("find {named}: nothing at {}", places.join(", ")),
        hint: Some("put the files as downloaded there, or name their folder with `--data`".into()),
        code: SETUP,
    }
}
