//! DenseNet and DenseNet-BC for 32x32 images.
//!
//! Huang et al., "Densely Connected Convolutional Networks", 2017. Three dense blocks with
//! transitions between them; BC means 1x1 bottlenecks and halved channels at a transition.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Network, Outputs, Taps};
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

struct DenseLayer {
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bottleneck: Option<(BatchNorm2d, Conv2d)>,
}

impl DenseLayer {
    fn new(c_in: usize, growth: usize, bottleneck: bool, vb: &VarBuilder) -> Result<Self> {
        let bn1 = BatchNorm2d::new(c_in, vb.pp("bn1"))?;
        if !bottleneck {
            let conv1 = Conv2d::new(c_in, growth, ConvShape::three(1), vb.pp("conv1"))?;
            return Ok(Self { bn1, conv1, bottleneck: None });
        }
        let inner = 4 * growth;
        let conv1 = Conv2d::new(c_in, inner, ConvShape::one(1), vb.pp("conv1"))?;
        let bn2 = BatchNorm2d::new(inner, vb.pp("bn2"))?;
        let conv2 = Conv2d::new(inner, growth, ConvShape::three(1), vb.pp("conv2"))?;
        Ok(Self { bn1, conv1, bottleneck: Some((bn2, conv2)) })
    }

    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut ys = self.conv1.forward(&self.bn1.forward_relu(xs, mode)?)?;
        if let Some((norm, conv)) = &self.bottleneck {
            ys = conv.forward(&norm.forward_relu(&ys, mode)?)?;
        }
        Tensor::cat(&[xs, &ys], 1)
    }
}

struct Transition {
    bn1: BatchNorm2d,
    conv1: Conv2d,
}

pub(super) struct DenseNet {
    conv1: Conv2d,
    blocks: Vec<Vec<DenseLayer>>,
    transitions: Vec<Transition>,
    bn1: BatchNorm2d,
    fc: Linear,
}

impl DenseNet {
    pub(super) fn new(
        layers: usize,
        growth: usize,
        stem: usize,
        bottleneck: bool,
        halving: bool,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut channels = stem;
        let (mut blocks, mut transitions) = (Vec::new(), Vec::new());
        for block in 1..=3 {
            let vb_block = vb.pp(format!("block{block}")).pp("layer");
            let mut dense = Vec::new();
            for i in 0..layers {
                dense.push(DenseLayer::new(channels, growth, bottleneck, &vb_block.pp(i))?);
                channels += growth;
            }
            blocks.push(dense);
            if block < 3 {
                let c_out = if halving { channels / 2 } else { channels };
                let vb = vb.pp(format!("trans{block}"));
                transitions.push(Transition {
                    bn1: BatchNorm2d::new(channels, vb.pp("bn1"))?,
                    conv1: Conv2d::new(channels, c_out, ConvShape::one(1), vb.pp("conv1"))?,
                });
                channels = c_out;
            }
        }
        Ok(Self {
            conv1: Conv2d::new(3, stem, ConvShape::three(1), vb.pp("conv1"))?,
            blocks,
            transitions,
            bn1: BatchNorm2d::new(channels, vb.pp("bn1"))?,
            fc: Linear::new(channels, n_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for DenseNet {
    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let mut xs = self.conv1.forward(xs)?;
        taps.offer("stem", &xs);
        for (i, block) in self.blocks.iter().enumerate() {
            for layer in block {
                xs = layer.forward(&xs, mode)?;
            }
            if let Some(Transition { bn1, conv1 }) = self.transitions.get(i) {
                xs = conv1.forward(&bn1.forward_relu(&xs, mode)?)?.avg_pool2d(2)?;
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
