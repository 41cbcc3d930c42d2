//! What the iDDPM U-Net is made of. It differs from DDIM's blocks in the names of the tensors, in
//! the epsilon of the normalisation, and in most of the arithmetic.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder, init};
use oodbench_nn::kernels::Activation;
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use oodbench_nn::maps::{Map, Order};

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

/// How a residual block takes the time embedding in: normalises under a condition, then SiLU.
enum Conditioning {
    /// `norm(hs + proj(emb))`.
    Additive { norm: GroupNorm, proj: Linear },
    /// `norm(hs) (1 + scale) + shift`, where `proj(emb)` is scale and shift.
    ScaleShift(ScaleShift),
}

impl Conditioning {
    fn new(channels: usize, style: BlockStyle, vb: &VarBuilder) -> Result<Self> {
        let (vb_norm, vb_proj) = (vb.pp("out_layers").pp(0), vb.pp("emb_layers").pp(1));
        if style.scale_shift {
            let proj = Linear::new(style.emb_channels, 2 * channels, vb_proj)?;
            return ScaleShift::new(channels, proj, style.order, vb_norm).map(Self::ScaleShift);
        }
        let proj = Linear::new(style.emb_channels, channels, vb_proj)?;
        Ok(Self::Additive { norm: normalise(channels, vb_norm)?, proj })
    }

    fn forward(&self, hs: &Map, emb: &Tensor) -> Result<Map> {
        let (weight, bias) = match self {
            Self::Additive { norm, proj } => {
                return norm.forward(&hs.shifted(&proj.forward(emb)?)?, Activation::Silu);
            }
            Self::ScaleShift(of) if hs.order() == Order::ChannelsFirst => of.products(emb)?,
            Self::ScaleShift(of) => of.projections(emb)?,
        };
        hs.group_norm(&weight, &bias, GROUPS, EPS, Activation::Silu)
    }
}

/// `(normal w + b) (1 + scale) + shift` is another affine map of what was normalised, one for each
/// image: its weight is `(1 + scale) w`, its bias `(1 + scale) b + shift`.
struct ScaleShift {
    /// `w` and `b`.
    affine: (Tensor, Tensor),
    proj: Linear,
    /// What [`ScaleShift::folded`] makes of weights that do not change.
    folded: Option<[Linear; 2]>,
}

impl ScaleShift {
    fn new(channels: usize, proj: Linear, order: Order, vb: VarBuilder) -> Result<Self> {
        let affine = (
            vb.get_with_hints(channels, "weight", init::ONE)?,
            vb.get_with_hints(channels, "bias", init::ZERO)?,
        );
        let parts = [&affine.0, &affine.1, proj.weight(), proj.bias()];
        let keep = order == Order::ChannelsLast && parts.iter().all(|part| !part.track_op());
        let mut this = Self { affine, proj, folded: None };
        if keep {
            this.folded = Some(this.folded()?);
        }
        Ok(this)
    }

    /// Weight and bias of each image, `[batch, channels]`, from scale and shift.
    fn products(&self, emb: &Tensor) -> Result<(Tensor, Tensor)> {
        let (w, b) = &self.affine;
        let channels = w.dim(0)?;
        let of_both = self.proj.forward(emb)?;
        let factor = (of_both.narrow(1, 0, channels)? + 1.0)?;
        let shift = of_both.narrow(1, channels, channels)?;
        Ok((factor.broadcast_mul(w)?, (factor.broadcast_mul(b)? + shift)?))
    }

    /// The same straight from the embedding: each is linear in it. Nothing is broadcast, which candle
    /// could do on a GPU with numbers from the host alone.
    fn projections(&self, emb: &Tensor) -> Result<(Tensor, Tensor)> {
        let of = |[weight, bias]: &[Linear; 2]| Ok((weight.forward(emb)?, bias.forward(emb)?));
        match &self.folded {
            Some(folded) => of(folded),
            None => of(&self.folded()?),
        }
    }

