//! CIDER: nearest neighbours in an embedding on the unit sphere.
//!
//! Ming et al., "How to Exploit Hyperspherical Embeddings for Out-of-Distribution Detection?", 2023.
//! Training pulls the images of a class towards its prototype and prototypes apart, on features of
//! length 1. Score: the squared Euclidean distance to the `K`-th nearest training image, features
//! scaled to length 1 in front of the projection that only training looks at.
//!
//! That is the score of `knn`, without the 1e-10 that OpenOOD adds to each coordinate there.
//! Classifiers of this training have no logits, so that detectors which need them are skipped.

use oodbench_sdk::prelude::*;

use crate::knn::Knn;
use crate::numeric::companion::{Companion, Scored};

/// Nearest neighbours in CIDER's embedding.
pub type Cider = Scored<Training>;

/// What is known of it.
pub struct Training;

/// What [`Cider`] and NPOS have in common.
pub(crate) fn info_of_neighbours() -> Info {
    let knn = Knn::info();
    Info {
        family: knn.family,
        summary: "distance to the K-th nearest training image on the unit sphere",
        needs: knn.needs,
        params: knn.params,
        example: knn.example,
        ..Info::default()
    }
}

impl Companion for Training {
    type Score = Knn;

    fn info() -> Info {
        Info {
            id: "cider",
            title: "CIDER",
            paper: "Ming et al., How to Exploit Hyperspherical Embeddings for Out-of-Distribution Detection?",
            year: 2023,
            url: "https://arxiv.org/abs/2203.04450",
            companion_of: "CIDER",
            ..info_of_neighbours()
        }
    }
}
