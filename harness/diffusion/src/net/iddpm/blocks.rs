//! What the iDDPM U-Net is made of. It differs from DDIM's blocks in the names of the tensors, in
//! the epsilon of the normalisation, and in most of the arithmetic.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder, init};
use oodbench_nn::kernels::{self, Activation};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm, Linear};

use super::super::Pass;
use super::super::blocks::dropout;

/// Groups and epsilon of every normalisation.
const GROUPS: usize = 32;
const EPS: f64 = 1e-5;

pub(super) fn normalise(channels: usize, vb: VarBuilder) -> Result<GroupNorm> {
    GroupNorm::new(GROUPS, channels, EPS, vb)
}

/// Cosines, then sines, of `t` at `dim / 2` frequencies from 1 down, the last one above 1/10000.
///
/// # Shapes
/// `t`: `[batch]` to `[batch, dim]`
pub(super) fn timestep_embedding(t: &Tensor, dim: usize) -> Result<Tensor> {
    let half = dim / 2;
    // Every operation is rounded to f32, as in the reference.
    let slope = -(10_000f64.ln() as f32);
    let frequencies = (0..half).map(|i| (slope * i as f32 / half as f32).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    let embedding = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?;
    if dim % 2 == 1 { embedding.pad_with_zeros(1, 0, 1) } else { Ok(embedding) }
}

/// How a residual block takes the time embedding in.
enum Conditioning {
    /// `norm(hs + shift)`.
    Additive { norm: GroupNorm },
    /// `norm(hs) (1 + scale) + shift`: the weight and the bias of the norm.
    ScaleShift { weight: Tensor, bias: Tensor },
}

impl Conditioning {
    fn new(channels: usize, scale_shift: bool, vb: VarBuilder) -> Result<Self> {
        if !scale_shift {
            return Ok(Self::Additive { norm: normalise(channels, vb)? });
        }
        Ok(Self::ScaleShift {
            weight: vb.get_with_hints(channels, "weight", init::ONE)?,
            bias: vb.get_with_hints(channels, "bias", init::ZERO)?,
        })
    }

    /// Conditions `hs`, `[batch, channels, height, width]`, on `emb`, `[batch, channels]` or twice
    /// as many, normalises and applies SiLU.
    fn forward(&self, hs: &Tensor, emb: &Tensor) -> Result<Tensor> {
        match self {
            Self::Additive { norm } => {
                let shift = emb.unsqueeze(2)?.unsqueeze(3)?;
                norm.forward(&hs.broadcast_add(&shift)?, Activation::Silu)
            }
            Self::ScaleShift { weight, bias } => {
                // (x w + b) (1 + scale) + shift is another affine map, one for each image; with
                // the batch folded into the channels it is one call of the fused kernel.
                let (batch, channels, height, width) = hs.dims4()?;
                let factor = (emb.narrow(1, 0, channels)? + 1.0)?;
                let shift = emb.narrow(1, channels, channels)?;
                let weight = factor.broadcast_mul(weight)?.reshape(batch * channels)?;
                let bias = (factor.broadcast_mul(bias)? + shift)?.reshape(batch * channels)?;
                let folded = hs.reshape((1, batch * channels, height, width))?;
                let groups = GROUPS * batch;
                kernels::group_norm(&folded, &weight, &bias, groups, EPS, Activation::Silu)?
                    .reshape((batch, channels, height, width))
            }
        }
    }
}

/// What all residual blocks of a network have in common.
#[derive(Clone, Copy)]
pub(super) struct BlockStyle {
    pub(super) emb_channels: usize,
    pub(super) scale_shift: bool,
    pub(super) dropout: f64,
}

/// Normalise, SiLU, convolve; condition on the time; SiLU, convolve; plus the input.
pub(super) struct ResBlock {
    in_norm: GroupNorm,
    in_conv: Conv2d,
    emb_proj: Linear,
    out_norm: Conditioning,
    out_conv: Conv2d,
    skip: Option<Conv2d>,
    dropout: f64,
}

impl ResBlock {
    pub(super) fn new(
        c_in: usize,
        c_out: usize,
        style: BlockStyle,
        vb: VarBuilder,
    ) -> Result<Self> {
        let BlockStyle { emb_channels, scale_shift, dropout } = style;
        let emb_out = if scale_shift { 2 * c_out } else { c_out };
        let skip = if c_in == c_out {
            None
        } else {
            Some(Conv2d::with_bias(c_in, c_out, ConvShape::one(1), vb.pp("skip_connection"))?)
        };
        let (vb_in, vb_out) = (vb.pp("in_layers"), vb.pp("out_layers"));
        Ok(Self {
            in_norm: normalise(c_in, vb_in.pp(0))?,
            in_conv: Conv2d::with_bias(c_in, c_out, ConvShape::three(1), vb_in.pp(2))?,
            emb_proj: Linear::new(emb_channels, emb_out, vb.pp("emb_layers").pp(1))?,
            out_norm: Conditioning::new(c_out, scale_shift, vb_out.pp(0))?,
            out_conv: zeroed_conv(c_out, c_out, ConvShape::three(1), vb_out.pp(3))?,
            skip,
            dropout,
        })
    }

    /// # Shapes
    /// - `xs`: `[batch, c_in, height, width]`
    /// - `emb`: `[batch, emb_channels]`, already through SiLU
    pub(super) fn forward(&self, xs: &Tensor, emb: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let hs = self.in_conv.forward(&self.in_norm.forward(xs, Activation::Silu)?)?;
        let hs = self.out_norm.forward(&hs, &self.emb_proj.forward(emb)?)?;
        let hs = self.out_conv.forward(&dropout(hs, self.dropout, pass)?)?;
        match &self.skip {
            Some(conv) => kernels::add(&conv.forward(xs)?, &hs),
            None => kernels::add(xs, &hs),
        }
    }
}

/// A convolution that starts as zero, so that a fresh network is nearly the identity.
pub(super) fn zeroed_conv(
    c_in: usize,
    c_out: usize,
    shape: ConvShape,
    vb: VarBuilder,
) -> Result<Conv2d> {
    // The first use of a variable decides how it starts; the convolution then finds it.
    vb.get_with_hints((c_out, c_in, shape.kernel, shape.kernel), "weight", init::ZERO)?;
    vb.get_with_hints(c_out, "bias", init::ZERO)?;
    Conv2d::with_bias(c_in, c_out, shape, vb)
}

/// A convolution over one dimension with a kernel of 1: a linear map of the channels.
struct Pointwise {
    /// `[c_out, c_in, 1]`
    weight: Tensor,
    bias: Tensor,
}

impl Pointwise {
    fn new(c_in: usize, c_out: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((c_out, c_in, 1), "weight", init)?,
            bias: vb.get_with_hints(c_out, "bias", init)?,
        })
    }

    /// # Shapes
    /// `xs`: `[batch, c_in, height, width]` to `[batch, c_out, height, width]`
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        kernels::conv2d(xs, &self.weight.unsqueeze(3)?, Some(&self.bias), 1, 0)
    }
}