    /// The linear maps from an embedding to weight and bias.
    fn folded(&self) -> Result<[Linear; 2]> {
        let (w, b) = &self.affine;
        let channels = w.dim(0)?;
        let half = |of: &Tensor, first| of.narrow(0, first, channels);
        let column = |of: &Tensor| of.reshape((channels, 1));
        let (scale, shift) = (half(self.proj.weight(), 0)?, half(self.proj.weight(), channels)?);
        let factor = (half(self.proj.bias(), 0)? + 1.0)?;
        let bias = ((&factor * b)? + half(self.proj.bias(), channels)?)?;
        Ok([
            Linear::of(scale.broadcast_mul(&column(w)?)?, (&factor * w)?),
            Linear::of((scale.broadcast_mul(&column(b)?)? + shift)?, bias),
        ])
    }
}

/// What all residual blocks of a network have in common.
#[derive(Clone, Copy)]
pub(super) struct BlockStyle {
    pub(super) emb_channels: usize,
    pub(super) scale_shift: bool,
    pub(super) dropout: f64,
    pub(super) order: Order,
}

/// Normalise, SiLU, convolve; condition on the time; SiLU, convolve; plus the input.
pub(super) struct ResBlock {
    in_norm: GroupNorm,
    in_conv: Conv2d,
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
        let skip = if c_in == c_out {
            None
        } else {
            Some(Conv2d::with_bias(c_in, c_out, ConvShape::one(1), vb.pp("skip_connection"))?)
        };
        let vb_in = vb.pp("in_layers");
        Ok(Self {
            in_norm: normalise(c_in, vb_in.pp(0))?,
            in_conv: Conv2d::with_bias(c_in, c_out, ConvShape::three(1), vb_in.pp(2))?,
            out_norm: Conditioning::new(c_out, style, &vb)?,
            out_conv: zeroed_conv(c_out, c_out, ConvShape::three(1), vb.pp("out_layers").pp(3))?,
            skip,
            dropout: style.dropout,
        })
    }

    /// # Shapes
    /// - `xs`: `c_in` channels to `c_out`
    /// - `emb`: `[batch, emb_channels]`, already through SiLU
    pub(super) fn forward(&self, xs: &Map, emb: &Tensor, pass: &mut Pass<'_>) -> Result<Map> {
        let hs = self.in_conv.forward_map(&self.in_norm.forward(xs, Activation::Silu)?)?;
        let hs = self.out_norm.forward(&hs, emb)?;
        let hs = self.out_conv.forward_map(&dropout(hs, self.dropout, pass)?)?;
        match &self.skip {
            Some(conv) => conv.forward_map(xs)?.add(&hs),
            None => xs.add(&hs),
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

/// A convolution over one dimension with a kernel of 1: a linear map of the channels. Its weight is
/// `[c_out, c_in, 1]`.
fn pointwise(c_in: usize, c_out: usize, init: Init, vb: VarBuilder) -> Result<Conv2d> {
    let weight = vb.get_with_hints((c_out, c_in, 1), "weight", init)?;
    Ok(Conv2d::pointwise(weight.unsqueeze(3)?, vb.get_with_hints(c_out, "bias", init)?))
}

/// Self-attention over the pixels.
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Conv2d,
    proj_out: Conv2d,
    heads: usize,
    scale: f64,
}

impl AttentionBlock {
    pub(super) fn new(channels: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        let bound = 1.0 / (channels as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        Ok(Self {
            norm: normalise(channels, vb.pp("norm"))?,
            qkv: pointwise(channels, 3 * channels, uniform, vb.pp("qkv"))?,
            proj_out: pointwise(channels, channels, init::ZERO, vb.pp("proj_out"))?,
            heads,
            scale: ((channels / heads) as f64).powf(-0.5),
        })
    }

    pub(super) fn forward(&self, xs: &Map) -> Result<Map> {
        // Each head has its queries, keys and values side by side.
        let qkv = self.qkv.forward_map(&self.norm.forward(xs, Activation::Identity)?)?;
        xs.add(&self.proj_out.forward_map(&qkv.attention(self.heads, self.scale)?)?)
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

    pub(super) fn forward(&self, xs: &Map) -> Result<Map> {
        match self {
            Self::Conv(conv) => conv.forward_map(xs)?.settled(),
            Self::Average => xs.avg_pool_2x(),
        }
    }
}
