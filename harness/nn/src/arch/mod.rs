//! The classifier architectures, one file each.
//!
//! An architecture is a [`Network`]: images in, logits and penultimate features out. Its
//! configuration is read off the shapes in a checkpoint, so that `wrn` or `densenet` stand for
//! every depth and width; [`Architecture`] is the list of families.

mod densenet;
mod pyramidnet;
mod resnet;
mod resnet_cifar;
mod wrn;

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::layers::{Linear, Mode};

/// What a classifier gives for a batch.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `[batch, n_classes]`
    pub logits: Tensor,
    /// Input of the last linear layer, `[batch, n_features]`.
    pub features: Tensor,
}

/// Activations that a caller asks a forward pass to keep, by name.
#[derive(Debug, Default)]
pub struct Taps {
    wanted: Vec<String>,
    taken: BTreeMap<String, Tensor>,
}

impl Taps {
    /// Keep nothing but the outputs.
    pub fn none() -> Self {
        Self::default()
    }

    /// Keep the activations with these names, which [`Network::layer_names`] lists.
    pub fn of(names: &[String]) -> Self {
        Self { wanted: names.to_vec(), taken: BTreeMap::new() }
    }

    pub(crate) fn offer(&mut self, name: &str, xs: &Tensor) {
        if self.wanted.iter().any(|wanted| wanted == name) {
            self.taken.insert(name.to_owned(), xs.clone());
        }
    }

    /// What was kept, by name.
    pub fn into_taken(self) -> BTreeMap<String, Tensor> {
        self.taken
    }
}

/// A classifier network.
pub trait Network: Send + Sync {
    /// Logits and features of normalised images.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]`
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs>;

    /// The last linear layer.
    fn head(&self) -> &Linear;

    /// The activations that [`Taps`] can keep, in order of execution.
    fn layer_names(&self) -> Vec<String>;
}

/// A family of architectures with all of its sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Architecture {
    /// ResNet with a 3x3 stem for 32x32 images, four stages of basic blocks (OpenOOD).
    ResNet32 { blocks: [usize; 4] },
    /// ResNet with a 7x7 stem for 224x224 images (torchvision).
    ResNet224 { blocks: [usize; 4], bottleneck: bool },
    /// He et al.'s CIFAR ResNet with `depth = 6 n + 2` and three stages.
    ResNetCifar { blocks: usize, width: usize, projection: bool },
    /// DenseNet for 32x32 images, three dense blocks.
    DenseNet { layers: usize, growth: usize, stem: usize, bottleneck: bool, halving: bool },
    /// PyramidNet, whose width grows by `alpha` from 16 over three stages for 32x32 images, or from
    /// 64 over four stages for 224x224 images; `blocks` ends with 0 in the former case.
    PyramidNet { blocks: [usize; 4], alpha: usize, bottleneck: bool },
    /// Wide ResNet with `depth = 6 n + 4`.
    Wrn { blocks: usize, widen: usize },
}

/// One line of help for each family: id, and what it is.
pub const FAMILIES: &[(&str, &str)] = &[
    ("resnet18_32x32", "ResNet-18 with a 3x3 stem, OpenOOD's network for CIFAR"),
    (
        "resnet20",
        "CIFAR ResNet of depth 20 (also resnet32, resnet44, resnet56, resnet110, resnet1202)",
    ),
    ("densenet", "DenseNet-BC for 32x32 images; depth and growth are read off the weights"),
    ("wrn", "Wide ResNet; depth and width are read off the weights"),
    (
        "pyramidnet164_a200",
        "PyramidNet for 32x32 images, DiffOOD's second discriminator; depth and alpha are read off \
         the weights",
    ),
    ("resnet18_224x224", "torchvision's ResNet-18"),
    ("resnet50", "torchvision's ResNet-50"),
];

impl Architecture {
    /// Builds the network on the variables of `vb`.
    pub fn build(&self, n_classes: usize, vb: VarBuilder) -> Result<Box<dyn Network>> {
        Ok(match *self {
            Self::ResNet32 { blocks } => Box::new(resnet::ResNet::new_32(blocks, n_classes, vb)?),
            Self::ResNet224 { blocks, bottleneck } => {
                Box::new(resnet::ResNet::new_224(blocks, bottleneck, n_classes, vb)?)
            }
            Self::ResNetCifar { blocks, width, projection } => {
                Box::new(resnet_cifar::ResNetCifar::new(blocks, width, projection, n_classes, vb)?)
            }
            Self::DenseNet { layers, growth, stem, bottleneck, halving } => Box::new(
                densenet::DenseNet::new(layers, growth, stem, bottleneck, halving, n_classes, vb)?,
            ),
            Self::PyramidNet { blocks, alpha, bottleneck } => {
                Box::new(pyramidnet::PyramidNet::new(blocks, alpha, bottleneck, n_classes, vb)?)
            }
            Self::Wrn { blocks, widen } => {
                Box::new(wrn::WideResNet::new(blocks, widen, n_classes, vb)?)
            }
        })
    }

    /// The PyramidNet for 32x32 images with a name such as `pyramidnet164_a200`, or
    /// `pyramidnet110_a48_basic` for one without bottlenecks.
    pub fn pyramidnet(name: &str) -> Option<Self> {
        pyramidnet::named(name)
    }

