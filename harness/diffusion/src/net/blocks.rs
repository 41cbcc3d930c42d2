//! What the U-Nets are made of.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use oodbench_nn::kernels::{Activation, silu};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use oodbench_nn::maps::Map;
use rand::RngExt;

use super::Pass;

/// Groups and epsilon of every normalisation.
pub(super) const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

pub(super) fn normalise(channels: usize, vb: VarBuilder) -> Result<GroupNorm> {
    GroupNorm::new(GROUPS, channels, EPS, vb)
}

/// Sines, then cosines, of `t` at `dim / 2` frequencies from 1 down to 1/10000.
///
/// # Shapes
/// `t`: `[batch]` to `[batch, dim]`
pub(super) fn timestep_embedding(t: &Tensor, dim: usize) -> Result<Tensor> {
    let half = dim / 2;
    let step = 10_000f64.ln() / (half as f64 - 1.0);
    // The exponent is rounded to f32 before it is taken, as the reference does.
    let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * -(step as f32)).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    let embedding = Tensor::cat(&[angles.sin()?, angles.cos()?], 1)?;
    if dim % 2 == 1 { embedding.pad_with_zeros(1, 0, 1) } else { Ok(embedding) }
}

/// Zeroes each element with probability `p` and scales the others up, while training.
pub(super) fn dropout(xs: Map, p: f64, pass: &mut Pass<'_>) -> Result<Map> {
    if p <= 0.0 {
        return Ok(xs);
    }
    match pass {
        Pass::Sample => Ok(xs),
        Pass::Train(rng) => xs.dropout(p, rng.random()),
        Pass::TrainAfter(rng, before) => xs.dropout_after(p, rng.random(), *before),
    }
}

/// Normalise, SiLU, convolve; add the time embedding; again; plus the input.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    temb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
    dropout: f64,
}

impl ResnetBlock {
    pub(super) fn new(
        c_in: usize,
        c_out: usize,
        temb_channels: usize,
        dropout: f64,
        vb: VarBuilder,
    ) -> Result<Self> {
        let nin_shortcut = if c_in == c_out {
            None
        } else {
            Some(Conv2d::with_bias(c_in, c_out, ConvShape::one(1), vb.pp("nin_shortcut"))?)
        };
        Ok(Self {
            norm1: normalise(c_in, vb.pp("norm1"))?,
            conv1: Conv2d::with_bias(c_in, c_out, ConvShape::three(1), vb.pp("conv1"))?,
            temb_proj: Linear::new(temb_channels, c_out, vb.pp("temb_proj"))?,
            norm2: normalise(c_out, vb.pp("norm2"))?,
            conv2: Conv2d::with_bias(c_out, c_out, ConvShape::three(1), vb.pp("conv2"))?,
            nin_shortcut,
            dropout,
        })
    }

    /// # Shapes
    /// - `xs`: `c_in` channels to `c_out`
    /// - `temb`: `[batch, temb_channels]`, already through SiLU
    pub(super) fn forward(&self, xs: &Map, temb: &Tensor, pass: &mut Pass<'_>) -> Result<Map> {
        let hs = self.norm1.forward(xs, Activation::Silu)?;
        let hs = self.conv1.forward_map_shifted(&hs, &self.temb_proj.forward(temb)?)?;
        let hs = dropout(self.norm2.forward(&hs, Activation::Silu)?, self.dropout, pass)?;
        let hs = self.conv2.forward_map(&hs)?;
        match &self.nin_shortcut {
            Some(conv) => conv.forward_map(xs)?.add(&hs),
            None => xs.add(&hs),
        }
    }
}

/// Single-head self-attention over the pixels.
pub(super) struct AttnBlock {
    norm: GroupNorm,
    qkv: Stack,
    proj_out: Conv2d,
}

impl AttnBlock {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        let conv =
            |name: &str| Conv2d::with_bias(channels, channels, ConvShape::one(1), vb.pp(name));
        Ok(Self {
            norm: normalise(channels, vb.pp("norm"))?,
            qkv: Stack::new([conv("q")?, conv("k")?, conv("v")?])?,
            proj_out: conv("proj_out")?,
        })
    }

    pub(super) fn forward(&self, xs: &Map) -> Result<Map> {
        let hs = self.norm.forward(xs, Activation::Identity)?;
        let qkv = self.qkv.forward(&hs)?;
        let hs = qkv.attention(1, (self.qkv.channels as f64).powf(-0.5))?;
        xs.add(&self.proj_out.forward_map(&hs)?)
    }
}

