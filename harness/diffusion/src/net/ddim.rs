//! The U-Net of "Denoising Diffusion Probabilistic Models" (Ho et al., 2020) as the code of
//! "Denoising Diffusion Implicit Models" (Song et al., 2021) writes it, class-conditional by an
//! embedding that is added to the time embedding.
//!
//! State-dict keys equal those of DiffOOD's `Model`, so its `.ckpt` files load as they are.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use oodbench_nn::kernels::{Activation, silu};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm};
use serde::{Deserialize, Serialize};

use super::blocks::{
    AttnBlock, Downsample, ResnetBlock, TimeMlp, Upsample, normalise, timestep_embedding,
};
use super::{EpsModel, Pass};

/// Sizes of the network; names and meanings are those of the reference's configuration files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdimConfig {
    /// `simple`: no learned variance.
    #[serde(rename = "type", default = "simple")]
    pub kind: String,
    /// Side of the images.
    pub image_size: usize,
    /// 0 for an unconditional network.
    pub num_classes: usize,
    pub in_channels: usize,
    pub out_ch: usize,
    /// Channels of the first level; a multiple of 32.
    pub ch: usize,
    /// Channels of each level, as multiples of `ch`.
    pub ch_mult: Vec<usize>,
    pub num_res_blocks: usize,
    /// Resolutions with self-attention behind each residual block.
    pub attn_resolutions: Vec<usize>,
    /// Fraction of activations dropped in training.
    pub dropout: f64,
    /// Read and kept for the reference's files; the detection does not sample the variance.
    #[serde(default = "fixed_large")]
    pub var_type: String,
    pub resamp_with_conv: bool,
}

fn simple() -> String {
    "simple".to_owned()
}

fn fixed_large() -> String {
    "fixedlarge".to_owned()
}

struct Level {
    blocks: Vec<ResnetBlock>,
    attn: Vec<AttnBlock>,
}

impl Level {
    fn forward(&self, i: usize, xs: &Tensor, temb: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let xs = self.blocks[i].forward(xs, temb, pass)?;
        match self.attn.get(i) {
            Some(attn) => attn.forward(&xs),
            None => Ok(xs),
        }
    }
}

