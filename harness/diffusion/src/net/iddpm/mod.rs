//! The U-Net of "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021),
//! class-conditional by an embedding that is added to the time embedding.
//!
//! State-dict keys equal those of DiffOOD's `UNetModel`, so its `.ckpt` files load as they are.
//! Of the output, the first half is the noise and the rest the learned variance, which neither
//! this crate nor the reference uses.

mod blocks;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use oodbench_nn::kernels::{Activation, silu};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use oodbench_nn::maps::{Form, Map};
use serde::{Deserialize, Serialize};

use super::blocks::{ClassEmbedding, Upsample};
use super::check::{Sizes, check_groups};
use super::{EpsModel, Halves, NetConfigError, Pass};
use blocks::{
    AttentionBlock, BlockStyle, Downsample, ResBlock, normalise, timestep_embedding, zeroed_conv,
};

/// Sizes of the network; names and meanings are those of the reference's configuration files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct IddpmConfig {
    /// Side of the images.
    pub image_size: usize,
    /// 0 for an unconditional network.
    pub num_classes: usize,
    pub in_channels: usize,
    /// Channels of the first level; a multiple of 32.
    pub model_channels: usize,
    /// `in_channels`, or twice as many where the network predicts a variance too.
    pub out_channels: usize,
    pub num_res_blocks: usize,
    /// Factors of downsampling (1 at the first level, 2 at the second, 4, …) with self-attention
    /// behind each residual block.
    pub attention_resolutions: Vec<usize>,
    /// Fraction of activations dropped in training.
    pub dropout: f64,
    /// Channels of each level, as multiples of `model_channels`; the first one is 1.
    pub channel_mult: Vec<usize>,
    /// Dimensions of an image: 2.
    #[serde(default = "two")]
    pub dims: usize,
    /// Whether resolutions are changed by convolutions, or by averaging and repeating; at the
    /// latter the reference fails, so here it is what the iDDPM authors' own code does.
    #[serde(default = "yes")]
    pub conv_resample: bool,
    /// Whether the time scales and shifts the activations, or is added to them.
    pub use_scale_shift_norm: bool,
    /// Without effect: in the reference it saves memory in training and changes no number.
    #[serde(default)]
    pub use_checkpoint: bool,
    /// Heads of each attention on the way down and in the middle.
    pub num_heads: usize,
    /// Heads on the way up; -1 stands for `num_heads`, which the reference means and fails at.
    #[serde(default = "as_on_the_way_down")]
    pub num_heads_upsample: i64,
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

fn as_on_the_way_down() -> i64 {
    -1
}

impl IddpmConfig {
    fn heads_upsample(&self) -> usize {
        usize::try_from(self.num_heads_upsample).unwrap_or(self.num_heads)
    }

    pub(super) fn check(&self) -> std::result::Result<(), NetConfigError> {
        let fail = |key, message| Err(NetConfigError { key, message });
        let n_levels = self.channel_mult.len();
        Sizes {
            image_size: self.image_size,
            num_classes: self.num_classes,
            positive: &[
                ("in_channels", self.in_channels),
                ("model_channels", self.model_channels),
                ("num_res_blocks", self.num_res_blocks),
                ("num_heads", self.num_heads),
            ],
            channels: self.model_channels,
            multiples: ("channel_mult", &self.channel_mult),
            dropout: self.dropout,
        }
        .check()?;
        check_groups("model_channels", self.model_channels)?;
        if self.channel_mult[0] != 1 {
            let got = &self.channel_mult;
            return fail("channel_mult", format!("expected 1 and more multiples, got {got:?}"));
        }
        if self.dims != 2 {
            return fail("dims", format!("expected 2, got {}", self.dims));
        }
        let (low, high) = (self.in_channels, 2 * self.in_channels);
        if !(low..=high).contains(&self.out_channels) {
            let got = self.out_channels;
            return fail("out_channels", format!("expected {low} to {high}, got {got}"));
        }
        if self.num_heads_upsample < -1 || self.num_heads_upsample == 0 {
            let got = self.num_heads_upsample;
            return fail("num_heads_upsample", format!("expected at least 1, or -1, got {got}"));
        }
        // Every level with attention, and the last one, whose middle has it always.
        for (level, mult) in self.channel_mult.iter().enumerate() {
            let channels = mult * self.model_channels;
            let (is_last, has_attention) = (level + 1 == n_levels, self.has_attention(level));
            if (is_last || has_attention) && !channels.is_multiple_of(self.num_heads) {
                let message = format!("expected to divide {channels}, got {}", self.num_heads);
                return fail("num_heads", message);
            }
            if has_attention && !channels.is_multiple_of(self.heads_upsample()) {
                let got = self.heads_upsample();
                let message = format!("expected to divide {channels}, got {got}");
                return fail("num_heads_upsample", message);
            }
        }
        Ok(())
    }

