//! Wide residual networks with `depth = 6 n + 4`.
//!
//! Zagoruyko and Komodakis, "Wide Residual Networks", 2016. Normalisation and ReLU come before
//! each convolution; where the width changes, the shortcut projects the normalised input.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Layer, Network, Outputs, Taps};
use crate::kernels;
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

struct Block {
    /// Where it stands in a checkpoint.
    name: String,
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bn2: BatchNorm2d,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Block {
    fn new(
        name: String,
        c_in: usize,
        c_out: usize,
        stride: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let shortcut = if c_in == c_out {
            None
        } else {
            Some(Conv2d::new(c_in, c_out, ConvShape::one(stride), vb.pp("convShortcut"))?)
        };
        Ok(Self {
            name,
            bn1: BatchNorm2d::new(c_in, vb.pp("bn1"))?,
            conv1: Conv2d::new(c_in, c_out, ConvShape::three(stride), vb.pp("conv1"))?,
            bn2: BatchNorm2d::new(c_out, vb.pp("bn2"))?,
            conv2: Conv2d::new(c_out, c_out, ConvShape::three(1), vb.pp("conv2"))?,
            shortcut,
        })
    }

    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let name = &self.name;
        let normal = self.bn1.forward_relu(xs, mode)?;
        taps.offer(format_args!("{name}.relu1"), &normal);
        let ys = self.conv1.forward(&normal)?;
        taps.offer(format_args!("{name}.conv1"), &ys);
        let ys = self.bn2.forward_relu(&ys, mode)?;
        taps.offer(format_args!("{name}.relu2"), &ys);
        let ys = self.conv2.forward(&ys)?;
        taps.offer(format_args!("{name}.conv2"), &ys);
        let Some(conv) = &self.shortcut else { return kernels::add(xs, &ys) };
        let shortcut = conv.forward(&normal)?;
        taps.offer(format_args!("{name}.convShortcut"), &shortcut);
        kernels::add(&shortcut, &ys)
    }

    /// What [`Block::forward`] offers.
    fn layers(&self) -> Vec<Layer> {
        let shortcut = self.shortcut.as_ref().map(|_| "convShortcut");
        let names = ["relu1", "conv1", "relu2", "conv2"].into_iter().chain(shortcut);
        names.map(|name| Layer::map(format!("{}.{name}", self.name))).collect()
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
                let name = format!("block{}.layer.{i}", stage + 1);
                block.push(Block::new(name, channels, c_out, stride, &vb.pp(i))?);
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
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let Some(block) = stage.checked_sub(1) else {
            let xs = self.conv1.forward(xs)?;
            taps.offer("conv1", &xs);
            return Ok(xs);
        };
        if let Some(block) = self.blocks.get(block) {
            return block.iter().try_fold(xs.clone(), |xs, layer| layer.forward(&xs, mode, taps));
        }
        let xs = self.bn1.forward_relu(xs, mode)?;
        taps.offer("relu1", &xs);
        Ok(xs)
    }

    fn finish(&self, xs: &Tensor, _mode: Mode, _taps: &mut Taps) -> Result<Outputs> {
        let features = global_average_pool(xs)?;
        Ok(Outputs { logits: self.fc.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.fc
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers = vec![Layer::map("conv1"), Layer::stage("stem")];
        for (block, i) in self.blocks.iter().zip(1..) {
            layers.extend(block.iter().flat_map(Block::layers));
            layers.push(Layer::stage(format!("block{i}")));
        }
        layers.extend([Layer::map("relu1"), Layer::stage("bn1")]);
        layers
    }
}
