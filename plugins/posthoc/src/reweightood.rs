//! ReweightOOD: Mahalanobis distance in an embedding on the unit sphere.
//!
//! Regmi et al., "ReweightOOD: Loss Reweighting for Distance-based OOD Detection", 2024. Training is
//! contrastive, and weighs pairs of images by how near they are already. Score:
//! `min_c (z - mu_c)' P (z - mu_c)` for features `z` scaled to length 1, the means `mu_c` of each
//! class's scaled training features, and the pseudo-inverse `P` of the covariance that all classes
//! share (divided by N).
//!
//! That is [`crate::mds_pp`]. OpenOOD runs its `mds` on features of length 1, in `f32` and with a
//! batch x batch matrix for each class. Classifiers of this training have no logits.

use oodbench_sdk::prelude::*;

use crate::mds_pp::MdsPp;
use crate::numeric::companion::{Companion, Scored};

/// What detectors have in common that score features of length 1 by Mahalanobis distance, for
/// trainings that leave such.
pub(crate) fn info_on_sphere() -> Info {
    Info {
        summary: "Mahalanobis distance to the nearest class mean on the unit sphere",
        paper: "",
        url: "",
        ..MdsPp::info()
    }
}

/// Mahalanobis distance in ReweightOOD's embedding.
pub type ReweightOod = Scored<Training>;

/// What is known of it.
pub struct Training;

impl Companion for Training {
    type Score = MdsPp;

    fn info() -> Info {
        Info {
            id: "reweightood",
            title: "ReweightOOD",
            paper: "Regmi et al., ReweightOOD: Loss Reweighting for Distance-based OOD Detection",
            year: 2024,
            url: "https://openaccess.thecvf.com/content/CVPR2024W/TCV2024/html/Regmi_ReweightOOD_Loss_Reweighting_for_Distance-based_OOD_Detection_CVPRW_2024_paper.html",
            companion_of: "ReweightOOD",
            ..info_on_sphere()
        }
    }
}
