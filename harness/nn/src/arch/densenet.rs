//! DenseNet and DenseNet-BC for 32x32 images.
//!
//! Huang et al., "Densely Connected Convolutional Networks", 2017. Three dense blocks with
//! transitions between them; BC means 1x1 bottlenecks and halved channels at a transition.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{Layer, Network, Outputs, Taps};
use crate::kernels;
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

struct DenseLayer {
    /// Where it stands in a checkpoint.
    name: String,
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bottleneck: Option<(BatchNorm2d, Conv2d)>,
}

impl DenseLayer {
    fn new(
        name: String,
        c_in: usize,
        growth: usize,
        bottleneck: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let bn1 = BatchNorm2d::new(c_in, vb.pp("bn1"))?;
        if !bottleneck {
            let conv1 = Conv2d::new(c_in, growth, ConvShape::three(1), vb.pp("conv1"))?;
            return Ok(Self { name, bn1, conv1, bottleneck: None });
        }
        let inner = 4 * growth;
        let conv1 = Conv2d::new(c_in, inner, ConvShape::one(1), vb.pp("conv1"))?;
        let bn2 = BatchNorm2d::new(inner, vb.pp("bn2"))?;
        let conv2 = Conv2d::new(inner, growth, ConvShape::three(1), vb.pp("conv2"))?;
        Ok(Self { name, bn1, conv1, bottleneck: Some((bn2, conv2)) })
    }

    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let name = &self.name;
        let mut ys = self.bn1.forward_relu(xs, mode)?;
        taps.offer(format_args!("{name}.relu1"), &ys);
        ys = self.conv1.forward(&ys)?;
        taps.offer(format_args!("{name}.conv1"), &ys);
        if let Some((norm, conv)) = &self.bottleneck {
            ys = norm.forward_relu(&ys, mode)?;
            taps.offer(format_args!("{name}.relu2"), &ys);
            ys = conv.forward(&ys)?;
            taps.offer(format_args!("{name}.conv2"), &ys);
        }
        kernels::cat_channels(xs, &ys)
    }

    /// What [`DenseLayer::forward`] offers.
    fn layers(&self) -> Vec<Layer> {
        let names: &[&str] = match self.bottleneck {
            Some(_) => &["relu1", "conv1", "relu2", "conv2"],
            None => &["relu1", "conv1"],
        };
        names.iter().map(|name| Layer::map(format!("{}.{name}", self.name))).collect()
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
                let name = format!("block{block}.layer.{i}");
                let vb = vb_block.pp(i);
                dense.push(DenseLayer::new(name, channels, growth, bottleneck, &vb)?);
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
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let Some(i) = stage.checked_sub(1) else {
            let xs = self.conv1.forward(xs)?;
            taps.offer("conv1", &xs);
            return Ok(xs);
        };
        let Some(block) = self.blocks.get(i) else {
            let xs = self.bn1.forward_relu(xs, mode)?;
            taps.offer("relu1", &xs);
            return Ok(xs);
        };
        let xs = block.iter().try_fold(xs.clone(), |xs, layer| layer.forward(&xs, mode, taps))?;
        let Some(Transition { bn1, conv1 }) = self.transitions.get(i) else { return Ok(xs) };
        let xs = bn1.forward_relu(&xs, mode)?;
        taps.offer(format_args!("trans{stage}.relu1"), &xs);
        let xs = conv1.forward(&xs)?;
        taps.offer(format_args!("trans{stage}.conv1"), &xs);
        kernels::avg_pool_2x(&xs)
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
            layers.extend(block.iter().flat_map(DenseLayer::layers));
            if i <= self.transitions.len() {
                layers
                    .extend(["relu1", "conv1"].map(|name| Layer::map(format!("trans{i}.{name}"))));
            }
            layers.push(Layer::stage(format!("block{i}")));
        }
        layers.extend([Layer::map("relu1"), Layer::stage("bn1")]);
        layers
    }
}
