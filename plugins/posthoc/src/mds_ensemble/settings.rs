//! What is asked of each layer: readings, reductions and weights, as the parameters list them.

use oodbench_sdk::prelude::*;

use super::reading::Reading;

/// What is left of what was read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", try_from = "String", into = "String")]
pub enum Reduction {
    /// All of it.
    None,
    /// So many principal components, at least 1.
    Pca(usize),
}

impl TryFrom<String> for Reduction {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let components = |text: &str| text.parse().ok().filter(|k| *k > 0);
        match text.strip_prefix("pca_").map(components) {
            None if text == "none" => Ok(Self::None),
            Some(Some(k)) => Ok(Self::Pca(k)),
            _ => Err(format!("`reduce` expected `none` or `pca_K` with K from 1, got `{text}`")),
        }
    }
}

impl From<Reduction> for String {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => "none".to_owned(),
            Reduction::Pca(k) => format!("pca_{k}"),
        }
    }
}

/// Parameters of [`MdsEnsemble`](super::MdsEnsemble).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    pub(super) noise: f64,
    pub(super) layers: Vec<String>,
    types: Vec<Reading>,
    reduce: Vec<Reduction>,
    pub(super) alpha: Vec<f64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            noise: 0.0014,
            layers: vec!["stem".to_owned()],
            types: vec![Reading::Mean],
            reduce: vec![Reduction::None],
            alpha: vec![1.0],
        }
    }
}

/// The entry of each of `n` layers in a list with one for each or one for all.
pub(super) fn spread<T: Clone>(list: &[T], n: usize, name: &str) -> Result<Vec<T>> {
    match list {
        [one] => Ok(vec![one.clone(); n]),
        list if list.len() == n => Ok(list.to_vec()),
        list => {
            let expected = format!("a list of one entry, or of one for each of {n} layers");
            Err(Error::parameter(name, &expected, format!("{} entries", list.len())))
        }
    }
}

/// What is asked of one layer.
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) reading: Reading,
    pub(super) reduction: Reduction,
}

impl Params {
    /// The settings of each of these layers.
    pub(super) fn by_layer(&self, names: Vec<String>) -> Result<Vec<Settings>> {
        let n = names.len();
        if !self.alpha.is_empty() {
            spread(&self.alpha, n, "alpha")?;
        }
        let readings = spread(&self.types, n, "types")?;
        let reductions = spread(&self.reduce, n, "reduce")?;
        let layers = names.into_iter().zip(readings).zip(reductions);
        Ok(layers
            .map(|((name, reading), reduction)| Settings { name, reading, reduction })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_have_names() {
        let parse = |text: &str| Reduction::try_from(text.to_owned());
        assert_eq!(parse("none"), Ok(Reduction::None));
        assert_eq!(parse("pca_50"), Ok(Reduction::Pca(50)));
        for text in ["pca_0", "pca_", "pca", "lda", "pca_-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_entry_stands_for_every_layer() {
        assert_eq!(spread(&[1.0], 3, "alpha").unwrap(), [1.0; 3]);
        assert_eq!(spread(&[1.0, 2.0], 2, "alpha").unwrap(), [1.0, 2.0]);
        assert!(spread(&[1.0, 2.0], 3, "alpha").is_err());
        assert!(spread::<f64>(&[], 2, "alpha").is_err());
    }
}