    /// The key prefix of the last linear layer.
    pub fn head_key(&self) -> &'static str {
        if matches!(self, Self::ResNetCifar { .. }) { "linear" } else { "fc" }
    }

    /// Whether this is what a user means by `name`.
    pub fn is_named(&self, name: &str) -> bool {
        let family = match self {
            Self::DenseNet { .. } => "densenet",
            Self::PyramidNet { .. } => "pyramidnet",
            Self::Wrn { .. } => "wrn",
            _ => return self.to_string() == name,
        };
        name == family || self.to_string() == name
    }

    /// Reads the architecture off the names and shapes of a state dict.
    pub fn infer(shapes: &BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let has = |key: &str| shapes.contains_key(key);
        let stem = shapes.get("conv1.weight")?;
        let &[stem_out, 3, stem_kernel, _] = stem.as_slice() else { return None };
        let count = |prefix: &str, suffix: &str| {
            (0..).take_while(|i| has(&format!("{prefix}.{i}.{suffix}"))).count()
        };
        if has("block1.layer.0.conv1.weight") {
            let layers = count("block1.layer", "conv1.weight");
            if has("trans1.conv1.weight") {
                let bottleneck = has("block1.layer.0.conv2.weight");
                let last = if bottleneck { "conv2" } else { "conv1" };
                let growth = shapes.get(&format!("block1.layer.0.{last}.weight"))?[0];
                let transition = shapes.get("trans1.conv1.weight")?;
                let halving = transition[0] != transition[1];
                return Some(Self::DenseNet {
                    layers,
                    growth,
                    stem: stem_out,
                    bottleneck,
                    halving,
                });
            }
            let width = shapes.get("block1.layer.0.conv1.weight")?[0];
            return Some(Self::Wrn { blocks: layers, widen: width / 16 });
        }
        let blocks = [1, 2, 3, 4].map(|stage| count(&format!("layer{stage}"), "conv1.weight"));
        if blocks[..3].contains(&0) {
            return None;
        }
        if has("bn_final.weight") {
            let bottleneck = has("layer1.0.conv3.weight");
            let last = shapes.get("bn_final.weight")?.first()?;
            let alpha = (last / if bottleneck { 4 } else { 1 }).checked_sub(stem_out)?;
            return Some(Self::PyramidNet { blocks, alpha, bottleneck });
        }
        if blocks[3] == 0 {
            let projection = has("layer2.0.shortcut.0.weight");
            return Some(Self::ResNetCifar { blocks: blocks[0], width: stem_out, projection });
        }
        let bottleneck = has("layer1.0.conv3.weight");
        match stem_kernel {
            7 => Some(Self::ResNet224 { blocks, bottleneck }),
            3 if !bottleneck => Some(Self::ResNet32 { blocks }),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ResNet32 { blocks } => {
                write!(f, "resnet{}_32x32", 2 * blocks.iter().sum::<usize>() + 2)
            }
            Self::ResNet224 { blocks, bottleneck: false } => {
                write!(f, "resnet{}_224x224", 2 * blocks.iter().sum::<usize>() + 2)
            }
            Self::ResNet224 { blocks, bottleneck: true } => {
                write!(f, "resnet{}", 3 * blocks.iter().sum::<usize>() + 2)
            }
            Self::ResNetCifar { blocks, width, .. } => {
                write!(f, "resnet{}", 6 * blocks + 2)?;
                if width == 16 { Ok(()) } else { write!(f, "_width{width}") }
            }
            Self::DenseNet { layers, growth, bottleneck, .. } => {
                let convs = if bottleneck { 2 * layers } else { layers };
                write!(f, "densenet{}-{growth}", 3 * convs + 4)
            }
            Self::PyramidNet { blocks, alpha, bottleneck } => {
                let depth = if bottleneck { 3 } else { 2 } * blocks.iter().sum::<usize>() + 2;
                write!(f, "pyramidnet{depth}_a{alpha}")?;
                f.write_str(if bottleneck { "" } else { "_basic" })?;
                f.write_str(if blocks[3] > 0 { "_224x224" } else { "" })
            }
            Self::Wrn { blocks, widen } => write!(f, "wrn{}-{widen}", 6 * blocks + 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula;
    use crate::kernels::testing::random;

    #[test]
    fn every_family_runs_and_its_layers_can_be_tapped() {
        let cases = [
            (Architecture::ResNet32 { blocks: [2, 2, 2, 2] }, "resnet18_32x32", 32, 512),
            (
                Architecture::ResNetCifar { blocks: 3, width: 16, projection: false },
                "resnet20",
                32,
                64,
            ),
            (Architecture::Wrn { blocks: 1, widen: 2 }, "wrn10-2", 32, 128),
            (
                Architecture::DenseNet {
                    layers: 2,
                    growth: 4,
                    stem: 8,
                    bottleneck: true,
                    halving: true,
                },
                "densenet16-4",
                32,
                16,
            ),
            (
                Architecture::PyramidNet { blocks: [1, 1, 1, 0], alpha: 12, bottleneck: false },
                "pyramidnet8_a12_basic",
                32,
                28,
            ),
            (
                Architecture::ResNet224 { blocks: [3, 4, 6, 3], bottleneck: true },
                "resnet50",
                64,
                2048,
            ),
        ];
        for (arch, name, size, features) in cases {
            assert_eq!(arch.to_string(), name);
            let network = arch.build(7, formula::var_builder(Default::default())).unwrap();
            let mut taps = Taps::of(&network.layer_names());
            let xs = random("xs", &[2, 3, size, size]);
            let outputs = network.forward(&xs, Mode::Eval, &mut taps).unwrap();
            assert_eq!(outputs.logits.dims(), [2, 7], "{name}");
            assert_eq!(outputs.features.dims(), [2, features], "{name}");
            let mut taken: Vec<String> = taps.into_taken().into_keys().collect();
            let mut names = network.layer_names();
            taken.sort();
            names.sort();
            assert_eq!(taken, names);
        }
    }
}
