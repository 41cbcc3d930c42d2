//! Classifiers of training methods: a backbone of any family, and heads of the training's own.
//!
//! A training method that adds to the network leaves a state dict in which the backbone stands under
//! `backbone.` and the heads beside it, as OpenOOD's networks write it. [`Variant::infer`] tells from
//! names and shapes which one it is. The classifier's own logits and features are then those of any
//! classifier, and what the further heads give are layers by name, so that detectors read them as
//! they read a stage of the backbone.
//!
//! What a training leaves out is left out here too: contrastive ones have no logits.

mod build;
mod network;

use std::collections::BTreeMap;
use std::fmt;

use candle_core::Result;
use candle_nn::VarBuilder;

use crate::arch::{Architecture, Network};

pub use network::group_log_probabilities;

/// A backbone with what its training put beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variant {
    pub backbone: Architecture,
    pub training: Training,
}

/// How a classifier was trained, as far as its state dict tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Training {
    /// A network and nothing else; `prefixed` where its keys begin with `backbone.`.
    Ordinary { prefixed: bool },
    /// DeVries and Taylor's: `confidence` [n, 1], a logit, beside the classes.
    LearningConfidence,
    /// Hendrycks et al.'s self-supervision: `rotation` [n, 4], logits of the angle.
    RotPred,
    /// Yu and Aizawa's: `logits2` [n, n_classes] of a second head.
    Mcd,
    /// Random temperature scaling: `variance` [n, `degrees`].
    Rts { degrees: usize },
    /// Yang et al.'s unsupervised dual grouping: `clusters` [n, `clusters`], logits.
    Udg { clusters: usize },
    /// Regmi et al.'s: logits of features of length 1, divided by the buffer `tau`.
    T2fNorm,
    /// ASCOOD: logits of standardised features, times the buffer `sigma`.
    Ascood,
    /// Hsu et al.'s: logits are `numerators` [n, n_classes] divided by `denominator` [n, 1]. The
    /// numerators are cosines, or an inner product where `inner`.
    GOdin { inner: bool },
    /// CIDER, PALM, ReweightOOD and, with `prototypes`, NPOS: no classes, but `projection` [n, `out`]
    /// of length 1 behind a linear layer, or two with `hidden` units between them.
    Contrastive { hidden: Option<usize>, out: usize, prototypes: bool },
    /// Huang and Li's: classes in groups, each with a logit for "none of these" before its own.
    /// Groups list classes in the order of the logits. `others` [n, n_groups] are logarithms of the
    /// probability of "none of these".
    Mos { groups: Vec<Vec<usize>> },
}

impl Training {
    /// What the training methods that leave such weights are called; detectors that go with one say
    /// so by this name. Several where the weights do not tell them apart, none for an ordinary one.
    pub fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Ordinary { .. } => &[],
            Self::LearningConfidence => &["Learning Confidence"],
            Self::RotPred => &["RotPred"],
            Self::Mcd => &["MCD"],
            Self::Rts { .. } => &["RTS"],
            Self::Udg { .. } => &["UDG"],
            Self::T2fNorm => &["T2FNorm"],
            Self::Ascood => &["ASCOOD"],
            Self::GOdin { .. } => &["G-ODIN"],
            Self::Contrastive { prototypes: true, .. } => &["NPOS"],
            Self::Contrastive { .. } => &["CIDER", "PALM", "ReweightOOD"],
            Self::Mos { .. } => &["MOS"],
        }
    }

    /// The layers that the further heads give.
    pub fn layers(&self) -> &'static [&'static str] {
        match self {
            Self::Ordinary { .. } | Self::T2fNorm | Self::Ascood => &[],
            Self::LearningConfidence => &["confidence"],
            Self::RotPred => &["rotation"],
            Self::Mcd => &["logits2"],
            Self::Rts { .. } => &["variance"],
            Self::Udg { .. } => &["clusters"],
            Self::GOdin { .. } => &["numerators", "denominator"],
            Self::Contrastive { .. } => &["projection"],
            Self::Mos { .. } => &["others"],
        }
    }

    /// Whether the classifier tells classes at all.
    pub fn has_logits(&self) -> bool {
        !matches!(self, Self::Contrastive { .. })
    }

    /// Whether there is a linear layer that logits come from. T2FNorm's takes features that are
    /// scaled first.
    pub fn has_head(&self) -> bool {
        !matches!(
            self,
            Self::Contrastive { .. } | Self::GOdin { .. } | Self::Mos { .. } | Self::Ascood
        )
    }
}

