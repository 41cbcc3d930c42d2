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

    /// Keep the activations with these names, which [`Network::layers`] lists.
    pub fn of(names: &[String]) -> Self {
        Self { wanted: names.to_vec(), taken: BTreeMap::new() }
    }

    pub(crate) fn offer(&mut self, name: impl fmt::Display, xs: &Tensor) {
        // Most passes keep nothing, and need not write names.
        if self.wanted.is_empty() {
            return;
        }
        let name = name.to_string();
        if self.wanted.contains(&name) {
            self.taken.insert(name, xs.clone());
        }
    }

    /// Whether there is nothing left to keep.
    fn are_full(&self) -> bool {
        self.wanted.iter().all(|name| self.taken.contains_key(name))
    }

    /// What was kept, by name.
    pub fn into_taken(self) -> BTreeMap<String, Tensor> {
        self.taken
    }
}

/// What a layer that can be tapped is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerKind {
    /// The output of a stage, from which the network can go on: `stem`, then those behind it.
    Stage,
    /// What a hook on a convolution, or on a ReLU module where the PyTorch network has such, sees.
    /// Convolutions are called as in a checkpoint's keys; a ReLU has the name of the normalisation
    /// in front of it with `relu` in place of `bn`.
    Map,
    /// What a further head gives, `[batch, columns]`.
    Head,
}

/// A layer that can be tapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    pub name: String,
    pub kind: LayerKind,
}

impl Layer {
    pub(crate) fn stage(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: LayerKind::Stage }
    }

    pub(crate) fn map(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: LayerKind::Map }
    }
}

/// A classifier network: stages one after the other, and what makes features and logits of the last
/// one's output.
pub trait Network: Send + Sync {
    /// The activations that [`Taps`] can keep, in order of execution. The name of a stage stands
    /// behind those of what is inside it.
    fn layers(&self) -> Vec<Layer>;

    /// Runs one stage, counted from 0 as in [`Network::layers`]. The first one takes normalised
    /// images, the others what the stage before them gives. The caller offers the output itself.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]` for the first stage, else `[batch, channels, h, w]`
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor>;

    /// Logits and features of the last stage's output.
    fn finish(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs>;

    /// The last linear layer.
    fn head(&self) -> &Linear;

    /// The names of the stages.
    fn stage_names(&self) -> Vec<String> {
        let stages = self.layers().into_iter().filter(|layer| layer.kind == LayerKind::Stage);
        stages.map(|layer| layer.name).collect()
    }

    /// Logits and features of normalised images.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]`
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        self.forward_behind(None, xs, mode, taps)
    }

    /// Logits and features of the output of a stage, counted from 0; of normalised images where
    /// there is none.
    fn forward_behind(
        &self,
        stage: Option<usize>,
        xs: &Tensor,
        mode: Mode,
        taps: &mut Taps,
    ) -> Result<Outputs> {
        let first = stage.map_or(0, |stage| stage + 1);
        let mut xs = xs.clone();
        for (stage, name) in self.stage_names().iter().enumerate().skip(first) {
            xs = self.run_stage(stage, &xs, mode, taps)?;
            taps.offer(name, &xs);
        }
        self.finish(&xs, mode, taps)
    }

    /// Keeps activations of normalised images. What comes behind the last stage that `taps` asks
    /// for does not run.
    ///
    /// # Shapes
    /// `xs`: `[batch, 3, height, width]`
    fn fill(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<()> {
        let mut xs = xs.clone();
        for (stage, name) in self.stage_names().iter().enumerate() {
            if taps.are_full() {
                return Ok(());
            }
            xs = self.run_stage(stage, &xs, mode, taps)?;
            taps.offer(name, &xs);
        }
        if !taps.are_full() {
            self.finish(&xs, mode, taps)?;
        }
        Ok(())
    }
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
            let mut names: Vec<String> =
                network.layers().into_iter().map(|layer| layer.name).collect();
            let mut taps = Taps::of(&names);
            let xs = random("xs", &[2, 3, size, size]);
            let outputs = network.forward(&xs, Mode::Eval, &mut taps).unwrap();
            assert_eq!(outputs.logits.dims(), [2, 7], "{name}");
            assert_eq!(outputs.features.dims(), [2, features], "{name}");
            let taken = taps.into_taken();
            names.sort();
            assert!(taken.keys().eq(&names), "{name}: {names:?} {:?}", taken.keys());
            // The network goes on from the output of each stage to the same outputs.
            for (stage, at) in network.stage_names().iter().enumerate() {
                let mut none = Taps::none();
                let from = network.forward_behind(Some(stage), &taken[at], Mode::Eval, &mut none);
                let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let from = from.unwrap();
                assert_eq!(values(&from.logits), values(&outputs.logits), "{name} {at}");
                assert_eq!(values(&from.features), values(&outputs.features), "{name} {at}");
            }
        }
    }

    #[test]
    fn layers_are_listed_as_hooks_would_see_them() {
        let layers = |arch: Architecture| {
            let network = arch.build(2, formula::var_builder(Default::default())).unwrap();
            network.layers()
        };
        let names = |arch| -> Vec<String> {
            layers(arch).into_iter().map(|layer| layer.name).collect::<Vec<_>>()
        };
        let arch = Architecture::ResNetCifar { blocks: 1, width: 4, projection: true };
        let expected = [
            "conv1",
            "stem",
            "layer1.0.conv1",
            "layer1.0.conv2",
            "layer1",
            "layer2.0.conv1",
            "layer2.0.conv2",
            "layer2.0.shortcut.0",
            "layer2",
            "layer3.0.conv1",
            "layer3.0.conv2",
            "layer3.0.shortcut.0",
            "layer3",
        ];
        assert_eq!(names(arch), expected);
        // Twenty convolutions and five stages; its ReLUs are functions, which nothing hooks.
        let arch = Architecture::ResNet32 { blocks: [2, 2, 2, 2] };
        let count = |kind| layers(arch).iter().filter(|layer| layer.kind == kind).count();
        assert_eq!((count(LayerKind::Map), count(LayerKind::Stage)), (20, 5));
        let arch = Architecture::ResNet224 { blocks: [1; 4], bottleneck: true };
        let expected = [
            "conv1",
            "relu1",
            "stem",
            "layer1.0.conv1",
            "layer1.0.relu1",
            "layer1.0.conv2",
            "layer1.0.relu2",
            "layer1.0.conv3",
            "layer1.0.downsample.0",
            "layer1.0.relu3",
            "layer1",
        ];
        assert_eq!(names(arch)[..11], expected);
        let arch = Architecture::DenseNet {
            layers: 1,
            growth: 2,
            stem: 4,
            bottleneck: true,
            halving: true,
        };
        let expected = [
            "conv1",
            "stem",
            "block1.layer.0.relu1",
            "block1.layer.0.conv1",
            "block1.layer.0.relu2",
            "block1.layer.0.conv2",
            "trans1.relu1",
            "trans1.conv1",
            "block1",
        ];
        assert_eq!(names(arch)[..9], expected);
        assert_eq!(names(arch).last().unwrap(), "bn1");
        let expected = [
            "conv1",
            "stem",
            "block1.layer.0.relu1",
            "block1.layer.0.conv1",
            "block1.layer.0.relu2",
            "block1.layer.0.conv2",
            "block1.layer.0.convShortcut",
            "block1",
        ];
        assert_eq!(names(Architecture::Wrn { blocks: 1, widen: 2 })[..8], expected);
    }
}
