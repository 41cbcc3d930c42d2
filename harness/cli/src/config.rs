//! `--config FILE.toml`: the options of `bench` in a file. What is typed goes first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oodbench_engine::bench::{BatchSize, Setting};
use serde::Deserialize;

use crate::exit::{Failure, SETUP, USAGE};

/// The file. Keys are those of the command line, with `_` for `-`; a relative path starts at the
/// folder of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConfigFile {
    pub(crate) method: Vec<String>,
    pub(crate) benchmark: Option<String>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) classifier: Option<String>,
    pub(crate) features: Option<PathBuf>,
    pub(crate) device: Option<String>,
    pub(crate) precision: Option<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) limit: Option<usize>,
    pub(crate) aps: bool,
    pub(crate) out: Option<PathBuf>,
    pub(crate) threads: Option<usize>,
    pub(crate) batch_size: Option<BatchSize>,
    /// `[params.knn]` with `K = 50`.
    pub(crate) params: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
}

impl ConfigFile {
    /// Reads the file, if there is one.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fail = |message: String, code| Failure {
            message: format!("read configuration `{}`: {message}", path.display()),
            hint: None,
            code,
        };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string(), SETUP))?;
        let mut file: Self = toml::from_str(&text)
            .map_err(|error| fail(error.message().replace('\n', ", "), USAGE))?;
        let base = path.parent().unwrap_or(Path::new(""));
        for path in [&mut file.data, &mut file.features, &mut file.out].into_iter().flatten() {
            *path = base.join(&*path);
        }
        Ok(file)
    }

    /// The parameters of the file as settings.
    pub(crate) fn settings(&self) -> impl Iterator<Item = Setting> + '_ {
        self.params.iter().flat_map(|(detector, params)| {
            params.iter().map(|(parameter, value)| Setting {
                detector: detector.clone(),
                parameter: parameter.clone(),
                value: value.clone(),
            })
        })
    }
}
