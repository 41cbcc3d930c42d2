//! The U-Net of "Denoising Diffusion Probabilistic Models" (Ho et al., 2020) as the code of
//! "Denoising Diffusion Implicit Models" (Song et al., 2021) writes it, class-conditional by an
//! embedding that is added to the time embedding.
//!
//! State-dict keys equal those of DiffOOD's `Model`, so its `.ckpt` files load as they are.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use oodbench_nn::kernels::{Activation, silu};
use oodbench_nn::layers::{Conv2d, ConvShape, GroupNorm};
use oodbench_nn::maps::{Form, Map};
use serde::{Deserialize, Serialize};

use super::blocks::{
    AttnBlock, ClassEmbedding, Downsample, ResnetBlock, TimeMlp, Upsample, normalise,
    timestep_embedding,
};
use super::check::{Sizes, check_groups};
use super::{EpsModel, Halves, NetConfigError, Pass};

/// Sizes of the network; names and meanings are those of the reference's configuration files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct DdimConfig {
    /// `simple`, or `bayesian`: then the file holds a `logvar` for each of 1000 steps, which
    /// nothing reads.
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
    /// Without effect: no sampler here draws noise of a variance. `fixedlarge` or `fixedsmall`.
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

/// Steps that the reference learns a variance for, whatever its schedule says.
const LOGVAR_STEPS: usize = 1000;

struct Level {
    blocks: Vec<ResnetBlock>,
    attn: Vec<AttnBlock>,
}

impl Level {
    fn forward(&self, i: usize, xs: &Map, temb: &Tensor, pass: &mut Pass<'_>) -> Result<Map> {
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
    form: Form,
    temb: TimeMlp,
    label_emb: ClassEmbedding,
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
    /// Builds the network on the variables of `vb`, to hold its activations in `form`.
    ///
    /// # Errors
    /// A configuration that makes no network, or a tensor that is missing or has another shape.
    pub fn new(config: &DdimConfig, form: Form, vb: VarBuilder) -> Result<Self> {
        config.check().map_err(candle_core::Error::wrap)?;
        if config.kind == "bayesian" {
            vb.get_with_hints(LOGVAR_STEPS, "logvar", Init::Const(0.0))?;
        }
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

        Ok(Self {
            temb: TimeMlp::new(ch, temb_ch, vb.pp("temb.dense"))?,
            label_emb: ClassEmbedding::new(config.num_classes, temb_ch, &vb)?,
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
            form,
        })
    }
}

impl DdimConfig {
    pub(super) fn check(&self) -> std::result::Result<(), NetConfigError> {
        let fail = |key, message| Err(NetConfigError { key, message });
        Sizes {
            image_size: self.image_size,
            num_classes: self.num_classes,
            positive: &[
                ("in_channels", self.in_channels),
                ("out_ch", self.out_ch),
                ("ch", self.ch),
                ("num_res_blocks", self.num_res_blocks),
            ],
            channels: self.ch,
            multiples: ("ch_mult", &self.ch_mult),
            dropout: self.dropout,
        }
        .check()?;
        check_groups("ch", self.ch)?;
        if !["simple", "bayesian"].contains(&self.kind.as_str()) {
            return fail("type", format!("expected `simple` or `bayesian`, got `{}`", self.kind));
        }
        if !["fixedlarge", "fixedsmall"].contains(&self.var_type.as_str()) {
            let got = &self.var_type;
            return fail("var_type", format!("expected `fixedlarge` or `fixedsmall`, got `{got}`"));
        }
        Ok(())
    }
}

impl EpsModel for DdimUNet {
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

impl Halves for DdimUNet {
    fn condition(&self, t: &Tensor, y: Option<&Tensor>) -> Result<Tensor> {
        let temb = self.temb.forward(&timestep_embedding(t, self.config.ch)?)?;
        // Every block begins with the same non-linearity of it.
        silu(&self.label_emb.add_to(temb, y)?)
    }