impl Variant {
    /// Reads backbone and training off the names and shapes of a state dict. Weights of MOS look
    /// like an ordinary network's of more classes: see [`Variant::grouped`].
    pub fn infer(shapes: &BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let inner: BTreeMap<String, Vec<usize>> = shapes
            .iter()
            .filter_map(|(key, shape)| Some((key.strip_prefix("backbone.")?.to_owned(), shape)))
            .map(|(key, shape)| (key, shape.clone()))
            .collect();
        if inner.is_empty() {
            let training = Training::Ordinary { prefixed: false };
            return Some(Self { backbone: Architecture::infer(shapes)?, training });
        }
        let backbone = Architecture::infer(&inner)?;
        let rows = |key: &str| shapes.get(key).and_then(|shape| shape.first()).copied();
        let has = |key: &str| shapes.contains_key(key);
        let training = if has("confidence.weight") {
            Training::LearningConfidence
        } else if has("rot_fc.weight") {
            Training::RotPred
        } else if has("fc2.weight") {
            Training::Mcd
        } else if let Some(degrees) = rows("logvar_rts.0.weight") {
            Training::Rts { degrees }
        } else if let Some(clusters) = rows("fc_aux.weight") {
            Training::Udg { clusters }
        } else if has("h.h.weight") {
            Training::GOdin { inner: has("h.h.bias") }
        } else if let Some(out) = rows("head.weight").or(rows("head.2.weight")) {
            let prototypes = has("prototypes");
            Training::Contrastive { hidden: rows("head.0.weight"), out, prototypes }
        } else if has("tau") {
            Training::T2fNorm
        } else if has("sigma") {
            Training::Ascood
        } else if inner.contains_key(&format!("{}.weight", backbone.head_key())) {
            Training::Ordinary { prefixed: true }
        } else {
            return None;
        };
        Some(Self { backbone, training })
    }

    /// The same with its logits in groups, as MOS trains an ordinary network; `None` where the
    /// training is another one.
    pub fn grouped(&self, groups: &[Vec<usize>]) -> Option<Self> {
        match self.training {
            Training::Ordinary { prefixed: false } => Some(Self {
                backbone: self.backbone,
                training: Training::Mos { groups: groups.to_vec() },
            }),
            _ => None,
        }
    }

    /// The weight that has a row for each logit; absent where there are none.
    pub fn logits_key(&self) -> Option<String> {
        let of_backbone = self.backbone.head_key();
        Some(match self.training {
            Training::Contrastive { .. } => return None,
            Training::Ordinary { prefixed: false } | Training::Mos { .. } => {
                format!("{of_backbone}.weight")
            }
            Training::Ordinary { prefixed: true }
            | Training::Rts { .. }
            | Training::T2fNorm
            | Training::Ascood => format!("backbone.{of_backbone}.weight"),
            Training::Mcd => "fc1.weight".to_owned(),
            Training::GOdin { .. } => "h.h.weight".to_owned(),
            Training::LearningConfidence | Training::RotPred | Training::Udg { .. } => {
                "fc.weight".to_owned()
            }
        })
    }

    /// How many logits the last layer has for so many classes.
    pub fn n_logits(&self, n_classes: usize) -> usize {
        match &self.training {
            Training::Mos { groups } => n_classes + groups.len(),
            _ => n_classes,
        }
    }

    /// Builds the network on the variables of `vb`.
    ///
    /// # Errors
    /// A key that is missing or has another shape.
    pub fn build(&self, n_classes: usize, vb: VarBuilder<'static>) -> Result<Box<dyn Network>> {
        build::build(self, n_classes, vb)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backbone)?;
        match self.training.names() {
            [] => Ok(()),
            names => write!(f, " of {}", names.join(" or ")),
        }
    }
}

#[cfg(test)]
mod tests;