/// The network.
pub struct DdimUNet {
    config: DdimConfig,
    temb: TimeMlp,
    label_emb: Option<Tensor>,
    conv_in: Conv2d,
    down: Vec<(Level, Option<Downsample>)>,
    mid_block_1: ResnetBlock,
    mid_attn_1: AttnBlock,
    mid_block_2: ResnetBlock,
    up: Vec<(Level, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl DdimUNet {
    /// Builds the network on the variables of `vb`.
    ///
    /// # Errors
    /// A configuration that makes no network, or a tensor that is missing or has another shape.
    pub fn new(config: &DdimConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let ch = config.ch;
        let temb_ch = 4 * ch;
        let n_levels = config.ch_mult.len();
        let resolution = |level: usize| config.image_size >> level;
        let has_attention = |level| config.attn_resolutions.contains(&resolution(level));
        let block = |c_in, c_out, vb| ResnetBlock::new(c_in, c_out, temb_ch, config.dropout, vb);

        let mut channels = ch;
        let mut down = Vec::new();
        // Channels of every activation that a skip connection carries, in order of execution.
        let mut skips = vec![ch];
        for (level, mult) in config.ch_mult.iter().enumerate() {
            let vb = vb.pp("down").pp(level);
            let c_out = ch * mult;
            let mut this = Level { blocks: Vec::new(), attn: Vec::new() };
            for i in 0..config.num_res_blocks {
                this.blocks.push(block(channels, c_out, vb.pp("block").pp(i))?);
                channels = c_out;
                skips.push(channels);
                if has_attention(level) {
                    this.attn.push(AttnBlock::new(channels, vb.pp("attn").pp(i))?);
                }
            }
            let downsample = if level + 1 < n_levels {
                skips.push(channels);
                let vb = vb.pp("downsample");
                Some(Downsample::new(channels, config.resamp_with_conv, vb)?)
            } else {
                None
            };
            down.push((this, downsample));
        }

        let mid_block_1 = block(channels, channels, vb.pp("mid.block_1"))?;
        let mid_attn_1 = AttnBlock::new(channels, vb.pp("mid.attn_1"))?;
        let mid_block_2 = block(channels, channels, vb.pp("mid.block_2"))?;

        let mut up = Vec::new();
        for (level, mult) in config.ch_mult.iter().enumerate().rev() {
            let vb = vb.pp("up").pp(level);
            let c_out = ch * mult;
            let mut this = Level { blocks: Vec::new(), attn: Vec::new() };
            for i in 0..=config.num_res_blocks {
                let skip = skips.pop().expect("one skip connection for each block of the way up");
                this.blocks.push(block(channels + skip, c_out, vb.pp("block").pp(i))?);
                channels = c_out;
                if has_attention(level) {
                    this.attn.push(AttnBlock::new(channels, vb.pp("attn").pp(i))?);
                }
            }
            let upsample = if level > 0 {
                Some(Upsample::new(channels, config.resamp_with_conv, vb.pp("upsample"))?)
            } else {
                None
            };
            up.push((this, upsample));
        }

        let label_emb = if config.num_classes > 0 {
            let init = Init::Randn { mean: 0.0, stdev: 1.0 };
            let shape = (config.num_classes + 1, temb_ch);
            Some(vb.get_with_hints(shape, "label_emb.weight", init)?)
        } else {
            None
        };
        Ok(Self {
            temb: TimeMlp::new(ch, temb_ch, vb.pp("temb.dense"))?,
            label_emb,
            conv_in: Conv2d::with_bias(
                config.in_channels,
                ch,
                ConvShape::three(1),
                vb.pp("conv_in"),
            )?,
            down,
            mid_block_1,
            mid_attn_1,
            mid_block_2,
            up,
            norm_out: normalise(channels, vb.pp("norm_out"))?,
            conv_out: Conv2d::with_bias(
                channels,
                config.out_ch,
                ConvShape::three(1),
                vb.pp("conv_out"),
            )?,
            config: config.clone(),
        })
    }
}

impl DdimConfig {
    fn check(&self) -> Result<()> {
        let n_levels = self.ch_mult.len();
        if n_levels == 0 || self.num_res_blocks == 0 || self.ch == 0 {
            candle_core::bail!("`ch_mult`, `num_res_blocks` and `ch` must not be empty or 0");
        }
        if self.kind != "simple" {
            candle_core::bail!("`type` expected `simple`, got `{}`", self.kind);
        }
        if !self.image_size.is_multiple_of(1 << (n_levels - 1)) {
            candle_core::bail!(
                "`image_size` expected a multiple of {} for {n_levels} levels, got {}",
                1 << (n_levels - 1),
                self.image_size
            );
        }
        Ok(())
    }
}

impl EpsModel for DdimUNet {
    fn eps(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        y: Option<&Tensor>,
        mut pass: Pass<'_>,
    ) -> Result<Tensor> {
        let pass = &mut pass;
        let mut temb = self.temb.forward(&timestep_embedding(t, self.config.ch)?)?;
        match (&self.label_emb, y) {
            (Some(table), Some(y)) => temb = (temb + table.embedding(y)?)?,
            (Some(_), None) => candle_core::bail!("a class-conditional network needs classes"),
            (None, Some(_)) => candle_core::bail!("an unconditional network takes no classes"),
            (None, None) => {}
        }
        // Every block begins with the same non-linearity of it.
        let temb = silu(&temb)?;

        let mut skips = vec![self.conv_in.forward(x_t)?];
        for (level, downsample) in &self.down {
            for i in 0..level.blocks.len() {
                let hs = level.forward(i, last(&skips), &temb, pass)?;
                skips.push(hs);
            }
            if let Some(downsample) = downsample {
                let hs = downsample.forward(last(&skips))?;
                skips.push(hs);
            }
        }

        let hs = self.mid_block_1.forward(last(&skips), &temb, pass)?;
        let hs = self.mid_attn_1.forward(&hs)?;
        let mut hs = self.mid_block_2.forward(&hs, &temb, pass)?;

        for (level, upsample) in &self.up {
            for i in 0..level.blocks.len() {
                let skip = skips.pop().expect("as many skips as blocks on the way up");
                hs = level.forward(i, &Tensor::cat(&[&hs, &skip], 1)?, &temb, pass)?;
            }
            if let Some(upsample) = upsample {
                hs = upsample.forward(&hs)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&hs, Activation::Silu)?)
    }

    fn n_classes(&self) -> usize {
        self.config.num_classes
    }

    fn image_size(&self) -> usize {
        self.config.image_size
    }
}

fn last(skips: &[Tensor]) -> &Tensor {
    skips.last().expect("the input convolution is always there")
}
