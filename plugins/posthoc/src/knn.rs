//! Distance to the k-th nearest training image in feature space.
//!
//! Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022. Score: the
//! squared Euclidean distance to the `K`-th nearest of all training features, all scaled to
//! length 1.
//!
//! OpenOOD adds 1e-10 to each coordinate where it means to guard the division by a length of 0,
//! which gives NaN there; here a vector of zeros stays one. With `K` above the number of training
//! images OpenOOD gives every image the same score; here that is an error.

use oodbench_sdk::prelude::*;

use crate::numeric::neighbours::{Bank, normalised};
use crate::numeric::{check, state};

/// Parameters of [`Knn`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    #[serde(rename = "K")]
    k: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { k: 50 }
    }
}

/// Deep nearest neighbours.
pub struct Knn {
    params: Params,
    /// Training features of length 1.
    bank: Option<Bank>,
}

impl Detector for Knn {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "knn",
            title: "Deep nearest neighbours",
            family: "distance",
            summary: "distance to the K-th nearest training image",
            paper: "Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors",
            year: 2022,
            url: "https://arxiv.org/abs/2204.06507",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![
                Param::new("K", "which neighbour counts, from 1", "OpenOOD v1.5")
                    .sweep([50, 100, 200, 500, 1000])
                    .readout(),
            ],
            example: Example::of_features(&[&[3.0, 0.0], &[1.0, 1.0]], &[2.0, 0.585_786])
                .train(&[&[1.0, 0.0], &[0.0, 2.0]], &[0, 1])
                .param("K", 2),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if params.k == 0 {
            return Err(Error::parameter("K", "at least 1", params.k));
        }
        Ok(Self { params, bank: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        self.bank = Some(Bank::normalised(features));
        Ok(())
    }

    fn check_readout(&self, params: &Params) -> Result<()> {
        let n_bank = self.bank.as_ref().map_or(0, Bank::n_rows);
        if params.k > n_bank {
            let expected = format!("at most {n_bank}, the number of training images");
            return Err(Error::parameter("K", &expected, params.k));
        }
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    /// One search for the greatest `K` finds the distances for all.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let bank = state::fitted(self.bank.as_ref())?;
        let features = check::features(batch.features()?, bank.n_features())?;
        let queries = normalised(features);
        let queries = Matrix::new(&queries, features.n_rows(), bank.n_features())?;
        let ks: Vec<usize> = variants.iter().map(|params| params.k).collect();
        scores.copy_from_slice(&bank.kth_distances(queries, &ks));
        Ok(())
    }
}
