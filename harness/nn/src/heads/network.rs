//! Runs a backbone and its heads.

use candle_core::{D, Result, Tensor};

use crate::arch::{Layer, LayerKind, Network, Outputs, Taps};
use crate::layers::{BatchNorm2d, Linear, Mode};

/// G-ODIN adds this to lengths.
pub(super) const COSINE_EPS: f64 = 1e-4;

/// A backbone with heads beside it.
pub(super) struct Headed {
    pub(super) backbone: Box<dyn Network>,
    pub(super) heads: Heads,
    /// What the heads offer.
    pub(super) layers: &'static [&'static str],
}

/// What stands behind the features.
pub(super) enum Heads {
    /// A linear layer beside the classes, which is the only layer that is offered.
    Linear(Linear),
    /// Logarithms of variances.
    Variance { linear: Linear, norm: BatchNorm2d },
    /// Logits of features of length 1 / `tau`.
    Scaled { tau: f64 },
    /// Logits of standardised features, times `sigma`.
    Standardised { sigma: f64 },
    /// Logits are `numerators / denominator`.
    Quotient { numerators: Linear, cosine: bool, denominator: Linear, norm: BatchNorm2d },
    /// One linear layer, or two with a ReLU between them, and then length 1.
    Projection(Vec<Linear>),
    /// Logits in groups; `head` has the rows of the classes alone.
    Groups { groups: Vec<Vec<usize>>, head: Linear },
}

/// Rows divided by their length plus `eps`.
///
/// # Shapes
/// `xs`: `[n, d]`
pub(super) fn unit(xs: &Tensor, eps: f64) -> Result<Tensor> {
    xs.broadcast_div(&(length(xs)? + eps)?)
}

/// The length of each row, `[n, 1]`, at least 1e-12. The gradient of a row of zeros is 0.
fn length(xs: &Tensor) -> Result<Tensor> {
    xs.sqr()?.sum_keepdim(1)?.maximum(1e-24)?.sqrt()
}

/// Logarithms of probabilities where logits stand in groups of these sizes, each behind a logit for
/// "none of these": those of "none of these", `[n, n_groups]`, and those of the classes within their
/// groups, `[n, n_classes]`, in the order of the groups.
///
/// # Shapes
/// `logits`: `[n, n_classes + n_groups]`
///
/// # Errors
/// Groups that are not as many logits.
pub fn group_log_probabilities(logits: &Tensor, sizes: &[usize]) -> Result<(Tensor, Tensor)> {
    let (mut others, mut classes) = (Vec::new(), Vec::new());
    let mut start = 0;
    for &size in sizes {
        let group = logits.narrow(1, start, size + 1)?.contiguous()?;
        let log_p = candle_nn::ops::log_softmax(&group, D::Minus1)?;
        others.push(log_p.narrow(1, 0, 1)?);
        classes.push(log_p.narrow(1, 1, size)?);
        start += size + 1;
    }
    if logits.dim(1)? != start {
        candle_core::bail!("groups {sizes:?} expected {start} logits, got {}", logits.dim(1)?);
    }
    Ok((Tensor::cat(&others, 1)?, Tensor::cat(&classes, 1)?))
}

/// Batch normalisation of `[n, d]`.
fn norm_rows(norm: &BatchNorm2d, xs: &Tensor, mode: Mode) -> Result<Tensor> {
    norm.forward(&xs.unsqueeze(2)?.unsqueeze(3)?, mode)?.flatten_from(1)
}

impl Headed {
    /// What the heads make of the backbone's outputs.
    fn behind(&self, outputs: Outputs, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let Outputs { mut logits, features } = outputs;
        match &self.heads {
            Heads::Linear(layer) => {
                let xs = layer.forward(&features)?;
                self.layers.iter().for_each(|name| taps.offer(name, &xs));
            }
            Heads::Variance { linear, norm } => {
                let log_variance = norm_rows(norm, &linear.forward(&features)?, mode)?;
                taps.offer("variance", &log_variance.exp()?);
            }
            Heads::Scaled { tau } => {
                let scaled = (unit(&features, 0.0)? / *tau)?;
                logits = self.backbone.head().forward(&scaled)?;
            }
            Heads::Standardised { sigma } => {
                let centred = features.broadcast_sub(&features.mean_keepdim(1)?)?;
                let n = features.dim(1)?.saturating_sub(1).max(1) as f64;
                let deviation = (centred.sqr()?.sum_keepdim(1)? / n)?.maximum(1e-24)?.sqrt()?;
                let standardised = centred.broadcast_div(&(deviation + 1e-6)?)?;
                logits = self.backbone.head().forward(&(standardised * *sigma)?)?;
            }
            Heads::Quotient { numerators, cosine, denominator, norm } => {
                let xs = if *cosine { unit(&features, COSINE_EPS)? } else { features.clone() };
                let numerators = numerators.forward(&xs)?;
                let denominator = norm_rows(norm, &denominator.forward(&features)?, mode)?;
                let denominator = candle_nn::ops::sigmoid(&denominator)?;
                taps.offer("numerators", &numerators);
                taps.offer("denominator", &denominator);
                logits = numerators.broadcast_div(&denominator)?;
            }
            Heads::Projection(layers) => {
                let mut xs = features.clone();
                for (nth, layer) in layers.iter().enumerate() {
                    xs = layer.forward(&if nth == 0 { xs } else { xs.relu()? })?;
                }
                taps.offer("projection", &unit(&xs, 0.0)?);
            }
            Heads::Groups { groups, .. } => {
                let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
                let (others, classes) = group_log_probabilities(&logits, &sizes)?;
                taps.offer("others", &others);
                let mut places = vec![0u32; groups.iter().map(Vec::len).sum()];
                for (place, &class) in groups.iter().flatten().enumerate() {
                    places[class] = place as u32;
                }
                logits = classes.index_select(&Tensor::new(places, classes.device())?, 1)?;
            }
        }
        Ok(Outputs { logits, features })
    }
}

impl Network for Headed {
    fn layers(&self) -> Vec<Layer> {
        let head = |name: &&str| Layer { name: (*name).to_owned(), kind: LayerKind::Head };
        self.backbone.layers().into_iter().chain(self.layers.iter().map(head)).collect()
    }

    fn run_stage(&self, stage: usize, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Tensor> {
        self.backbone.run_stage(stage, xs, mode, taps)
    }

    fn finish(&self, xs: &Tensor, mode: Mode, taps: &mut Taps) -> Result<Outputs> {
        let outputs = self.backbone.finish(xs, mode, taps)?;
        self.behind(outputs, mode, taps)
    }

    fn head(&self) -> &Linear {
        match &self.heads {
            Heads::Groups { head, .. } => head,
            _ => self.backbone.head(),
        }
    }
}
