//! ReweightOOD: Mahalanobis distance in an embedding on the unit sphere.
//!
//! Regmi et al., "ReweightOOD: Loss Reweighting for Distance-based OOD Detection", 2024. Training is
//! contrastive, and weighs pairs of images by how near they are already. Score:
//! `min_c (z - mu_c)' P (z - mu_c)` for features `z` scaled to length 1, the means `mu_c` of each
//! class's scaled training features, and the pseudo-inverse `P` of the covariance that all classes
//! share (divided by N).
//!
//! That is `mds` on features of length 1, as in OpenOOD, which computes in `f32` and forms a
//! batch x batch matrix for each class. Classifiers of this training have no logits.

use oodbench_sdk::prelude::*;

use crate::mds::Fitted;
use crate::numeric::neighbours::normalised;
use crate::numeric::{check, state};

/// Mahalanobis distance between features of length 1, for trainings that leave such.
#[derive(Default)]
pub(crate) struct OnSphere {
    fitted: Option<Fitted>,
}

impl OnSphere {
    /// What detectors that score so have in common.
    pub(crate) fn info() -> Info {
        Info {
            family: "distance",
            summary: "Mahalanobis distance to the nearest class mean on the unit sphere",
            needs: Needs::FEATURES.and(Needs::LABELS).and(Needs::TRAIN),
            // Scaled, the class means are (0.5, 0.5) and (-0.5, 0.5), and the covariance is a
            // quarter of the identity.
            example: Example::of_features(&[&[5.0, 0.0], &[0.0, -2.0]], &[2.0, 10.0])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .train(&[&[2.0, 0.0], &[0.0, 3.0], &[-4.0, 0.0], &[0.0, 1.0]], &[0, 0, 1, 1]),
            ..Info::default()
        }
    }

    pub(crate) fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let features = check::fit_features(train.features()?, "training")?;
        let scaled = normalised(features);
        let scaled = Matrix::new(&scaled, features.n_rows(), features.n_cols())?;
        self.fitted = Some(Fitted::new(scaled, train.labels()?, data.n_classes())?);
        Ok(())
    }

    pub(crate) fn score(&self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::finite(batch.features()?, "features")?;
        let scaled = normalised(features);
        fitted.nearest(Matrix::new(&scaled, features.n_rows(), features.n_cols())?, scores)
    }

    pub(crate) fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    pub(crate) fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}

/// Mahalanobis distance in ReweightOOD's embedding.
#[derive(Default)]
pub struct ReweightOod(OnSphere);

impl Detector for ReweightOod {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "reweightood",
            title: "ReweightOOD",
            paper: "Regmi et al., ReweightOOD: Loss Reweighting for Distance-based OOD Detection",
            year: 2024,
            url: "https://openaccess.thecvf.com/content/CVPR2024W/TCV2024/html/Regmi_ReweightOOD_Loss_Reweighting_for_Distance-based_OOD_Detection_CVPRW_2024_paper.html",
            companion_of: "ReweightOOD",
            ..OnSphere::info()
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
