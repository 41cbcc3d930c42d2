//! PALM: a mixture of prototypes for each class, scored by Mahalanobis distance.
//!
//! Lu et al., "Learning with Mixture of Prototypes for Out-of-Distribution Detection", 2024. Training
//! pulls images towards several prototypes of their class, on features of length 1. The prototypes
//! are not kept. Score: that of `reweightood`, the Mahalanobis distance between features scaled to
//! length 1.
//!
//! OpenOOD scores these classifiers by its `mds`, which gets scaled features from their network; it
//! has no detector of this name. They have no logits.

use oodbench_sdk::prelude::*;

use crate::mds_pp::MdsPp;
use crate::numeric::companion::{Companion, Scored};
use crate::reweightood::info_on_sphere;

/// Mahalanobis distance in PALM's embedding.
pub type Palm = Scored<Training>;

/// What is known of it.
pub struct Training;

impl Companion for Training {
    type Score = MdsPp;

    fn info() -> Info {
        Info {
            id: "palm",
            title: "PALM",
            paper: "Lu et al., Learning with Mixture of Prototypes for Out-of-Distribution Detection",
            year: 2024,
            url: "https://arxiv.org/abs/2402.02653",
            companion_of: "PALM",
            ..info_on_sphere()
        }
    }
}
