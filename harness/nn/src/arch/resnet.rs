//! ResNets with four stages: torchvision's for 224x224 images, and the variant with a 3x3 stem
//! for 32x32 images that OpenOOD and DiffOOD use.
//!
//! He et al., "Deep Residual Learning for Image Recognition", 2016.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Network, Outputs, Taps};
use crate::kernels;
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

/// A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels.
struct Block {
    convs: Vec<(Conv2d, BatchNorm2d)>,
    shortcut: Option<(Conv2d, BatchNorm2d)>,
}

impl Block {
    fn new(
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
        Ok(Self { convs, shortcut })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut ys = xs.clone();
        for (i, (conv, norm)) in self.convs.iter().enumerate() {
            ys = conv.forward(&ys)?;
            ys = if i + 1 < self.convs.len() {
                norm.forward_relu(&ys, mode)?
            } else {
                norm.forward(&ys, mode)?
            };
        }
        let shortcut = match &self.shortcut {
            Some((conv, norm)) => norm.forward(&conv.forward(xs)?, mode)?,
            None => xs.clone(),
        };
        (ys + shortcut)?.relu()
    }
}

#[derive(Clone, Copy)]
struct Style {
    bottleneck: bool,
    /// What the checkpoint calls the projection.
    shortcut: &'static str,
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
    stages: Vec<Vec<Block>>,
    fc: Linear,
}

impl ResNet {
    pub(super) fn new_32(blocks: [usize; 4], n_classes: usize, vb: VarBuilder) -> Result<Self> {
        let style = Style { bottleneck: false, shortcut: "shortcut" };
        Self::new(blocks, n_classes, ConvShape::three(1), style, vb)
    }

    pub(super) fn new_224(
        blocks: [usize; 4],
        bottleneck: bool,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let stem = ConvShape { kernel: 7, stride: 2, padding: 3 };
        Self::new(blocks, n_classes, stem, Style { bottleneck, shortcut: "downsample" }, vb)
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
                layer.push(Block::new(channels, planes, stride, style, &vb.pp(i))?);
                channels = planes * style.expansion();
            }
            stages.push(layer);
        }
        Ok(Self {
            conv1: Conv2d::new(3, 64, stem, vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(64, vb.pp("bn1"))?,
            stem_pool: stem.kernel == 7,
            stages,
            fc: Linear::new(channels, n_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for ResNet {
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let mut xs = self.bn1.forward_relu(&self.conv1.forward(xs)?, mode)?;
        if self.stem_pool {
            xs = kernels::max_pool_3x3_stride_2(&xs)?;
        }
        taps.offer("stem", &xs);
        for (i, stage) in self.stages.iter().enumerate() {
            for block in stage {
                xs = block.forward(&xs, mode)?;
            }
            taps.offer(&format!("layer{}", i + 1), &xs);
        }
        let features = global_average_pool(&xs)?;
        Ok(Outputs { logits: self.fc.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.fc
    }

    fn layer_names(&self) -> Vec<String> {
        ["stem", "layer1", "layer2", "layer3", "layer4"].map(String::from).to_vec()
    }
}