/// Self-attention over the pixels.
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Pointwise,
    proj_out: Pointwise,
    heads: usize,
}

impl AttentionBlock {
    pub(super) fn new(channels: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        let bound = 1.0 / (channels as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        Ok(Self {
            norm: normalise(channels, vb.pp("norm"))?,
            qkv: Pointwise::new(channels, 3 * channels, uniform, vb.pp("qkv"))?,
            proj_out: Pointwise::new(channels, channels, init::ZERO, vb.pp("proj_out"))?,
            heads,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = xs.dims4()?;
        let width_of_head = channels / self.heads;
        let qkv = self.qkv.forward(&self.norm.forward(xs, Activation::Identity)?)?;
        // Each head has its queries, keys and values side by side.
        let qkv = qkv.reshape((batch * self.heads, 3 * width_of_head, height * width))?;
        let hs = kernels::attention(&qkv, (width_of_head as f64).powf(-0.5))?; // [B heads, C / heads, HW]
        kernels::add(xs, &self.proj_out.forward(&hs.reshape((batch, channels, height, width))?)?)
    }
}

/// Halves the resolution: a strided convolution padded on all sides, or averaging.
pub(super) enum Downsample {
    Conv(Conv2d),
    Average,
}

impl Downsample {
    pub(super) fn new(channels: usize, with_conv: bool, vb: VarBuilder) -> Result<Self> {
        if !with_conv {
            return Ok(Self::Average);
        }
        Ok(Self::Conv(Conv2d::with_bias(channels, channels, ConvShape::three(2), vb.pp("op"))?))
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(xs),
            Self::Average => xs.avg_pool2d(2),
        }
    }
}
