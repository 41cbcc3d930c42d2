//! Reading and writing the files of a run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::SCHEMA;
use crate::cell::{Failure, Record, SetRef};
use crate::error::RecordError;
use crate::manifest::{RunManifest, SetFile};
use crate::write::write_atomically;

/// A folder with a run in it.
#[derive(Clone, Debug)]
pub struct RunFolder {
    root: PathBuf,
}

/// What is known of a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum CellState {
    /// It was not run yet.
    Outstanding,
    /// It has scores, one for each image of its set.
    Done(Box<Record>, Vec<f32>),
    /// It was run, and failed.
    Failed(Box<Failure>),
}

impl RunFolder {
    /// The run in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn manifest_path(&self) -> PathBuf {
        self.root.join("run.json")
    }

    fn set_path(&self, set: &SetRef) -> PathBuf {
        self.root.join("sets").join(format!("{}-{}.json", set.role, set.name))
    }

    /// Where the record of a cell lies, or will.
    pub fn record_path(&self, key: &str) -> PathBuf {
        self.root.join("cells").join(format!("{key}.safetensors"))
    }

    fn failure_path(&self, key: &str) -> PathBuf {
        self.root.join("cells").join(format!("{key}.failure.json"))
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// No such file, or another schema.
    pub fn manifest(&self) -> Result<RunManifest, RecordError> {
        read_json(&self.manifest_path(), |manifest: &RunManifest| manifest.schema)
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn write_manifest(&self, manifest: &RunManifest) -> Result<(), RecordError> {
        write_json(&self.manifest_path(), manifest)
    }

    /// Reads what is known of the images of a set.
    ///
    /// # Errors
    /// No such file, another schema, or lists of different lengths.
    pub fn set(&self, set: &SetRef) -> Result<SetFile, RecordError> {
        let path = self.set_path(set);
        let file: SetFile = read_json(&path, |file: &SetFile| file.schema)?;
        let n = file.ids.len();
        if file.labels.len() != n || ![0, n].contains(&file.predictions.len()) {
            let got = format!("{} and {}", file.labels.len(), file.predictions.len());
            return Err(RecordError::malformed(&path, format!("{n} labels and predictions"), got));
        }
        Ok(file)
    }

    /// Writes what is known of the images of a set.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn write_set(&self, file: &SetFile) -> Result<(), RecordError> {
        write_json(&self.set_path(&file.set), file)
    }

    /// What is known of a cell.
    ///
    /// # Errors
    /// A file that is there and cannot be read, is of another schema, or belongs to another cell.
    pub fn cell(&self, key: &str) -> Result<CellState, RecordError> {
        let path = self.record_path(key);
        if path.exists() {
            let (record, scores) = read_record(&path)?;
            if record.key != key {
                return Err(RecordError::malformed(&path, format!("the cell `{key}`"), record.key));
            }
            return Ok(CellState::Done(Box::new(record), scores));
        }
        let path = self.failure_path(key);
        if path.exists() {
            let failure = read_json(&path, |failure: &Failure| failure.schema)?;
            return Ok(CellState::Failed(Box::new(failure)));
        }
        Ok(CellState::Outstanding)
    }

    /// Writes the scores of a cell; an earlier failure of it is forgotten.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn write_record(&self, record: &Record, scores: &[f32]) -> Result<(), RecordError> {
        let path = self.record_path(&record.key);
        let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![scores.len()], &bytes);
        let text = serde_json::to_string(record);
        let (Ok(view), Ok(text)) = (view, text) else {
            return Err(RecordError::malformed(&path, "scores that can be written", "others"));
        };
        let metadata = HashMap::from([("record".to_owned(), text)]);
        let bytes = safetensors::serialize([("scores", view)], Some(metadata))
            .map_err(|error| RecordError::malformed(&path, "a tensor", error.to_string()))?;
        write_atomically(&path, &bytes)?;
        self.forget_failure(&record.key)
    }

    /// Writes why a cell failed.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn write_failure(&self, failure: &Failure) -> Result<(), RecordError> {
        write_json(&self.failure_path(&failure.key), failure)
    }

    /// Removes record and failure of a cell.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn forget(&self, key: &str) -> Result<(), RecordError> {
        remove(&self.record_path(key))?;
        self.forget_failure(key)
    }

    fn forget_failure(&self, key: &str) -> Result<(), RecordError> {
        remove(&self.failure_path(key))
    }

    /// Removes what a killed run left half written.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn sweep(&self) -> Result<(), RecordError> {
        for folder in [self.root.clone(), self.root.join("sets"), self.root.join("cells")] {
            if !folder.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(&folder).map_err(RecordError::read(&folder))? {
                let entry = entry.map_err(RecordError::read(&folder))?;
                if entry.file_name().to_string_lossy().starts_with(".partial-") {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RecordError::write(path)(error))
        }
        _ => Ok(()),
    }
}

