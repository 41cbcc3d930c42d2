//! What a user says about a classifier: `arch:file`, a file of weights, or a TOML file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ClassifierError, Normalisation};

/// What a user says about a classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierSpec {
    /// Name of the architecture; read off the weights where it is not stated.
    pub arch: Option<String>,
    /// The file.
    pub weights: PathBuf,
    /// Number of classes, if stated; the benchmark's otherwise.
    pub classes: Option<usize>,
    /// Normalisation that the file was trained with, if stated.
    pub normalisation: Option<Normalisation>,
    /// Groups of classes with a logit for "none of these" before each, in the order of the logits.
    pub groups: Option<Vec<Vec<usize>>>,
}

/// The table of a classifier's TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecFile {
    arch: Option<String>,
    weights: PathBuf,
    classes: Option<usize>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    groups: Option<Vec<Vec<usize>>>,
}

impl ClassifierSpec {
    /// Reads `arch:file`, a plain weights file, or a TOML file with `arch`, `weights`, `mean`, `std`.
    ///
    /// # Errors
    /// A TOML file that cannot be read.
    pub fn parse(text: &str) -> Result<Self, ClassifierError> {
        if text.ends_with(".toml") {
            return Self::from_toml(Path::new(text));
        }
        // A path may hold a colon; an architecture holds no slash.
        let (arch, weights) = match text.split_once(':') {
            Some((arch, file)) if !arch.contains(['/', '\\', '.']) && !arch.is_empty() => {
                (Some(arch.to_owned()), file)
            }
            _ => (None, text),
        };
        let weights = weights.into();
        Ok(Self { arch, weights, classes: None, normalisation: None, groups: None })
    }

    fn from_toml(path: &Path) -> Result<Self, ClassifierError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClassifierError::ReadSpec { path: path.to_owned(), source })?;
        let file: SpecFile = toml::from_str(&text).map_err(|source| {
            ClassifierError::ParseSpec { path: path.to_owned(), source: Box::new(source) }
        })?;
        let bad = |message: &str| ClassifierError::BadSpec {
            path: path.to_owned(),
            message: message.to_owned(),
        };
        let normalisation = match (file.mean, file.std) {
            (Some(mean), Some(std)) if std.iter().all(|s| *s > 0.0 && s.is_finite()) => {
                Some(Normalisation { mean, std })
            }
            (Some(_), Some(_)) => return Err(bad("`std` expected positive numbers")),
            (None, None) => None,
            _ => return Err(bad("`mean` and `std` expected together, got one of them")),
        };
        if file.classes == Some(0) {
            return Err(bad("`classes` expected at least 1, got 0"));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let weights = folder.join(file.weights);
        let SpecFile { arch, classes, groups, .. } = file;
        Ok(Self { arch, weights, classes, normalisation, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_a_file_with_or_without_an_architecture() {
        let spec = |text| ClassifierSpec::parse(text).unwrap();
        assert_eq!(spec("wrn:a/b.pt").arch.as_deref(), Some("wrn"));
        assert_eq!(spec("wrn:a/b.pt").weights, Path::new("a/b.pt"));
        assert_eq!(spec("../a:b.pt").arch, None);
        assert_eq!(spec("b.th").weights, Path::new("b.th"));
    }
}
