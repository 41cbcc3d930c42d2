//! The folder of a training: which files are in it, and who may write there.
//!
//! | file | what |
//! | --- | --- |
//! | `train.safetensors` | everything that `--restart` needs |
//! | `info.txt` | when it began, went on and ended |
//! | `tensorboard/` | event files |
//! | `train.lock` | locked while a process trains here |
//!
//! The others depend on what is trained.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oodbench_nn::train::TrainError;

use super::RunArgs;
use crate::exit::{Failure, SETUP, WRITE_FAILED};

/// A folder that this process trains in, and no other one.
pub(super) struct TrainFolder {
    root: PathBuf,
    /// The lock lasts as long as the file is open.
    _lock: File,
}

/// How a training begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    New,
    /// From the checkpoint of the folder.
    GoOn,
    /// From the checkpoint of another program.
    From(PathBuf),
}

impl Start {
    /// What `--restart` and `--restart FILE` ask for.
    pub(super) fn typed(restart: Option<&Option<PathBuf>>) -> Self {
        match restart {
            None => Self::New,
            Some(None) => Self::GoOn,
            Some(Some(path)) => Self::From(path.clone()),
        }
    }
}

impl TrainFolder {
    /// Opens the folder, unless it holds what must not be written over.
    pub(super) fn open(root: &Path, start: &Start) -> Result<Self, Failure> {
        let checkpoint = checkpoint(root);
        match start {
            Start::New | Start::From(_) if checkpoint.exists() => {
                let message = format!(
                    "begin a training in `{}`: expected no checkpoint there, got `train.safetensors`",
                    root.display()
                );
                let hint = "`--restart` goes on with it; `--out DIR` begins another one elsewhere";
                return Err(Failure::usage(message, Some(hint.to_owned())));
            }
            Start::GoOn if !checkpoint.exists() => {
                return Err(Failure {
                    message: format!(
                        "continue from `{}`: there is no such file",
                        checkpoint.display()
                    ),
                    hint: Some(
                        "leave out `--restart` to begin, or name the folder with `--out`".into(),
                    ),
                    code: SETUP,
                });
            }
            _ => {}
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| write_failed(&path, &error)
        };
        std::fs::create_dir_all(root).map_err(failed(root))?;
        let path = root.join("train.lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            // Some network file systems have no locks; then nobody watches.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
            Err(TryLockError::WouldBlock) => {
                return Err(Failure {
                    message: format!("train in `{}`: another process trains there", root.display()),
                    hint: Some("wait for it, or name another folder with `--out`".to_owned()),
                    code: SETUP,
                });
            }
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// A file of the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn checkpoint(&self) -> PathBuf {
        checkpoint(&self.root)
    }

    /// Adds a line to `info.txt`, with the time before it.
    pub(super) fn note(&self, line: &str) -> Result<(), Failure> {
        let path = self.path("info.txt");
        let write = || {
            let mut file = File::options().create(true).append(true).open(&path)?;
            file.write_all(format!("{} {line}\n", utc(SystemTime::now())).as_bytes())
        };
        write().map_err(|error| write_failed(&path, &error))
    }

    /// Notes how a training begins or goes on.
    pub(super) fn note_beginning(
        &self,
        step: u64,
        how: &str,
        config: &Path,
        args: &RunArgs,
    ) -> Result<(), Failure> {
        let (config, version) = (config.display(), env!("CARGO_PKG_VERSION"));
        let RunArgs { seed, device, precision, .. } = args;
        self.note(&format!(
            "step {step}: {how}, {config}, seed {seed}, {device}, {precision}, oodbench {version}"
        ))
    }

    /// A training that cannot go on: what was saved last is kept.
    pub(super) fn broken(&self, error: TrainError) -> Result<Failure, Failure> {
        let mut failure = Failure::from(error);
        self.note(&format!("failed: {}", failure.message))?;
        failure.message.push_str(&format!("; `{}` is as it was", self.checkpoint().display()));
        Ok(failure)
    }

    /// Writes a small file as a whole.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path(name);
        oodbench_record::write_atomically(&path, bytes).map_err(|error| Failure {
            message: oodbench_engine::text::chain(&error),
            hint: None,
            code: WRITE_FAILED,
        })
    }
}

/// Where the folder of a training has its checkpoint.
pub(super) fn checkpoint(root: &Path) -> PathBuf {
    root.join("train.safetensors")
}

pub(super) fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("write `{}`: {error}", path.display());
    Failure { message, hint: None, code: WRITE_FAILED }
}

/// `2026-01-31T12:00:00Z`
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in cycles of 400: the leap day is the last of such a year.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * cycle + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_checkpoint_is_never_written_over_and_one_process_trains_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let err = TrainFolder::open(&root, &Start::GoOn).err().unwrap();
        assert!(err.message.contains("there is no such file"), "{err:?}");
        let first = TrainFolder::open(&root, &Start::New).unwrap();
        let err = TrainFolder::open(&root, &Start::New).err().unwrap();
        assert!(err.message.contains("another process"), "{err:?}");
        std::fs::write(first.checkpoint(), b"x").unwrap();
        drop(first);
        let err = TrainFolder::open(&root, &Start::New).err().unwrap();
        assert!(err.hint.unwrap().contains("--restart"));
        assert!(TrainFolder::open(&root, &Start::From("a.ckpt".into())).is_err());
        TrainFolder::open(&root, &Start::GoOn).unwrap().note("goes on").unwrap();
        let text = std::fs::read_to_string(root.join("info.txt")).unwrap();
        assert!(text.ends_with("Z goes on\n"), "{text}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @N`.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
