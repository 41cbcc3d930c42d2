//! Monte Carlo dropout.
//!
//! Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
//! Learning", 2016, on the head alone, as in OpenOOD. Score: `-max_c softmax(l)_c` for the mean `l`
//! of the logits of some passes, each with another part of the features set to 0 and the others
//! scaled up by as much.
//!
//! OpenOOD's network draws masks without a seed, and always of one half, whatever `dropout_p` says.
//! Here an image's masks follow from the run's seed and its name. As in [`crate::msp`] the softmax is
//! summed in single precision, where the probability of a confident image is exactly 1;
//! `double_precision` tells such images apart.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::random::Random;
use crate::numeric::reduce::{max_probability, max_probability_single};

/// Parameters of [`Dropout`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    dropout_p: f64,
    dropout_times: usize,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { dropout_p: 0.5, dropout_times: 5, double_precision: false }
    }
}

/// Monte Carlo dropout.
pub struct Dropout {
    params: Params,
    host: Host,
}

/// The mean logits of `passes` passes over one image, where `kept(pass, feature)` says what is not
/// dropped and `p` is the part that is dropped on average. `kept` is asked pass by pass.
///
/// The head is linear, so it is applied once, to the mean of the features.
///
/// # Shapes
/// `weight`: `[n_classes, n_features]`, `bias`: `[n_classes]`, `features`: `[n_features]`.
pub fn mean_logits(
    weight: Matrix<'_>,
    bias: &[f32],
    features: &[f32],
    p: f64,
    passes: usize,
    mut kept: impl FnMut(usize, usize) -> bool,
) -> Vec<f64> {
    let mut times = vec![0u32; features.len()];
    for pass in 0..passes {
        for (feature, times) in times.iter_mut().enumerate() {
            *times += u32::from(kept(pass, feature));
        }
    }
    let scale = 1.0 / ((1.0 - p) * passes as f64);
    let mean: Vec<f64> = features
        .iter()
        .zip(times)
        .map(|(&h, times)| f64::from(h) * f64::from(times) * scale)
        .collect();
    let logit = |(weight, &bias): (&[f32], &f32)| {
        weight.iter().zip(&mean).map(|(&w, h)| f64::from(w) * h).sum::<f64>() + f64::from(bias)
    };
    weight.rows().zip(bias).map(logit).collect()
}

/// Minus the greatest probability of mean logits.
pub fn score_of(logits: &[f64], double_precision: bool) -> f32 {
    let logits: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
    if double_precision {
        -max_probability(&logits, 1.0) as f32
    } else {
        -max_probability_single(&logits, 1.0)
    }
}

impl Detector for Dropout {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "dropout",
            title: "Monte Carlo dropout",
            family: "logits",
            summary: "the probability of the predicted class over passes with dropout, negated",
            paper: "Gal and Ghahramani, Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
            year: 2016,
            url: "https://arxiv.org/abs/1506.02142",
            needs: Needs::FEATURES.and(Needs::HEAD),
            params: vec![
                Param::new("dropout_p", "which part of the features is dropped", "OpenOOD v1.5")
                    .number(),
                Param::new("dropout_times", "number of passes", "OpenOOD v1.5"),
                Param::new(
                    "double_precision",
                    "sum in double precision, which tells apart what single precision rounds to 1",
                    "OpenOOD v1.5 sums in single precision",
                ),
            ],
            // Nothing is dropped, so the logits are the features. Which ones are dropped otherwise
            // is a matter of the seed.
            example: Example::of_features(&[&[2.0, 0.0], &[0.0, 0.0]], &[-0.880_797, -0.5])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .param("dropout_p", 0.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(0.0..1.0).contains(&params.dropout_p) {
            return Err(Error::parameter("dropout_p", "at least 0, below 1", params.dropout_p));
        }
        if params.dropout_times == 0 {
            return Err(Error::parameter("dropout_times", "at least 1", params.dropout_times));
        }
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let features = check::features(batch.features()?, weight.n_cols())?;
        let (seed, keys) = (self.host.seed(), batch.keys());
        let Params { dropout_p, dropout_times, double_precision } = self.params;
        scores.par_iter_mut().zip(keys).enumerate().for_each(|(i, (score, &key))| {
            let mut random = Random::of_image(seed, key);
            let kept = |_, _| random.unit() >= dropout_p;
            let logits =
                mean_logits(weight, head.bias(), features.row(i), dropout_p, dropout_times, kept);
            *score = score_of(&logits, double_precision);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_count_as_often_as_they_are_kept() {
        let weight = [1.0, 0.0, 0.0, 1.0];
        let weight = Matrix::new(&weight, 2, 2).unwrap();
        let logits = mean_logits(weight, &[0.5, 0.0], &[3.0, 2.0], 0.5, 4, |pass, feature| {
            feature == 0 || pass == 1
        });
        assert_eq!(logits, [6.5, 1.0]);
    }
}
