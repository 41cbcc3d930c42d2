//! Which network a file holds, where it does not say: read off the names and shapes of its
//! tensors.
//!
//! Three things leave no trace there. The side of the images and the number of attention heads
//! have to be given; dropout is of use in training alone and becomes 0.

use std::collections::BTreeMap;
use std::path::Path;

use oodbench_nn::checkpoint::StateDict;

use super::LoadError;
use crate::net::{DdimConfig, IddpmConfig, NetConfig};

/// The configuration of the network whose tensors `file` holds.
///
/// # Errors
/// Tensors of another network, shapes that make none, and what leaves no trace and is not given.
pub(super) fn read_off(
    file: &StateDict,
    image_size: Option<usize>,
    num_heads: Option<usize>,
) -> Result<NetConfig, LoadError> {
    let tensors = Tensors { path: file.path(), shapes: file.shapes() };
    if tensors.has("conv_in.weight") {
        return ddim(&tensors, image_size).map(NetConfig::Ddim);
    }
    if tensors.has("input_blocks.0.0.weight") {
        return iddpm(&tensors, image_size, num_heads).map(NetConfig::Iddpm);
    }
    Err(LoadError::UnknownNetwork { path: file.path().to_owned() })
}

struct Tensors<'a> {
    path: &'a Path,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Tensors<'_> {
    fn has(&self, key: &str) -> bool {
        self.shapes.contains_key(key)
    }

    fn shape(&self, key: &str) -> Result<&[usize], LoadError> {
        match self.shapes.get(key) {
            Some(shape) => Ok(shape),
            None => Err(LoadError::NoTensor { path: self.path.to_owned(), key: key.to_owned() }),
        }
    }

    /// Channels out of and into a convolution.
    fn kernel(&self, key: &str) -> Result<(usize, usize), LoadError> {
        match self.shape(key)? {
            &[c_out, c_in, height, width] if ![c_out, c_in, height, width].contains(&0) => {
                Ok((c_out, c_in))
            }
            got => Err(self.unfit(key, "a kernel of four sizes", got)),
        }
    }

    /// Channels out of a convolution, as a multiple of `base`.
    fn multiple(&self, key: &str, base: usize) -> Result<usize, LoadError> {
        let (c_out, _) = self.kernel(key)?;
        if !c_out.is_multiple_of(base) {
            let expected = "a multiple of the channels of the first convolution";
            return Err(self.unfit(key, expected, &[c_out, base]));
        }
        Ok(c_out / base)
    }

    /// Classes that the label embedding knows, without "no class".
    fn n_classes(&self) -> usize {
        let rows = self.shapes.get("label_emb.weight").and_then(|shape| shape.first());
        rows.map_or(0, |rows| rows.saturating_sub(1))
    }

    fn image_size(&self, given: Option<usize>) -> Result<usize, LoadError> {
        given.ok_or_else(|| LoadError::NoImageSize { path: self.path.to_owned() })
    }

    fn unfit(&self, key: &str, expected: &'static str, got: &[usize]) -> LoadError {
        let (path, key) = (self.path.to_owned(), key.to_owned());
        LoadError::Shape { path, key, expected, got: got.to_vec() }
    }
}

fn ddim(tensors: &Tensors<'_>, image_size: Option<usize>) -> Result<DdimConfig, LoadError> {
    let (ch, in_channels) = tensors.kernel("conv_in.weight")?;
    let (out_ch, _) = tensors.kernel("conv_out.weight")?;
    let count = |key: &dyn Fn(usize) -> String| (0..).take_while(|&i| tensors.has(&key(i))).count();
    let n_levels = count(&|level| format!("down.{level}.block.0.conv1.weight"));
    let num_res_blocks = count(&|i| format!("down.0.block.{i}.conv1.weight"));
    let ch_mult = (0..n_levels)
        .map(|level| tensors.multiple(&format!("down.{level}.block.0.conv1.weight"), ch))
        .collect::<Result<_, _>>()?;
    let image_size = tensors.image_size(image_size)?;
    let has_attention = |level: &usize| tensors.has(&format!("down.{level}.attn.0.q.weight"));
    let kind = if tensors.has("logvar") { "bayesian" } else { "simple" };
    Ok(DdimConfig {
        kind: kind.to_owned(),
        image_size,
        num_classes: tensors.n_classes(),
        in_channels,
        out_ch,
        ch,
        num_res_blocks,
        attn_resolutions: (0..n_levels)
            .filter(has_attention)
            .map(|level| image_size.checked_shr(level as u32).unwrap_or(0))
            .collect(),
        ch_mult,
        dropout: 0.0,
        var_type: "fixedlarge".to_owned(),
        resamp_with_conv: n_levels < 2 || tensors.has("down.0.downsample.conv.weight"),
    })
}

fn iddpm(
    tensors: &Tensors<'_>,
    image_size: Option<usize>,
    num_heads: Option<usize>,
) -> Result<IddpmConfig, LoadError> {
    let (model_channels, in_channels) = tensors.kernel("input_blocks.0.0.weight")?;
    let (out_channels, _) = tensors.kernel("out.2.weight")?;
    let conv = |i: usize| format!("input_blocks.{i}.0.in_layers.2.weight");
    let (mut channel_mult, mut attention_resolutions) = (Vec::new(), Vec::new());
    let (mut num_res_blocks, mut in_level) = (0, 0);
    let mut i = 1;
    loop {
        if tensors.has(&conv(i)) {
            if in_level == 0 {
                if tensors.has(&format!("input_blocks.{i}.1.qkv.weight")) {
                    let level = channel_mult.len() as u32;
                    attention_resolutions.push(1usize.checked_shl(level).unwrap_or(0));
                }
                channel_mult.push(tensors.multiple(&conv(i), model_channels)?);
            }
            in_level += 1;
            num_res_blocks = num_res_blocks.max(in_level);
        } else if tensors.has(&conv(i + 1)) {
            // A change of resolution, which has tensors only if it is a convolution.
            in_level = 0;
        } else {
            break;
        }
        i += 1;
    }
    let image_size = tensors.image_size(image_size)?;
    let Some(num_heads) = num_heads else {
        return Err(LoadError::NoHeads { path: tensors.path.to_owned() });
    };
    let emb_key = "middle_block.0.emb_layers.1.weight";
    let emb_out = tensors.shape(emb_key)?.first().copied().unwrap_or(0);
    let (c_middle, _) = tensors.kernel("middle_block.0.in_layers.2.weight")?;
    Ok(IddpmConfig {
        image_size,
        num_classes: tensors.n_classes(),
        in_channels,
        model_channels,
        out_channels,
        num_res_blocks,
        attention_resolutions,
        dropout: 0.0,
        conv_resample: channel_mult.len() < 2
            || tensors.has(&format!("input_blocks.{}.0.op.weight", num_res_blocks + 1)),
        channel_mult,
        dims: 2,
        use_scale_shift_norm: emb_out == 2 * c_middle,
        use_checkpoint: false,
        num_heads,
        num_heads_upsample: -1,
    })
}