    fn has_attention(&self, level: usize) -> bool {
        self.attention_resolutions.contains(&(1 << level))
    }
}

/// A residual block, and the attention behind it where the resolution has one.
struct Step {
    block: ResBlock,
    attention: Option<AttentionBlock>,
}

impl Step {
    fn forward(&self, xs: &Map, emb: &Tensor, pass: &mut Pass<'_>) -> Result<Map> {
        let xs = self.block.forward(xs, emb, pass)?;
        match &self.attention {
            Some(attention) => attention.forward(&xs),
            None => Ok(xs),
        }
    }
}

/// A module of the way down.
enum Down {
    Step(Box<Step>),
    Resample(Downsample),
}

/// The network.
pub struct IddpmUNet {
    config: IddpmConfig,
    form: Form,
    time_embed: (Linear, Linear),
    label_emb: ClassEmbedding,
    conv_in: Conv2d,
    down: Vec<Down>,
    middle: (ResBlock, AttentionBlock, ResBlock),
    up: Vec<(Step, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl IddpmUNet {
    /// Builds the network on the variables of `vb`, to hold its activations in `form`.
    ///
    /// # Errors
    /// A configuration that makes no network, or a tensor that is missing or has another shape.
    pub fn new(config: &IddpmConfig, form: Form, vb: VarBuilder) -> Result<Self> {
        config.check().map_err(candle_core::Error::wrap)?;
        let n_levels = config.channel_mult.len();
        let emb_channels = 4 * config.model_channels;
        let style = BlockStyle {
            emb_channels,
            scale_shift: config.use_scale_shift_norm,
            dropout: config.dropout,
            order: form.order,
        };
        let step = |c_in, c_out, heads: Option<usize>, vb: &VarBuilder| -> Result<Step> {
            let attention = heads.map(|heads| AttentionBlock::new(c_out, heads, vb.pp(1)));
            let block = ResBlock::new(c_in, c_out, style, vb.pp(0))?;
            Ok(Step { block, attention: attention.transpose()? })
        };

        let mut channels = config.model_channels;
        // Channels of every activation that a skip connection carries, in order of execution.
        let mut skips = vec![channels];
        let mut down = Vec::new();
        let vb_down = vb.pp("input_blocks");
        for (level, mult) in config.channel_mult.iter().enumerate() {
            let c_out = mult * config.model_channels;
            let heads = config.has_attention(level).then_some(config.num_heads);
            for _ in 0..config.num_res_blocks {
                // Module 0 is the first convolution.
                let vb = vb_down.pp(down.len() + 1);
                down.push(Down::Step(Box::new(step(channels, c_out, heads, &vb)?)));
                channels = c_out;
                skips.push(channels);
            }
            if level + 1 < n_levels {
                let vb = vb_down.pp(down.len() + 1).pp(0);
                down.push(Down::Resample(Downsample::new(channels, config.conv_resample, vb)?));
                skips.push(channels);
            }
        }

        let vb_middle = vb.pp("middle_block");
        let middle = (
            ResBlock::new(channels, channels, style, vb_middle.pp(0))?,
            AttentionBlock::new(channels, config.num_heads, vb_middle.pp(1))?,
            ResBlock::new(channels, channels, style, vb_middle.pp(2))?,
        );

        let mut up = Vec::new();
        let vb_up = vb.pp("output_blocks");
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let c_out = mult * config.model_channels;
            let heads = config.has_attention(level).then_some(config.heads_upsample());
            for i in 0..=config.num_res_blocks {
                let vb = vb_up.pp(up.len());
                let skip = skips.pop().expect("one skip connection for each block of the way up");
                let this = step(channels + skip, c_out, heads, &vb)?;
                channels = c_out;
                let upsample = if level > 0 && i == config.num_res_blocks {
                    let vb = vb.pp(if heads.is_some() { 2 } else { 1 });
                    Some(Upsample::new(channels, config.conv_resample, vb)?)
                } else {
                    None
                };
                up.push((this, upsample));
            }
        }

        let (three, vb_time, vb_out) = (ConvShape::three(1), vb.pp("time_embed"), vb.pp("out"));
        let conv_in = vb_down.pp(0).pp(0);
        Ok(Self {
            time_embed: (
                Linear::new(config.model_channels, emb_channels, vb_time.pp(0))?,
                Linear::new(emb_channels, emb_channels, vb_time.pp(2))?,
            ),
            label_emb: ClassEmbedding::new(config.num_classes, emb_channels, &vb)?,
            conv_in: Conv2d::with_bias(config.in_channels, config.model_channels, three, conv_in)?,
            down,
            middle,
            up,
            norm_out: normalise(channels, vb_out.pp(0))?,
            conv_out: zeroed_conv(channels, config.out_channels, three, vb_out.pp(2))?,
            config: config.clone(),
            form,
        })
    }
}

impl EpsModel for IddpmUNet {
    fn eps(&self, x_t: &Tensor, t: &Tensor, y: Option<&Tensor>, pass: Pass<'_>) -> Result<Tensor> {
        self.eps_under(x_t, &self.condition(t, y)?, pass)
    }