    fn eps_under(&self, x_t: &Tensor, temb: &Tensor, mut pass: Pass<'_>) -> Result<Tensor> {
        let pass = &mut pass;
        let xs = Map::enter(x_t, self.form)?;
        let mut skips = vec![self.conv_in.forward_map(&xs)?.settled()?];
        for (level, downsample) in &self.down {
            for i in 0..level.blocks.len() {
                let hs = level.forward(i, last(&skips), temb, pass)?;
                skips.push(hs);
            }
            if let Some(downsample) = downsample {
                let hs = downsample.forward(last(&skips))?;
                skips.push(hs);
            }
        }

        let hs = self.mid_block_1.forward(last(&skips), temb, pass)?;
        let hs = self.mid_attn_1.forward(&hs)?;
        let mut hs = self.mid_block_2.forward(&hs, temb, pass)?;

        for (level, upsample) in &self.up {
            for i in 0..level.blocks.len() {
                let skip = skips.pop().expect("as many skips as blocks on the way up");
                hs = level.forward(i, &hs.cat_channels(&skip)?, temb, pass)?;
            }
            if let Some(upsample) = upsample {
                hs = upsample.forward(&hs)?;
            }
        }
        let out = self.conv_out.forward_map(&self.norm_out.forward(&hs, Activation::Silu)?)?;
        out.leave(self.config.out_ch)
    }
}

fn last(skips: &[Map]) -> &Map {
    skips.last().expect("the input convolution is always there")
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use oodbench_nn::formula;
    use serde_json::{Value, json};

    use super::*;

    /// A small network with some keys exchanged.
    fn config(changes: &Value) -> DdimConfig {
        let mut config = json!({
            "image_size": 16, "num_classes": 10, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.1,
            "resamp_with_conv": true,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    }

    /// Eight values, evenly spaced over the output, from DiffOOD's `Model` (commit 1c87ba0) on the
    /// same weights, PyTorch on the CPU.
    fn check(changes: Value, expected: [f32; 8]) {
        let vb = formula::var_builder(Default::default());
        let model = DdimUNet::new(&config(&changes), Form::FIRST, vb).unwrap();
        let xs = formula::normal("xs", 2 * 768);
        let x = Tensor::from_vec(xs, (2, 3, 16, 16), &Device::Cpu).unwrap();
        let t = Tensor::new(&[3f32, 999.0], &Device::Cpu).unwrap();
        let y = Tensor::new(&[1u32, 10], &Device::Cpu).unwrap();
        let y = (model.n_classes() > 0).then_some(&y);
        let ours = model.eps(&x, &t, y, Pass::Sample).unwrap();
        let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
        for (i, expected) in expected.iter().enumerate() {
            let ours = ours[i * (ours.len() - 1) / 7];
            assert!((ours - expected).abs() < 2e-5, "{changes}: {ours} {expected}");
        }
    }

    #[test]
    fn noise_is_that_of_the_reference() {
        check(
            json!({"resamp_with_conv": false, "type": "bayesian"}),
            [0.243011, -0.223332, -0.25539, 0.331263, 0.157966, -0.173597, -0.311483, -0.344461],
        );
        check(
            json!({"ch_mult": [1, 2, 3], "attn_resolutions": [16, 4], "num_res_blocks": 2}),
            [-0.026821, -0.005108, -0.86908, -0.406789, -0.309011, -0.412639, -1.430897, -0.129098],
        );
        check(
            json!({"ch_mult": [2], "attn_resolutions": [], "num_classes": 0, "ch": 64}),
            [0.02953, -0.007323, 0.077025, 0.668774, -1.232105, 0.412863, -0.33327, -0.260377],
        );
        check(
            json!({"ch_mult": [3, 1, 2], "num_res_blocks": 3, "attn_resolutions": [4, 8]}),
            [0.317283, 0.358689, 0.345521, -0.110774, 0.339987, 0.124987, 0.782832, -0.039931],
        );
    }

    #[test]
    fn a_configuration_that_makes_no_network_names_its_key() {
        let check = |changes: Value, expected: &str| {
            assert_eq!(config(&changes).check().unwrap_err().to_string(), expected);
        };
        check(json!({"type": "sync"}), "`type` expected `simple` or `bayesian`, got `sync`");
        check(json!({"image_size": 15}), "`image_size` expected to be halved 1 times, got 15");
        check(json!({"image_size": 0}), "`image_size` expected 1 to 65536, got 0");
        check(json!({"ch_mult": []}), "`ch_mult` expected 1 to 16 multiples, got 0");
        check(json!({"ch_mult": [1, 0]}), "`ch_mult` expected multiples from 1 to 2048, got 0");
        check(json!({"ch_mult": [2049]}), "`ch_mult` expected multiples from 1 to 2048, got 2049");
        check(json!({"ch": 0}), "`ch` expected 1 to 65536, got 0");
        check(json!({"ch": 33}), "`ch` expected a multiple of 32, got 33");
        check(json!({"ch": 65537}), "`ch` expected 1 to 65536, got 65537");
        check(json!({"num_classes": 65537}), "`num_classes` expected at most 65536, got 65537");
        check(json!({"dropout": 1.0}), "`dropout` expected at least 0 and below 1, got 1");
    }
}