fn read_record(path: &Path) -> Result<(Record, Vec<f32>), RecordError> {
    let bytes = std::fs::read(path).map_err(RecordError::read(path))?;
    let bad = |expected: &str, got: String| RecordError::malformed(path, expected, got);
    let readable = "a whole safetensors file";
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|error| bad(readable, error.to_string()))?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| bad(readable, error.to_string()))?;
    let text = metadata.metadata().as_ref().and_then(|text| text.get("record"));
    let text = text.ok_or_else(|| bad("metadata `record`", "none".to_owned()))?;
    let record: Record =
        serde_json::from_str(text).map_err(|error| bad("a record", error.to_string()))?;
    check_schema(path, record.schema)?;
    let scores = tensors.tensor("scores").map_err(|error| bad("`scores`", error.to_string()))?;
    if scores.dtype() != Dtype::F32 || scores.shape() != [record.n_images] {
        let got = format!("{:?} {:?}", scores.dtype(), scores.shape());
        return Err(bad(&format!("`scores` of F32 [{}]", record.n_images), got));
    }
    let (words, _) = scores.data().as_chunks::<4>();
    Ok((record, words.iter().map(|&word| f32::from_le_bytes(word)).collect()))
}

fn check_schema(path: &Path, schema: u32) -> Result<(), RecordError> {
    if schema == SCHEMA {
        return Ok(());
    }
    Err(RecordError::malformed(path, format!("schema {SCHEMA}"), schema.to_string()))
}

fn read_json<T: DeserializeOwned>(
    path: &Path,
    schema: impl Fn(&T) -> u32,
) -> Result<T, RecordError> {
    let bytes = std::fs::read(path).map_err(RecordError::read(path))?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| RecordError::malformed(path, "JSON of a run", error.to_string()))?;
    check_schema(path, schema(&value))?;
    Ok(value)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| RecordError::malformed(path, "JSON of a run", error.to_string()))?;
    text.push(b'\n');
    write_atomically(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Cost, Outcome, PackId};

    fn record(key: &str) -> Record {
        Record {
            schema: SCHEMA,
            key: key.to_owned(),
            detector: "msp".to_owned(),
            params: Default::default(),
            set: SetRef { role: "near".to_owned(), name: "letters".to_owned() },
            seed: 0,
            n_images: 2,
            of_images: 2,
            cost: Cost {
                fit_wall_s: 0.0,
                score_wall_s: 0.5,
                peak_bytes: None,
                gpu: None,
                device: "cpu".to_owned(),
                threads: 1,
            },
            pack: PackId { name: "p".into(), version: "1".into(), blake3: "00".into() },
            version: "0".to_owned(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn scores_come_back_bit_for_bit_and_forget_the_failure() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        assert_eq!(run.cell("k").unwrap(), CellState::Outstanding);
        let failure = Failure {
            schema: SCHEMA,
            key: "k".into(),
            detector: "msp".into(),
            set: record("k").set,
            outcome: Outcome::Crashed { signal: "SIGSEGV".into() },
            message: "a signal".into(),
        };
        run.write_failure(&failure).unwrap();
        assert_eq!(run.cell("k").unwrap(), CellState::Failed(Box::new(failure)));
        let scores = [f32::MIN_POSITIVE, -1.5];
        run.write_record(&record("k"), &scores).unwrap();
        assert_eq!(run.cell("k").unwrap(), CellState::Done(Box::new(record("k")), scores.to_vec()));
        run.forget("k").unwrap();
        assert_eq!(run.cell("k").unwrap(), CellState::Outstanding);
    }

    #[test]
    fn a_truncated_record_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        run.write_record(&record("k"), &[1.0, 2.0]).unwrap();
        let path = run.record_path("k");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = run.cell("k").unwrap_err().to_string();
        assert!(error.contains("k.safetensors`: expected a whole safetensors file"), "{error}");
    }

    #[test]
    fn a_record_under_another_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        run.write_record(&record("k"), &[1.0, 2.0]).unwrap();
        std::fs::rename(run.record_path("k"), run.record_path("l")).unwrap();
        assert!(run.cell("l").unwrap_err().to_string().contains("the cell `l`, got k"));
    }

    #[test]
    fn what_a_killed_run_left_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        run.write_record(&record("k"), &[1.0, 2.0]).unwrap();
        let partial = folder.path().join("cells/.partial-x");
        std::fs::write(&partial, b"half").unwrap();
        run.sweep().unwrap();
        assert!(!partial.exists() && run.record_path("k").exists());
    }
}
