//! PyramidNet: a ResNet whose width grows by a little in every block instead of doubling at every
//! stage, with shortcuts that carry no weights. Channels that a shortcut lacks are zero.
//!
//! Han et al., "Deep Pyramidal Residual Networks", 2017. Keys and arithmetic are those of the
//! authors' PyTorch code, which DiffOOD uses with depth 164, `alpha` 200 and bottlenecks: no ReLU
//! behind the first normalisation and the last one of a block, widths rounded half to even.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Layer as Tapped;
use super::{Architecture, Network, Outputs, Taps};
use crate::kernels;
use crate::layers::{BatchNorm2d, Conv2d, ConvShape, Linear, Mode, global_average_pool};

/// Normalise and convolve, with a ReLU between the two but for the first one.
struct Layer {
    norm: BatchNorm2d,
    conv: Conv2d,
}

struct Block {
    /// Where it stands in a checkpoint.
    name: String,
    layers: Vec<Layer>,
    last_norm: BatchNorm2d,
    halves: bool,
    /// Channels that the shortcut lacks.
    missing: usize,
}

impl Block {
    fn new(
        name: String,
        c_in: usize,
        planes: usize,
        stride: usize,
        style: Style,
        vb: VarBuilder,
    ) -> Result<Self> {
        let c_out = planes * style.expansion();
        let shapes = if style.bottleneck {
            vec![
                (c_in, planes, ConvShape::one(1)),
                (planes, planes, ConvShape::three(stride)),
                (planes, c_out, ConvShape::one(1)),
            ]
        } else {
            vec![(c_in, planes, ConvShape::three(stride)), (planes, planes, ConvShape::three(1))]
        };
        let layers = shapes.iter().zip(1..).map(|(&(c_in, c_out, shape), i)| {
            Ok(Layer {
                norm: BatchNorm2d::new(c_in, vb.pp(format!("bn{i}")))?,
                conv: Conv2d::new(c_in, c_out, shape, vb.pp(format!("conv{i}")))?,
            })
        });
        let Some(missing) = c_out.checked_sub(c_in) else {
            candle_core::bail!("`{}` expected at least {c_in} channels, got {c_out}", vb.prefix());
        };
        Ok(Self {
            name,
            layers: layers.collect::<Result<_>>()?,
            last_norm: BatchNorm2d::new(c_out, vb.pp(format!("bn{}", shapes.len() + 1)))?,
            halves: stride == 2,
            missing,
        })
    }

    fn forward(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        let name = &self.name;
        let mut ys = xs.clone();
        for (Layer { norm, conv }, i) in self.layers.iter().zip(1..) {
            if i == 1 {
                ys = norm.forward(&ys, mode)?;
            } else {
                ys = norm.forward_relu(&ys, mode)?;
                taps.offer(format_args!("{name}.relu{i}"), &ys);
            }
            ys = conv.forward(&ys)?;
            taps.offer(format_args!("{name}.conv{i}"), &ys);
        }
        let ys = self.last_norm.forward(&ys, mode)?;
        let shortcut = if self.halves { halve(xs)? } else { xs.clone() };
        kernels::add(&ys, &shortcut.pad_with_zeros(1, 0, self.missing)?)
    }

    /// What [`Block::forward`] offers.
    fn tapped(&self) -> Vec<Tapped> {
        let name = &self.name;
        let of_layer = |i: usize| {
            let relu = (i > 1).then(|| Tapped::map(format!("{name}.relu{i}")));
            relu.into_iter().chain([Tapped::map(format!("{name}.conv{i}"))])
        };
        (1..=self.layers.len()).flat_map(of_layer).collect()
    }
}

/// Means of 2x2 pixels; of those that there are, at the edge of an odd side.
fn halve(xs: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    // The mean of an edge pixel and its copy is the pixel.
    let xs = xs.pad_with_same(2, 0, height % 2)?.pad_with_same(3, 0, width % 2)?;
    kernels::avg_pool_2x(&xs)
}

#[derive(Clone, Copy)]
struct Style {
    bottleneck: bool,
}

