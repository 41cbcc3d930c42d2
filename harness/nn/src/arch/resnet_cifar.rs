//! He et al.'s ResNet for CIFAR: depth `6 n + 2`, three stages of 16, 32 and 64 channels.
//!
//! The shortcut between stages is the parameter-free one of the paper (option A: every second
//! pixel, channels padded with zeros on both sides) or a 1x1 projection (option B). Keys as in
//! the widely used CIFAR-10 checkpoints of akamaster/pytorch_resnet_cifar10.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Layer, Network, Outputs, Taps};
use crate::kernels;
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
    /// Where it stands in a checkpoint.
    name: String,
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    shortcut: Shortcut,
}

impl Block {
    fn new(
        name: String,
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
            name,
            conv1: Conv2d::new(c_in, c_out, ConvShape::three(stride), vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(c_out, vb.pp("bn1"))?,
            conv2: Conv2d::new(c_out, c_out, ConvShape::three(1), vb.pp("conv2"))?,
            bn2: BatchNorm2d::new(c_out, vb.pp("bn2"))?,
            shortcut,
        })
    }

    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let name = &self.name;
        let ys = self.conv1.forward(xs)?;
        taps.offer(format_args!("{name}.conv1"), &ys);
        let ys = self.conv2.forward(&self.bn1.forward_relu(&ys, mode)?)?;
        taps.offer(format_args!("{name}.conv2"), &ys);
        let ys = self.bn2.forward(&ys, mode)?;
        let shortcut = match &self.shortcut {
            Shortcut::Identity => xs.clone(),
            Shortcut::Padded { before, after } => {
                every_second_pixel(xs)?.pad_with_zeros(1, *before, *after)?
            }
            Shortcut::Projected(conv, norm) => {
                let xs = conv.forward(xs)?;
                taps.offer(format_args!("{name}.shortcut.0"), &xs);
                norm.forward(&xs, mode)?
            }
        };
        kernels::relu(&kernels::add(&ys, &shortcut)?)
    }

    /// What [`Block::forward`] offers.
    fn layers(&self) -> Vec<Layer> {
        let Self { name, shortcut, .. } = self;
        let is_projected = matches!(shortcut, Shortcut::Projected(..));
        let projection = is_projected.then(|| format!("{name}.shortcut.0"));
        let convs = [format!("{name}.conv1"), format!("{name}.conv2")];
        convs.into_iter().chain(projection).map(Layer::map).collect()
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
                let name = format!("layer{}.{i}", stage + 1);
                layer.push(Block::new(name, channels, c_out, stride, projection, &vb.pp(i))?);
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
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        if let Some(stage) = stage.checked_sub(1) {
            let mut blocks = self.stages[stage].iter();
            return blocks.try_fold(xs.clone(), |xs, block| block.forward(&xs, mode, taps));
        }
        let xs = self.conv1.forward(xs)?;
        taps.offer("conv1", &xs);
        self.bn1.forward_relu(&xs, mode)
    }

    fn finish(&self, xs: &Tensor, _mode: Mode, _taps: &mut Taps) -> Result<Outputs> {
        let features = global_average_pool(xs)?;
        Ok(Outputs { logits: self.linear.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.linear
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers = vec![Layer::map("conv1"), Layer::stage("stem")];
        for (stage, i) in self.stages.iter().zip(1..) {
            layers.extend(stage.iter().flat_map(Block::layers));
            layers.push(Layer::stage(format!("layer{i}")));
        }
        layers
    }
}