/// Queries, keys and values from one product.
struct Stack {
    parts: [Conv2d; 3],
    /// The three as one, where their weights do not change.
    whole: Option<Conv2d>,
    channels: usize,
}

impl Stack {
    fn new(parts: [Conv2d; 3]) -> Result<Self> {
        let channels = parts[0].weight().dim(0)?;
        let is_constant = parts.iter().all(|part| !part.weight().track_op());
        let whole = if is_constant { Some(stacked(&parts)?) } else { None };
        Ok(Self { parts, whole, channels })
    }

    fn forward(&self, xs: &Map) -> Result<Map> {
        match &self.whole {
            Some(whole) => whole.forward_map(xs),
            None => stacked(&self.parts)?.forward_map(xs),
        }
    }
}

/// One 1x1 convolution to the outputs of several.
fn stacked(parts: &[Conv2d]) -> Result<Conv2d> {
    let weights: Vec<&Tensor> = parts.iter().map(Conv2d::weight).collect();
    let biases: Vec<&Tensor> = parts.iter().filter_map(Conv2d::bias).collect();
    Ok(Conv2d::pointwise(Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?))
}

/// Halves the resolution: a strided convolution padded on the right and below, or averaging.
pub(super) enum Downsample {
    Conv(Conv2d),
    Average,
}

impl Downsample {
    pub(super) fn new(channels: usize, with_conv: bool, vb: VarBuilder) -> Result<Self> {
        if !with_conv {
            return Ok(Self::Average);
        }
        let shape = ConvShape { kernel: 3, stride: 2, padding: 0 };
        Ok(Self::Conv(Conv2d::with_bias(channels, channels, shape, vb.pp("conv"))?))
    }

    pub(super) fn forward(&self, xs: &Map) -> Result<Map> {
        match self {
            Self::Conv(conv) => conv.forward_map(&xs.pad_end()?)?.settled(),
            Self::Average => xs.avg_pool_2x(),
        }
    }
}

/// Doubles the resolution by repeating pixels, then convolves.
pub(super) struct Upsample {
    conv: Option<Conv2d>,
}

impl Upsample {
    pub(super) fn new(channels: usize, with_conv: bool, vb: VarBuilder) -> Result<Self> {
        let conv = if with_conv {
            Some(Conv2d::with_bias(channels, channels, ConvShape::three(1), vb.pp("conv"))?)
        } else {
            None
        };
        Ok(Self { conv })
    }

    pub(super) fn forward(&self, xs: &Map) -> Result<Map> {
        let xs = xs.upsample_2x()?;
        match &self.conv {
            Some(conv) => conv.forward_map(&xs),
            None => Ok(xs),
        }
    }
}

/// The embedding of the class, with one more for "no class"; absent in an unconditional network.
pub(super) struct ClassEmbedding(Option<Tensor>);

impl ClassEmbedding {
    pub(super) fn new(n_classes: usize, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        let table = (n_classes > 0)
            .then(|| vb.get_with_hints((n_classes + 1, channels), "label_emb.weight", init));
        Ok(Self(table.transpose()?))
    }

    /// `emb` plus that of each image's class.
    ///
    /// # Errors
    /// Classes for a network that has none, or none for one that needs them.
    pub(super) fn add_to(&self, emb: Tensor, y: Option<&Tensor>) -> Result<Tensor> {
        match (&self.0, y) {
            (Some(table), Some(y)) => emb + table.embedding(y)?,
            (Some(_), None) => candle_core::bail!("a class-conditional network needs classes"),
            (None, Some(_)) => candle_core::bail!("an unconditional network takes no classes"),
            (None, None) => Ok(emb),
        }
    }
}

/// The two linear layers of a time embedding, with SiLU between them.
pub(super) struct TimeMlp {
    dense0: Linear,
    dense1: Linear,
}

impl TimeMlp {
    pub(super) fn new(dim: usize, temb_channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            dense0: Linear::new(dim, temb_channels, vb.pp("0"))?,
            dense1: Linear::new(temb_channels, temb_channels, vb.pp("1"))?,
        })
    }

    pub(super) fn forward(&self, embedding: &Tensor) -> Result<Tensor> {
        self.dense1.forward(&silu(&self.dense0.forward(embedding)?)?)
    }
}
