//! How the networks of the embedded benchmark are trained: `datasets/benchmarks/glyphs/train.toml`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oodbench_datasets::glyphs;
use oodbench_diffusion::net::NetConfig;
use oodbench_diffusion::schedule::ScheduleConfig;
use oodbench_diffusion::train::DiffusionRecipe;
use oodbench_nn::arch::Architecture;
use oodbench_nn::classifier::Normalisation;
use oodbench_nn::train::ClassifierRecipe;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) images: Images,
    pub(crate) classifier: ClassifierPart,
    pub(crate) diffusion: DiffusionPart,
}

/// How many digits are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Images {
    /// To train the classifier on.
    pub(crate) train: usize,
    /// To train the diffusion network on, the classifier's among them.
    pub(crate) diffusion: usize,
    /// To measure the classifier's accuracy on.
    pub(crate) val: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassifierPart {
    /// A CIFAR ResNet by its depth, such as `resnet20`.
    pub(crate) arch: String,
    pub(crate) mean: [f32; 3],
    pub(crate) std: [f32; 3],
    pub(crate) recipe: ClassifierRecipe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffusionPart {
    pub(crate) net: NetConfig,
    pub(crate) schedule: ScheduleConfig,
    pub(crate) recipe: DiffusionRecipe,
}

impl Recipe {
    /// The recipe of a file, or the one that the committed weights were made by.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        const COMMITTED: &str = include_str!("../../../../datasets/benchmarks/glyphs/train.toml");
        match path {
            None => Self::parse(COMMITTED).context("read the recipe of the embedded benchmark"),
            Some(path) => std::fs::read_to_string(path)
                .map_err(Into::into)
                .and_then(|text| Self::parse(&text))
                .with_context(|| format!("read recipe `{}`", path.display())),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let recipe: Self = toml::from_str(text)?;
        let (side, net) = (glyphs::IMAGE_SIDE as usize, &recipe.diffusion.net);
        ensure!(
            net.image_size() == side,
            "`diffusion.net.image_size` expected {side}, got {}",
            net.image_size()
        );
        ensure!(
            [0, glyphs::N_CLASSES].contains(&net.n_classes()),
            "`diffusion.net.num_classes` expected {} or 0, got {}",
            glyphs::N_CLASSES,
            net.n_classes()
        );
        recipe.classifier.architecture()?;
        Ok(recipe)
    }

    /// What the classifier depends on, hashed.
    pub(crate) fn classifier_hash(&self) -> Result<String> {
        hash(&(self.images.train, self.images.val, &self.classifier))
    }

    /// What the diffusion network depends on, hashed.
    pub(crate) fn diffusion_hash(&self) -> Result<String> {
        hash(&(self.images.diffusion, &self.diffusion))
    }
}

fn hash(inputs: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(&(glyphs::VERSION, inputs))?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

impl ClassifierPart {
    /// The architecture by its name.
    pub(crate) fn architecture(&self) -> Result<Architecture> {
        let depth = self.arch.strip_prefix("resnet").and_then(|depth| depth.parse::<usize>().ok());
        match depth {
            Some(depth) if depth >= 8 && depth % 6 == 2 => Ok(Architecture::ResNetCifar {
                blocks: (depth - 2) / 6,
                width: 16,
                projection: false,
            }),
            _ => bail!(
                "`classifier.arch` expected `resnet` and a depth of 6 n + 2, got `{}`",
                self.arch
            ),
        }
    }

    pub(crate) fn normalisation(&self) -> Normalisation {
        Normalisation { mean: self.mean, std: self.std }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_of_the_program_is_one() {
        let recipe = Recipe::load(None).unwrap();
        assert_eq!(recipe.classifier.architecture().unwrap().to_string(), recipe.classifier.arch);
        assert_ne!(recipe.classifier_hash().unwrap(), recipe.diffusion_hash().unwrap());
    }

    #[test]
    fn a_part_of_the_recipe_changes_its_own_hash_alone() {
        let recipe = Recipe::load(None).unwrap();
        let mut other = recipe.clone();
        other.diffusion.recipe.seed += 1;
        assert_eq!(recipe.classifier_hash().unwrap(), other.classifier_hash().unwrap());
        assert_ne!(recipe.diffusion_hash().unwrap(), other.diffusion_hash().unwrap());
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let mut recipe = Recipe::load(None).unwrap();
        recipe.classifier.arch = "resnet21".to_owned();
        let text = toml::to_string(&recipe).unwrap();
        let err = Recipe::parse(&text).unwrap_err().to_string();
        assert!(err.contains("got `resnet21`"), "{err}");
        let err = Recipe::parse(&text.replace("epochs", "epoch")).unwrap_err().to_string();
        assert!(err.contains("unknown field `epoch`"), "{err}");
    }
}