    fn n_classes(&self) -> usize {
        self.config.num_classes
    }

    fn image_size(&self) -> usize {
        self.config.image_size
    }

    fn halves(&self) -> Option<&dyn Halves> {
        Some(self)
    }
}

impl Halves for IddpmUNet {
    /// The time embedding of each image plus that of its class, through SiLU, with which every
    /// block begins.
    fn condition(&self, t: &Tensor, y: Option<&Tensor>) -> Result<Tensor> {
        let (first, second) = &self.time_embed;
        let emb = timestep_embedding(t, self.config.model_channels)?;
        let emb = second.forward(&silu(&first.forward(&emb)?)?)?;
        silu(&self.label_emb.add_to(emb, y)?)
    }

    fn eps_under(&self, x_t: &Tensor, emb: &Tensor, mut pass: Pass<'_>) -> Result<Tensor> {
        let pass = &mut pass;
        let xs = Map::enter(x_t, self.form)?;
        let mut hs = self.conv_in.forward_map(&xs)?.settled()?;
        let mut skips = vec![hs.clone()];
        for module in &self.down {
            hs = match module {
                Down::Step(step) => step.forward(&hs, emb, pass)?,
                Down::Resample(downsample) => downsample.forward(&hs)?,
            };
            skips.push(hs.clone());
        }

        let (first, attention, second) = &self.middle;
        hs = attention.forward(&first.forward(&hs, emb, pass)?)?;
        hs = second.forward(&hs, emb, pass)?;

        for (step, upsample) in &self.up {
            let skip = skips.pop().expect("as many skips as blocks on the way up");
            hs = step.forward(&hs.cat_channels(&skip)?, emb, pass)?;
            if let Some(upsample) = upsample {
                hs = upsample.forward(&hs)?;
            }
        }
        let out = self.conv_out.forward_map(&self.norm_out.forward(&hs, Activation::Silu)?)?;
        // The rest is the variance.
        out.leave(self.config.in_channels)
    }
}

#[cfg(test)]
mod tests;
