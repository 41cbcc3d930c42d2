//! Builds a backbone and its heads on the tensors of one state dict.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::network::{COSINE_EPS, Headed, Heads, unit};
use super::{Training, Variant};
use crate::arch::Network;
use crate::layers::{BatchNorm2d, Linear};

pub(super) fn build(
    variant: &Variant,
    n_classes: usize,
    vb: VarBuilder<'static>,
) -> Result<Box<dyn Network>> {
    let Variant { backbone, training } = variant;
    if let Training::Ordinary { prefixed } = training {
        return backbone.build(n_classes, if *prefixed { vb.pp("backbone") } else { vb });
    }
    let last_layer = match training {
        Training::LearningConfidence | Training::RotPred | Training::Udg { .. } => Place::At("fc"),
        Training::Mcd => Place::At("fc1"),
        Training::GOdin { .. } | Training::Contrastive { .. } => Place::Nowhere,
        _ => Place::Own,
    };
    let prefix = if matches!(training, Training::Mos { .. }) { "" } else { "backbone." };
    let head_key = backbone.head_key();
    let (dtype, device) = (vb.dtype(), vb.device().clone());
    let backend: Box<dyn SimpleBackend> =
        Box::new(Backbone { vb: vb.clone(), prefix, head_key, last_layer });
    let of_backbone = VarBuilder::from_backend(backend, dtype, device);
    let network = backbone.build(variant.n_logits(n_classes), of_backbone)?;
    let d = network.head().weight().dim(1)?;
    let heads = match training {
        Training::LearningConfidence => Heads::Linear(Linear::new(d, 1, vb.pp("confidence"))?),
        Training::RotPred => Heads::Linear(Linear::new(d, 4, vb.pp("rot_fc"))?),
        Training::Mcd => Heads::Linear(Linear::new(d, n_classes, vb.pp("fc2"))?),
        Training::Udg { clusters } => Heads::Linear(Linear::new(d, *clusters, vb.pp("fc_aux"))?),
        Training::Rts { degrees } => {
            let vb = vb.pp("logvar_rts");
            let linear = Linear::new(d, *degrees, vb.pp("0"))?;
            Heads::Variance { linear, norm: BatchNorm2d::new(*degrees, vb.pp("1"))? }
        }
        Training::T2fNorm => Heads::Scaled { tau: positive(&vb, "tau")? },
        Training::Ascood => Heads::Standardised { sigma: positive(&vb, "sigma")? },
        Training::GOdin { inner } => Heads::Quotient {
            numerators: numerators(*inner, d, n_classes, vb.pp("h.h"))?,
            cosine: !inner,
            denominator: Linear::new(d, 1, vb.pp("g.0"))?,
            norm: BatchNorm2d::new(1, vb.pp("g.1"))?,
        },
        Training::Contrastive { hidden, out, prototypes } => {
            if *prototypes {
                for_training_alone(n_classes, d, *out, &vb)?;
            }
            let vb = vb.pp("head");
            Heads::Projection(match hidden {
                None => vec![Linear::new(d, *out, vb)?],
                Some(hidden) => vec![
                    Linear::new(d, *hidden, vb.pp("0"))?,
                    Linear::new(*hidden, *out, vb.pp("2"))?,
                ],
            })
        }
        Training::Mos { groups } => {
            let head = of_classes(network.head(), groups)?;
            Heads::Groups { groups: groups.clone(), head }
        }
        Training::Ordinary { .. } => unreachable!("returned above"),
    };
    Ok(Box::new(Headed { backbone: network, heads, layers: training.layers() }))
}

/// A buffer of one positive number.
fn positive(vb: &VarBuilder<'static>, name: &str) -> Result<f64> {
    let value = vb.get((), name)?.to_scalar::<f32>()?;
    if value > 0.0 && value.is_finite() {
        return Ok(f64::from(value));
    }
    candle_core::bail!("`{name}` expected a positive number, got {value}")
}

