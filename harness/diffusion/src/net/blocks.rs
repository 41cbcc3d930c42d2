//! What the U-Nets are made of.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use oodbench_nn::kernels::{Activation, add, attention, conv2d, silu, upsample_2x};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm, Linear};
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
pub(super) fn dropout(xs: Tensor, p: f64, pass: &mut Pass<'_>) -> Result<Tensor> {
    let Pass::Train(rng) = pass else { return Ok(xs) };
    if p <= 0.0 {
        return Ok(xs);
    }
    oodbench_nn::dropout::dropout(&xs, p, rng.random())
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
    /// - `xs`: `[batch, c_in, height, width]`
    /// - `temb`: `[batch, temb_channels]`, already through SiLU
    pub(super) fn forward(
        &self,
        xs: &Tensor,
        temb: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let hs = self.norm1.forward(xs, Activation::Silu)?;
        let hs = self.conv1.forward_shifted(&hs, &self.temb_proj.forward(temb)?)?;
        let hs = dropout(self.norm2.forward(&hs, Activation::Silu)?, self.dropout, pass)?;
        let hs = self.conv2.forward(&hs)?;
        match &self.nin_shortcut {
            Some(conv) => add(&conv.forward(xs)?, &hs),
            None => add(xs, &hs),
        }
    }
}

/// Single-head self-attention over the pixels.
pub(super) struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl AttnBlock {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        let conv =
            |name: &str| Conv2d::with_bias(channels, channels, ConvShape::one(1), vb.pp(name));
        Ok(Self {
            norm: normalise(channels, vb.pp("norm"))?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = xs.dims4()?;
        let hs = self.norm.forward(xs, Activation::Identity)?;
        // Queries, keys and values from one product.
        let parts = [&self.q, &self.k, &self.v];
        let weights = Tensor::cat(&parts.map(Conv2d::weight), 0)?;
        let biases: Vec<&Tensor> = parts.iter().filter_map(|conv| conv.bias()).collect();
        let qkv = conv2d(&hs, &weights, Some(&Tensor::cat(&biases, 0)?), 1, 0)?; // [B, 3 C, H, W]
        let hs = attention(&qkv.flatten_from(2)?, (channels as f64).powf(-0.5))?; // [B, C, HW]
        add(xs, &self.proj_out.forward(&hs.reshape(((), channels, height, width))?)?)
    }
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

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(&xs.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?),
            Self::Average => xs.avg_pool2d(2),
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

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = upsample_2x(xs)?;
        match &self.conv {
            Some(conv) => conv.forward(&xs),
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
