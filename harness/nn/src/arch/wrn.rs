//! Wide residual networks with `depth = 6 n + 4`.
//!
//! Zagoruyko and Komodakis, "Wide Residual Networks", 2016. Normalisation and ReLU come before
//! each convolution; where the width changes, the shortcut projects the normalised input.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Network, Outputs, Taps};
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

struct Block {
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bn2: BatchNorm2d,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Block {
    fn new(c_in: usize, c_out: usize, stride: usize, vb: &VarBuilder) -> Result<Self> {
        let shortcut = if c_in == c_out {
            None
        } else {
            Some(Conv2d::new(c_in, c_out, ConvShape::one(stride), vb.pp("convShortcut"))?)
        };
        Ok(Self {
            bn1: BatchNorm2d::new(c_in, vb.pp("bn1"))?,
            conv1: Conv2d::new(c_in, c_out, ConvShape::three(stride), vb.pp("conv1"))?,
            bn2: BatchNorm2d::new(c_out, vb.pp("bn2"))?,
            conv2: Conv2d::new(c_out, c_out, ConvShape::three(1), vb.pp("conv2"))?,
            shortcut,
        })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let normal = self.bn1.forward_relu(xs, mode)?;
        let ys = self.bn2.forward_relu(&self.conv1.forward(&normal)?, mode)?;
        let ys = self.conv2.forward(&ys)?;
        match &self.shortcut {
            Some(conv) => conv.forward(&normal)? + ys,
            None => xs + ys,
        }
    }
}

pub(super) struct WideResNet {
    conv1: Conv2d,
    blocks: Vec<Vec<Block>>,
    bn1: BatchNorm2d,
    fc: Linear,
}

impl WideResNet {
    pub(super) fn new(
        n_blocks: usize,
        widen: usize,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut channels = 16;
        let mut blocks = Vec::new();
        for (stage, planes) in [16, 32, 64].into_iter().enumerate() {
            let vb = vb.pp(format!("block{}", stage + 1)).pp("layer");
            let c_out = planes * widen;
            let mut block = Vec::new();
            for i in 0..n_blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                block.push(Block::new(channels, c_out, stride, &vb.pp(i))?);
                channels = c_out;
            }
            blocks.push(block);
        }
        Ok(Self {
            conv1: Conv2d::new(3, 16, ConvShape::three(1), vb.pp("conv1"))?,
            blocks,
            bn1: BatchNorm2d::new(channels, vb.pp("bn1"))?,
            fc: Linear::new(channels, n_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for WideResNet {
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let mut xs = self.conv1.forward(xs)?;
        taps.offer("stem", &xs);
        for (i, block) in self.blocks.iter().enumerate() {
            for layer in block {
                xs = layer.forward(&xs, mode)?;
            }
            taps.offer(&format!("block{}", i + 1), &xs);
        }
        let xs = self.bn1.forward_relu(&xs, mode)?;
        taps.offer("bn1", &xs);
        let features = global_average_pool(&xs)?;
        Ok(Outputs { logits: self.fc.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.fc
    }

    fn layer_names(&self) -> Vec<String> {
        ["stem", "block1", "block2", "block3", "bn1"].map(String::from).to_vec()
    }
}
