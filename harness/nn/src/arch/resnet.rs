//! ResNets with four stages: torchvision's for 224x224 images, and the variant with a 3x3 stem
//! for 32x32 images that OpenOOD and DiffOOD use.
//!
//! He et al., "Deep Residual Learning for Image Recognition", 2016.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Layer, Network, Outputs, Taps};
use crate::kernels;
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

/// A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels.
struct Block {
    /// Where it stands in a checkpoint.
    name: String,
    style: Style,
    convs: Vec<(Conv2d, BatchNorm2d)>,
    shortcut: Option<(Conv2d, BatchNorm2d)>,
}

impl Block {
    fn new(
        name: String,
        c_in: usize,
        planes: usize,
        stride: usize,
        style: Style,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let conv = |i: usize, c_in, c_out, shape| -> Result<(Conv2d, BatchNorm2d)> {
            Ok((
                Conv2d::new(c_in, c_out, shape, vb.pp(format!("conv{i}")))?,
                BatchNorm2d::new(c_out, vb.pp(format!("bn{i}")))?,
            ))
        };
        let c_out = planes * style.expansion();
        let convs = if style.bottleneck {
            vec![
                conv(1, c_in, planes, ConvShape::one(1))?,
                conv(2, planes, planes, ConvShape::three(stride))?,
                conv(3, planes, c_out, ConvShape::one(1))?,
            ]
        } else {
            vec![
                conv(1, c_in, planes, ConvShape::three(stride))?,
                conv(2, planes, planes, ConvShape::three(1))?,
            ]
        };
        let shortcut = if stride != 1 || c_in != c_out {
            let vb = vb.pp(style.shortcut);
            Some((
                Conv2d::new(c_in, c_out, ConvShape::one(stride), vb.pp("0"))?,
                BatchNorm2d::new(c_out, vb.pp("1"))?,
            ))
        } else {
            None
        };
        Ok(Self { name, style, convs, shortcut })
    }

    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let name = &self.name;
        let last = self.convs.len();
        let mut ys = xs.clone();
        for ((conv, norm), i) in self.convs.iter().zip(1..) {
            ys = conv.forward(&ys)?;
            taps.offer(format_args!("{name}.conv{i}"), &ys);
            if i < last {
                ys = norm.forward_relu(&ys, mode)?;
                taps.offer(format_args!("{name}.relu{i}"), &ys);
            } else {
                ys = norm.forward(&ys, mode)?;
            }
        }
        let shortcut = match &self.shortcut {
            Some((conv, norm)) => {
                let xs = conv.forward(xs)?;
                taps.offer(format_args!("{name}.{}.0", self.style.shortcut), &xs);
                norm.forward(&xs, mode)?
            }
            None => xs.clone(),
        };
        let ys = kernels::relu(&kernels::add(&ys, &shortcut)?)?;
        taps.offer(format_args!("{name}.relu{last}"), &ys);
        Ok(ys)
    }

    /// What [`Block::forward`] offers.
    fn layers(&self) -> Vec<Layer> {
        let Self { name, style, .. } = self;
        let last = self.convs.len();
        let relu = |i: usize| style.relu_modules.then(|| Layer::map(format!("{name}.relu{i}")));
        let mut layers = Vec::new();
        for i in 1..=last {
            layers.push(Layer::map(format!("{name}.conv{i}")));
            layers.extend(relu(i).filter(|_| i < last));
        }
        if self.shortcut.is_some() {
            layers.push(Layer::map(format!("{name}.{}.0", style.shortcut)));
        }
        layers.extend(relu(last));
        layers
    }
}

#[derive(Clone, Copy)]
struct Style {
    bottleneck: bool,
    /// What the checkpoint calls the projection.
    shortcut: &'static str,
    /// Whether its ReLUs are modules, which can be hooked, or functions.
    relu_modules: bool,
}

impl Style {
    fn expansion(self) -> usize {
        if self.bottleneck { 4 } else { 1 }
    }
}

pub(super) struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    stem_pool: bool,
    style: Style,
    stages: Vec<Vec<Block>>,
    fc: Linear,
}

impl ResNet {
    pub(super) fn new_32(blocks: [usize; 4], n_classes: usize, vb: VarBuilder) -> Result<Self> {
        let style = Style { bottleneck: false, shortcut: "shortcut", relu_modules: false };
        Self::new(blocks, n_classes, ConvShape::three(1), style, vb)
    }

    pub(super) fn new_224(
        blocks: [usize; 4],
        bottleneck: bool,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let stem = ConvShape { kernel: 7, stride: 2, padding: 3 };
        let style = Style { bottleneck, shortcut: "downsample", relu_modules: true };
        Self::new(blocks, n_classes, stem, style, vb)
    }

    fn new(
        blocks: [usize; 4],
        n_classes: usize,
        stem: ConvShape,
        style: Style,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut channels = 64;
        let mut stages = Vec::new();
        for (stage, (&n_blocks, planes)) in blocks.iter().zip([64, 128, 256, 512]).enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            let mut layer = Vec::new();
            for i in 0..n_blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("layer{}.{i}", stage + 1);
                layer.push(Block::new(name, channels, planes, stride, style, &vb.pp(i))?);
                channels = planes * style.expansion();
            }
            stages.push(layer);
        }
        Ok(Self {
            conv1: Conv2d::new(3, 64, stem, vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(64, vb.pp("bn1"))?,
            stem_pool: stem.kernel == 7,
            style,
            stages,
            fc: Linear::new(channels, n_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for ResNet {
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        if let Some(stage) = stage.checked_sub(1) {
            let mut blocks = self.stages[stage].iter();
            return blocks.try_fold(xs.clone(), |xs, block| block.forward(&xs, mode, taps));
        }
        let xs = self.conv1.forward(xs)?;
        taps.offer("conv1", &xs);
        let xs = self.bn1.forward_relu(&xs, mode)?;
        taps.offer("relu1", &xs);
        if self.stem_pool { kernels::max_pool_3x3_stride_2(&xs) } else { Ok(xs) }
    }

    fn finish(&self, xs: &Tensor, _mode: Mode, _taps: &mut Taps) -> Result<Outputs> {
        let features = global_average_pool(xs)?;
        Ok(Outputs { logits: self.fc.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.fc
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers = vec![Layer::map("conv1")];
        layers.extend(self.style.relu_modules.then(|| Layer::map("relu1")));
        layers.push(Layer::stage("stem"));
        for (stage, i) in self.stages.iter().zip(1..) {
            layers.extend(stage.iter().flat_map(Block::layers));
            layers.push(Layer::stage(format!("layer{i}")));
        }
        layers
    }
}
