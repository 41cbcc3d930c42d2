//! NPOS: nearest neighbours in an embedding that was trained beside outliers of its own making.
//!
//! Tao et al., "Non-parametric Outlier Synthesis", 2023. Training draws outliers around images at
//! the border of each class, and learns to tell them from the classes' embeddings. Score: the squared
//! Euclidean distance to the `K`-th nearest training image, features scaled to length 1.
//!
//! As in OpenOOD the score is that of CIDER, and neither the prototypes nor the network that tells
//! outliers, which are in the checkpoint, take part. Its classifiers have no logits.

use oodbench_sdk::prelude::*;

use crate::cider::info_of_neighbours;
use crate::knn::Knn;
use crate::numeric::companion::{Companion, Scored};

/// Nearest neighbours in NPOS's embedding.
pub type Npos = Scored<Training>;

/// What is known of it.
pub struct Training;

impl Companion for Training {
    type Score = Knn;

    fn info() -> Info {
        Info {
            id: "npos",
            title: "Non-parametric outlier synthesis",
            paper: "Tao et al., Non-parametric Outlier Synthesis",
            year: 2023,
            url: "https://arxiv.org/abs/2303.02966",
            companion_of: "NPOS",
            ..info_of_neighbours()
        }
    }
}
