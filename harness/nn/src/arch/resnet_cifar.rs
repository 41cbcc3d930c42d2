//! He et al.'s ResNet for CIFAR: depth `6 n + 2`, three stages of 16, 32 and 64 channels.
//!
//! The shortcut between stages is the parameter-free one of the paper (option A: every second
//! pixel, channels padded with zeros on both sides) or a 1x1 projection (option B). Keys as in
//! the widely used CIFAR-10 checkpoints of akamaster/pytorch_resnet_cifar10.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Network, Outputs, Taps};
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

enum Shortcut {
    Identity,
    /// Option A: zero channels added before and after.
    Padded {
        before: usize,
        after: usize,
    },
    /// Option B.
    Projected(Box<Conv2d>, Box<BatchNorm2d>),
}

struct Block {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    shortcut: Shortcut,
}

impl Block {
    fn new(
        c_in: usize,
        c_out: usize,
        stride: usize,
        projection: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let shortcut = if stride == 1 && c_in == c_out {
            Shortcut::Identity
        } else if projection {
            let vb = vb.pp("shortcut");
            Shortcut::Projected(
                Box::new(Conv2d::new(c_in, c_out, ConvShape::one(stride), vb.pp("0"))?),
                Box::new(BatchNorm2d::new(c_out, vb.pp("1"))?),
            )
        } else {
            let before = c_out / 4;
            Shortcut::Padded { before, after: c_out - c_in - before }
        };
        Ok(Self {
            conv1: Conv2d::new(c_in, c_out, ConvShape::three(stride), vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(c_out, vb.pp("bn1"))?,
            conv2: Conv2d::new(c_out, c_out, ConvShape::three(1), vb.pp("conv2"))?,
            bn2: BatchNorm2d::new(c_out, vb.pp("bn2"))?,
            shortcut,
        })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let ys = self.bn1.forward_relu(&self.conv1.forward(xs)?, mode)?;
        let ys = self.bn2.forward(&self.conv2.forward(&ys)?, mode)?;
        let shortcut = match &self.shortcut {
            Shortcut::Identity => xs.clone(),
            Shortcut::Padded { before, after } => {
                every_second_pixel(xs)?.pad_with_zeros(1, *before, *after)?
            }
            Shortcut::Projected(conv, norm) => norm.forward(&conv.forward(xs)?, mode)?,
        };
        (ys + shortcut)?.relu()
    }
}

/// `xs[:, :, ::2, ::2]`
fn every_second_pixel(xs: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    if height % 2 == 1 || width % 2 == 1 {
        candle_core::bail!("images expected sides divisible by 4, got {height}x{width} inside");
    }
    xs.reshape((batch, channels, height / 2, 2, width / 2, 2))?
        .narrow(3, 0, 1)?
        .narrow(5, 0, 1)?
        .contiguous()?
        .reshape((batch, channels, height / 2, width / 2))
}

pub(super) struct ResNetCifar {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    stages: Vec<Vec<Block>>,
    linear: Linear,
}

impl ResNetCifar {
    pub(super) fn new(
        blocks: usize,
        width: usize,
        projection: bool,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut channels = width;
        let mut stages = Vec::new();
        for stage in 0..3 {
            let vb = vb.pp(format!("layer{}", stage + 1));
            let c_out = width << stage;
            let mut layer = Vec::new();
            for i in 0..blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                layer.push(Block::new(channels, c_out, stride, projection, &vb.pp(i))?);
                channels = c_out;
            }
            stages.push(layer);
        }
        Ok(Self {
            conv1: Conv2d::new(3, width, ConvShape::three(1), vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(width, vb.pp("bn1"))?,
            stages,
            linear: Linear::new(channels, n_classes, vb.pp("linear"))?,
        })
    }
}

impl Network for ResNetCifar {
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let mut xs = self.bn1.forward_relu(&self.conv1.forward(xs)?, mode)?;
        taps.offer("stem", &xs);
        for (i, stage) in self.stages.iter().enumerate() {
            for block in stage {
                xs = block.forward(&xs, mode)?;
            }
            taps.offer(&format!("layer{}", i + 1), &xs);
        }
        let features = global_average_pool(&xs)?;
        Ok(Outputs { logits: self.linear.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.linear
    }

    fn layer_names(&self) -> Vec<String> {
        ["stem", "layer1", "layer2", "layer3"].map(String::from).to_vec()
    }
}
