//! NCI: neural collapse inspired detector.
//!
//! Liu and Qin, "Detecting Out-of-Distribution Through the Lens of Neural Collapse", 2025. Score:
//! `-(w_y . (h - m) / |h - m| + alpha |h|_1)` for features `h`, the training features' mean `m` and
//! the head's weight `w_y` of the predicted class `y`. Features of a trained network gather along
//! the weights of their class; the head's bias plays no part.
//!
//! A feature at the mean has no direction: the first term is 0 there, NaN in OpenOOD.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::linalg::mean;
use crate::numeric::reduce::argmax;
use crate::numeric::wide::{sum_of, sum_of_pairs, vectorised};
use crate::numeric::{check, state};

/// Parameters of [`Nci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    alpha: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { alpha: 1e-4 }
    }
}

/// Neural collapse inspired detector.
pub struct Nci {
    params: Params,
    host: Host,
    mean: Option<Vec<f64>>,
}

impl Nci {
    /// The closeness to the weights of the predicted class and the L1 norm of each image.
    fn terms(&self, batch: &Batch<'_>) -> Result<Vec<(f64, f64)>> {
        let mean = state::fitted(self.mean.as_ref())?;
        let features = check::features(batch.features()?, mean.len())?;
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let logits = check::logits_of(batch.logits()?, weight.n_rows())?;
        let images = (0..features.n_rows()).into_par_iter().with_min_len(64);
        let terms = images.map_init(
            || vec![0.0; mean.len()],
            |centred, i| {
                let (h, w) = (features.row(i), weight.row(argmax(logits.row(i))));
                vectorised(
                    #[inline(always)]
                    || {
                        for ((centred, &h), mean) in centred.iter_mut().zip(h).zip(mean) {
                            *centred = f64::from(h) - mean;
                        }
                        let along = sum_of_pairs(centred, w, |h, w| h * f64::from(w));
                        let square = sum_of(centred, |h| h * h);
                        let closeness = if square > 0.0 { along / square.sqrt() } else { 0.0 };
                        (closeness, sum_of(h, |h| f64::from(h).abs()))
                    },
                )
            },
        );
        Ok(terms.collect())
    }
}

impl Detector for Nci {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "nci",
            title: "NCI",
            family: "features",
            summary: "how far the centred feature points along the predicted class's weights, negated",
            paper: "Liu and Qin, Detecting Out-of-Distribution Through the Lens of Neural Collapse",
            year: 2025,
            url: "https://arxiv.org/abs/2311.01479",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new("alpha", "how much the feature's L1 norm counts", "OpenOOD v1.5")
                    .sweep([1e-4, 1e-3, 1e-2, 1e-1])
                    .readout(),
            ],
            // The mean is (1, 1), the centred features (3, 4) and 0.
            example: Example::of_features(&[&[4.0, 5.0], &[1.0, 1.0]], &[-2.5, -0.2])
                .head(&[&[1.0, 0.0], &[0.0, 2.0]], &[0.0, 0.0])
                .train(&[&[0.0, 0.0], &[2.0, 2.0]], &[0, 1])
                .param("alpha", 0.1),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !params.alpha.is_finite() {
            return Err(Error::parameter("alpha", "a number", params.alpha));
        }
        Ok(Self { params, host, mean: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.mean = Some(mean(check::fit_features(data.train().features()?, "training")?));
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let terms = self.terms(batch)?;
        let of_variants = variants.iter().flat_map(|params| {
            terms.iter().map(|(closeness, norm)| -(closeness + params.alpha * norm) as f32)
        });
        for (score, value) in scores.iter_mut().zip(of_variants) {
            *score = value;
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.mean.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.mean = state::load(bytes)?;
        Ok(())
    }
}
