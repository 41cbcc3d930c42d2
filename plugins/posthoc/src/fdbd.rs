//! fDBD: distance to the decision boundaries.
//!
//! Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector", 2024. Score:
//! `-sum_c (l_y - l_c) / |w_y - w_c| / |h - m|` for logits `l`, the predicted class `y`, the head's
//! weights `w`, features `h` and the training features' mean `m`: each term estimates the distance
//! to the boundary with class `c`. `distance_as_normalizer` off divides by `|h|` instead. OpenOOD
//! has the sum, as here, where the paper has the mean over the classes; the order is the same.
//!
//! Two classes of equal weights have no boundary between them: OpenOOD divides by 0 and gives NaN
//! or infinity, here the pair does not count. A feature at the mean itself, where OpenOOD divides
//! by 0 too, has the most in-distribution score there is, or 0 if it lies on every boundary.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::linalg::mean;
use crate::numeric::neighbours::squared_norm;
use crate::numeric::reduce::argmax;
use crate::numeric::wide::{sum_of_pairs, vectorised};
use crate::numeric::{check, state};

/// Parameters of [`Fdbd`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    distance_as_normalizer: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { distance_as_normalizer: true }
    }
}

/// Distance to the decision boundaries.
pub struct Fdbd {
    params: Params,
    host: Host,
    mean: Option<Vec<f64>>,
    /// `1 / |w_a - w_b|` for each pair of classes, 0 for equal weights, `[n_classes, n_classes]`.
    /// It follows from the head, so it is no part of the state.
    steepness: Vec<Vec<f64>>,
}

/// The inverse distances between the weights of classes.
fn steepness(weight: Matrix<'_>) -> Vec<Vec<f64>> {
    let inverse = |a: &[f32], b: &[f32]| {
        let square: f64 =
            a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 }
    };
    let rows = (0..weight.n_rows()).into_par_iter();
    rows.map(|a| weight.rows().map(|b| inverse(weight.row(a), b)).collect()).collect()
}

impl Fdbd {
    fn prepare(&mut self) -> Result<()> {
        let head = self.host.head()?;
        self.steepness = steepness(check::finite(head.weight(), "weights of the head")?);
        if self.steepness.len() < 2 {
            let got = self.steepness.len();
            return Err(Error::input(format!("head expected at least 2 classes, got {got}")));
        }
        Ok(())
    }

    fn read_out(&self, batch: &Batch<'_>, params: &Params, scores: &mut [f32]) -> Result<()> {
        let mean = state::fitted(self.mean.as_ref())?;
        let features = check::features(batch.features()?, mean.len())?;
        let logits = check::logits_of(batch.logits()?, self.steepness.len())?;
        let score_of = |i: usize| {
            let (h, logits) = (features.row(i), logits.row(i));
            let class = argmax(logits);
            let greatest = f64::from(logits[class]);
            let terms = logits.iter().zip(&self.steepness[class]);
            let distance: f64 =
                terms.map(|(&l, inverse)| (greatest - f64::from(l)) * inverse).sum();
            let square = if params.distance_as_normalizer {
                vectorised(
                    #[inline(always)]
                    || sum_of_pairs(h, mean, |h, mean| (f64::from(h) - mean).powi(2)),
                )
            } else {
                squared_norm(h)
            };
            // 0 / 0 stays 0.
            let relative = if distance > 0.0 { distance / square.sqrt() } else { 0.0 };
            -relative.min(f64::from(f32::MAX)) as f32
        };
        let scores = scores.par_iter_mut().with_min_len(64).enumerate();
        scores.for_each(|(i, score)| *score = score_of(i));
        Ok(())
    }
}

impl Detector for Fdbd {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "fdbd",
            title: "fDBD",
            family: "features",
            summary: "the distance to the decision boundaries over that to the training mean, negated",
            paper: "Liu and Qin, Fast Decision Boundary based Out-of-Distribution Detector",
            year: 2024,
            url: "https://arxiv.org/abs/2312.11536",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::HEAD).and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "distance_as_normalizer",
                    "divide by the distance to the training mean, not by the feature's length",
                    "OpenOOD v1.5",
                )
                .sweep([true, false])
                .readout(),
            ],
            // Logits 4, 0 and 1, and -4, 6 and -7; the weights of the first class are 5 from those of the second,
            // and equal to those of the third. Both features are 2 from the mean.
            example: Example::of_features(&[&[1.0, 0.0], &[-1.0, 2.0]], &[-0.4, -2.3])
                .head(&[&[4.0, 0.0], &[0.0, 3.0], &[4.0, 0.0]], &[0.0, 0.0, -3.0])
                .train(&[&[-1.0, 1.0], &[-1.0, -1.0]], &[0, 1]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { params, host, mean: None, steepness: Vec::new() })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        self.prepare()?;
        self.mean = Some(mean(check::fit_features(data.train().features()?, "training")?));
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        self.read_out(batch, &self.params, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        for (scores, params) in scores.chunks_exact_mut(batch.len()).zip(variants) {
            self.read_out(batch, params, scores)?;
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.mean.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.prepare()?;
        self.mean = state::load(bytes)?;
        Ok(())
    }
}
