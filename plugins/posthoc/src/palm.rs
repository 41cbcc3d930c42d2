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
use crate::reweightood::info_on_sphere;

/// Mahalanobis distance in PALM's embedding.
#[derive(Default)]
pub struct Palm(MdsPp);

impl Detector for Palm {
    type Params = NoParams;

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

    fn new(_params: NoParams, _host: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.0.fit(data)
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        self.0.score(batch, scores)
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        self.0.save_state()
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.load_state(bytes)
    }
}