/// What the features are multiplied by: rows of length 1 for cosines, without bias.
fn numerators(inner: bool, d: usize, n_classes: usize, vb: VarBuilder<'static>) -> Result<Linear> {
    if inner {
        return Linear::new(d, n_classes, vb);
    }
    let weight = unit(&vb.get((n_classes, d), "weight")?, COSINE_EPS)?;
    let bias = Tensor::zeros(n_classes, weight.dtype(), weight.device())?;
    linear(weight, bias)
}

/// NPOS's prototypes and the network that tells its outliers: they must be whole, and serve nothing
/// once the training is over.
fn for_training_alone(
    n_classes: usize,
    d: usize,
    out: usize,
    vb: &VarBuilder<'static>,
) -> Result<()> {
    vb.get((n_classes, out), "prototypes")?;
    Linear::new(d, out, vb.pp("mlp.0"))?;
    Linear::new(out, 1, vb.pp("mlp.2"))?;
    Ok(())
}

/// The rows of a layer of grouped logits that belong to classes, in the order of the classes.
fn of_classes(all: &Linear, groups: &[Vec<usize>]) -> Result<Linear> {
    let mut rows = vec![0u32; groups.iter().map(Vec::len).sum()];
    let mut row = 0;
    for group in groups {
        for (nth, &class) in group.iter().enumerate() {
            match rows.get_mut(class) {
                Some(place) => *place = row + 1 + nth as u32,
                None => candle_core::bail!("groups of {} classes name class {class}", rows.len()),
            }
        }
        row += 1 + group.len() as u32;
    }
    let rows = Tensor::new(rows, all.weight().device())?;
    linear(all.weight().index_select(&rows, 0)?, all.bias().index_select(&rows, 0)?)
}

/// A linear layer of these tensors.
fn linear(weight: Tensor, bias: Tensor) -> Result<Linear> {
    let (c_out, c_in) = weight.dims2()?;
    let (dtype, device) = (weight.dtype(), weight.device().clone());
    let tensors: HashMap<String, Tensor> =
        [("weight".to_owned(), weight), ("bias".to_owned(), bias)].into();
    Linear::new(c_in, c_out, VarBuilder::from_tensors(tensors, dtype, &device))
}

/// Where the tensors of a backbone's last layer are.
enum Place {
    /// Where the backbone has it.
    Own,
    /// Beside the backbone, under this name.
    At(&'static str),
    /// There is none: zeros, so that the backbone can be built.
    Nowhere,
}

/// A backbone's tensors, as it calls them.
struct Backbone {
    vb: VarBuilder<'static>,
    prefix: &'static str,
    head_key: &'static str,
    last_layer: Place,
}

impl Backbone {
    /// What the state dict calls a tensor; nothing for one that is nowhere.
    fn key(&self, name: &str) -> Option<String> {
        let of_head = name.strip_prefix(self.head_key).filter(|rest| rest.starts_with('.'));
        match (of_head, &self.last_layer) {
            (None, _) | (Some(_), Place::Own) => Some(format!("{}{name}", self.prefix)),
            (Some(rest), Place::At(head)) => Some(format!("{head}{rest}")),
            (Some(_), Place::Nowhere) => None,
        }
    }
}

impl SimpleBackend for Backbone {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let Some(key) = self.key(name) else { return Tensor::zeros(shape, dtype, device) };
        // A last layer that the training has replaced may be there still.
        let replaced = format!("{}{name}", self.prefix);
        if key != replaced && self.vb.contains_tensor(&replaced) {
            self.vb.get_with_hints(shape.clone(), &replaced, init)?;
        }
        self.vb.get_with_hints_dtype(shape, &key, init, dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.key(name) {
            Some(key) => self.vb.get_unchecked_dtype(&key, dtype)?.to_device(device),
            None => candle_core::bail!("`{name}` is not there, and has no shape"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.key(name).is_none_or(|key| self.vb.contains_tensor(&key))
    }
}