impl Style {
    fn expansion(self) -> usize {
        if self.bottleneck { 4 } else { 1 }
    }
}

/// Channels between the convolutions of each block, as the width grows from `start` by `alpha`.
fn planes(start: usize, blocks: &[usize], alpha: usize) -> Vec<usize> {
    let n_blocks: usize = blocks.iter().sum();
    let step = alpha as f64 / n_blocks as f64;
    let mut width = start as f64;
    // Added up rather than multiplied, and rounded half to even: as the reference does it.
    let mut next = || {
        width += step;
        width.round_ties_even() as usize
    };
    (0..n_blocks).map(|_| next()).collect()
}

pub(super) struct PyramidNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    /// ReLU and pooling behind the first convolution, in the network for large images.
    stem_pool: bool,
    stages: Vec<Vec<Block>>,
    bn_final: BatchNorm2d,
    fc: Linear,
}

impl PyramidNet {
    /// Three stages from 16 channels for 32x32 images, or four from 64 behind a 7x7 stem.
    pub(super) fn new(
        blocks: [usize; 4],
        alpha: usize,
        bottleneck: bool,
        n_classes: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let style = Style { bottleneck };
        let is_large = blocks[3] > 0;
        let (start, stem) = match is_large {
            true => (64, ConvShape { kernel: 7, stride: 2, padding: 3 }),
            false => (16, ConvShape::three(1)),
        };
        let mut planes = planes(start, &blocks, alpha).into_iter();
        let mut channels = start;
        let mut stages = Vec::new();
        for (stage, &n_blocks) in blocks.iter().enumerate().filter(|(_, n)| **n > 0) {
            let vb = vb.pp(format!("layer{}", stage + 1));
            let mut this = Vec::new();
            for (i, planes) in planes.by_ref().take(n_blocks).enumerate() {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("layer{}.{i}", stage + 1);
                this.push(Block::new(name, channels, planes, stride, style, vb.pp(i))?);
                channels = planes * style.expansion();
            }
            stages.push(this);
        }
        Ok(Self {
            conv1: Conv2d::new(3, start, stem, vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(start, vb.pp("bn1"))?,
            stem_pool: is_large,
            stages,
            bn_final: BatchNorm2d::new(channels, vb.pp("bn_final"))?,
            fc: Linear::new(channels, n_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for PyramidNet {
    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        if let Some(stage) = stage.checked_sub(1) {
            let mut blocks = self.stages[stage].iter();
            return blocks.try_fold(xs.clone(), |xs, block| block.forward(&xs, mode, taps));
        }
        let xs = self.conv1.forward(xs)?;
        taps.offer("conv1", &xs);
        if !self.stem_pool {
            return self.bn1.forward(&xs, mode);
        }
        let xs = self.bn1.forward_relu(&xs, mode)?;
        taps.offer("relu1", &xs);
        kernels::max_pool_3x3_stride_2(&xs)
    }

    fn finish(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let xs = self.bn_final.forward_relu(xs, mode)?;
        taps.offer("relu_final", &xs);
        let features = global_average_pool(&xs)?;
        Ok(Outputs { logits: self.fc.forward(&features)?, features })
    }

    fn head(&self) -> &Linear {
        &self.fc
    }

    fn layers(&self) -> Vec<Tapped> {
        let mut layers = vec![Tapped::map("conv1")];
        layers.extend(self.stem_pool.then(|| Tapped::map("relu1")));
        layers.push(Tapped::stage("stem"));
        for (stage, i) in self.stages.iter().zip(1..) {
            layers.extend(stage.iter().flat_map(Block::tapped));
            layers.push(Tapped::stage(format!("layer{i}")));
        }
        layers.push(Tapped::map("relu_final"));
        layers
    }
}

/// The network for 32x32 images with a name such as `pyramidnet164_a200`, or
/// `pyramidnet110_a48_basic`: the depth is 9 n + 2 with bottlenecks and 6 n + 2 without.
pub(super) fn named(name: &str) -> Option<Architecture> {
    let (depth, rest) = name.strip_prefix("pyramidnet")?.split_once("_a")?;
    let (alpha, bottleneck) = match rest.strip_suffix("_basic") {
        Some(alpha) => (alpha, false),
        None => (rest, true),
    };
    let size = |text: &str| text.parse::<usize>().ok().filter(|size| *size <= 10_000);
    let layers = size(depth)?.checked_sub(2)?;
    let per_block = if bottleneck { 9 } else { 6 };
    if layers == 0 || !layers.is_multiple_of(per_block) {
        return None;
    }
    let n = layers / per_block;
    Some(Architecture::PyramidNet { blocks: [n, n, n, 0], alpha: size(alpha)?, bottleneck })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula;
    use candle_core::Device;

    /// Logits for the images `input` in [-1, 1] on formula weights.
    fn logits(arch: Architecture, shape: [usize; 4]) -> Vec<f32> {
        let network = arch.build(5, formula::var_builder(Default::default())).unwrap();
        let values = formula::uniform("input", shape.iter().product(), -1.0, 1.0);
        let xs = Tensor::from_vec(values, &shape, &Device::Cpu).unwrap();
        let outputs = network.forward(&xs, Mode::Eval, &mut Taps::none()).unwrap();
        outputs.logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn check(arch: Architecture, shape: [usize; 4], expected: &[f32]) {
        let ours = logits(arch, shape);
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-4, "{arch}: {ours} {expected}");
        }
    }

    /// From DiffOOD's `PyramidNet` (commit 1c87ba0), PyTorch on the CPU, on the same weights.
    #[test]
    fn logits_are_those_of_the_reference() {
        let small = |name| named(name).unwrap();
        let expected = [
            0.991_609_2,
            -0.475_194_8,
            0.077_507_44,
            0.979_143_8,
            0.001_440_81,
            0.987_471_2,
            -0.474_848_2,
            0.060_236_28,
            0.978_324_3,
            0.020_709_92,
        ];
        check(small("pyramidnet29_a24"), [2, 3, 32, 32], &expected);
        let expected = [
            -0.270_289_6,
            -2.248_839_9,
            -2.842_226,
            2.584_013_2,
            -1.780_813_7,
            -0.324_677_47,
            -2.185_403_8,
            -2.997_071_5,
            2.627_873_4,
            -1.886_297_7,
        ];
        check(small("pyramidnet20_a25_basic"), [2, 3, 32, 32], &expected);
        // Widths that are not whole numbers before they are rounded.
        let expected = [
            -0.130_860_84,
            -0.184_033_32,
            -0.095_921_02,
            -0.061_630_26,
            0.112_127_796,
            -0.134_245_34,
            -0.185_762_69,
            -0.079_300_31,
            -0.063_795_76,
            0.124_104_396,
        ];
        check(small("pyramidnet11_a10"), [2, 3, 32, 32], &expected);
        let large = Architecture::PyramidNet { blocks: [1; 4], alpha: 20, bottleneck: true };
        let expected = [-0.482_801_4, -0.319_853_8, -0.544_034_9, 0.382_970_66, 1.286_828_3];
        check(large, [1, 3, 224, 224], &expected);
    }

    #[test]
    fn widths_are_rounded_half_to_even() {
        assert_eq!(planes(16, &[1, 1, 2, 0], 2), [16, 17, 18, 18]);
    }

    #[test]
    fn an_odd_side_is_halved_upwards() {
        let xs = Tensor::arange(0f32, 9.0, &Device::Cpu).unwrap().reshape((1, 1, 3, 3)).unwrap();
        let ys = halve(&xs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(ys, [2.0, 3.5, 6.5, 8.0]);
    }

    #[test]
    fn a_name_says_depth_growth_and_kind_of_block() {
        for name in ["pyramidnet164_a200", "pyramidnet110_a48_basic", "pyramidnet11_a10"] {
            assert_eq!(named(name).unwrap().to_string(), name);
        }
        for name in
            ["pyramidnet165_a200", "pyramidnet164", "pyramidnet2_a9", "resnet20", "pyramidnet11_ax"]
        {
            assert_eq!(named(name), None, "{name}");
        }
    }
}
