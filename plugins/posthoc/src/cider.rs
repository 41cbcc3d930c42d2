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

use crate::knn::{Knn, Params};

/// Nearest neighbours in CIDER's embedding.
pub struct Cider(Knn);

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

impl Detector for Cider {
    type Params = Params;

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

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self(Knn::new(params, host)?))
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.0.fit(data)
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        self.0.check_readout(params)
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        self.0.score(batch, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        self.0.score_variants(batch, variants, scores)
    }
}
