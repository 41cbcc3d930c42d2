//! How much probabilities vary under dropout.
//!
//! Kendall et al., "Bayesian SegNet: Model Uncertainty in Deep Convolutional Encoder-Decoder
//! Architectures for Scene Understanding", 2015, on the head alone, as pytorch-ood's `MCD` in its
//! default mode. Score: the mean over the classes of the variance of `softmax(l)_c` over `passes`
//! passes, each with another part of the features set to 0 and the others scaled up by as much.
//! [`crate::dropout`] takes the probability of the mean logits.
//!
//! The variance is divided by `passes - 1`, as there, where the documentation says by `passes`.
//! pytorch-ood drops what the network's own dropout layers do, without a seed; most classifiers of
//! OpenOOD have none. Here an image's masks follow from the run's seed and its name.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::products::multiply;
use crate::numeric::random::Random;

/// Parameters of [`DropoutVar`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    dropout_p: f64,
    passes: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { dropout_p: 0.5, passes: 30 }
    }
}

/// Variance under dropout.
pub struct DropoutVar {
    params: Params,
    host: Host,
}

/// The mean over the classes of the variance of probabilities, given the logits of each pass,
/// `[pass, class]`.
fn mean_variance(logits: &[f64], n_classes: usize) -> f64 {
    let n = (logits.len() / n_classes) as f64;
    let mut probabilities = logits.to_vec();
    for pass in probabilities.chunks_exact_mut(n_classes) {
        let greatest = pass.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        pass.iter_mut().for_each(|logit| *logit = (*logit - greatest).exp());
        let sum: f64 = pass.iter().sum();
        pass.iter_mut().for_each(|exp| *exp /= sum);
    }
    let variance = |class: usize| {
        let of_class = || probabilities[class..].iter().step_by(n_classes);
        let mean = of_class().sum::<f64>() / n;
        of_class().map(|p| (p - mean).powi(2)).sum::<f64>() / (n - 1.0)
    };
    (0..n_classes).map(variance).sum::<f64>() / n_classes as f64
}

impl Detector for DropoutVar {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "dropout_var",
            title: "Variance under dropout",
            family: "logits",
            summary: "the variance of the probabilities over passes with dropout, averaged over classes",
            paper: "Kendall et al., Bayesian SegNet: Model Uncertainty in Deep Convolutional Encoder-Decoder Architectures for Scene Understanding",
            year: 2015,
            url: "https://arxiv.org/abs/1511.02680",
            needs: Needs::FEATURES.and(Needs::HEAD),
            params: vec![
                Param::new(
                    "dropout_p",
                    "which part of the features is dropped",
                    "half, as in `dropout`",
                )
                .number(),
                Param::new("passes", "number of passes", "pytorch-ood"),
            ],
            // With the masks of seed 0 and keys 0 to 2; what is zero varies with none.
            example: Example::of_features(
                &[&[2.0, 1.0, 0.5], &[0.3, 3.0, 1.0], &[0.0, 0.0, 0.0]],
                &[0.032423683, 0.18223577, 0.0],
            )
            .head(&[&[1.0, 0.0, 0.5], &[0.0, 1.0, -0.5]], &[0.0, 0.1])
            .param("passes", 4),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(0.0..1.0).contains(&params.dropout_p) {
            return Err(Error::parameter("dropout_p", "at least 0, below 1", params.dropout_p));
        }
        /// The features and logits of all passes of an image are held together.
        const MOST: usize = 10_000;
        if !(2..=MOST).contains(&params.passes) {
            return Err(Error::parameter("passes", &format!("from 2 to {MOST}"), params.passes));
        }
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let head = self.host.head()?;
        let weight = check::finite(head.weight(), "weights of the head")?;
        let features = check::features(batch.features()?, weight.n_cols())?;
        let (seed, keys, d) = (self.host.seed(), batch.keys(), weight.n_cols());
        let bias: Vec<f64> = head.bias().iter().map(|&b| f64::from(b)).collect();
        if bias.is_empty() || bias.iter().any(|b| !b.is_finite()) {
            return Err(Error::input("biases of the head expected finite values of some classes"));
        }
        let weight: Vec<f64> = weight.values().iter().map(|&w| f64::from(w)).collect();
        let Params { dropout_p, passes } = self.params;
        let scale = 1.0 / (1.0 - dropout_p);
        scores.par_iter_mut().zip(keys).enumerate().for_each_init(
            || (vec![0.0; passes * d], vec![0.0; passes * bias.len()]),
            |(kept, logits), (i, (score, &key))| {
                let mut random = Random::of_image(seed, key);
                for kept in kept.chunks_exact_mut(d.max(1)) {
                    for (kept, &h) in kept.iter_mut().zip(features.row(i)) {
                        let stays = random.unit() >= dropout_p;
                        *kept = if stays { f64::from(h) * scale } else { 0.0 };
                    }
                }
                multiply(kept, &weight, d, logits);
                for logits in logits.chunks_exact_mut(bias.len()) {
                    logits.iter_mut().zip(&bias).for_each(|(logit, bias)| *logit += bias);
                }
                *score = mean_variance(logits, bias.len()) as f32;
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variance_is_that_of_a_sample() {
        // Probabilities of the first class are 1/2 and 3/4, hence both variances are 1/32.
        let logits = [0.0, 0.0, 3f64.ln(), 0.0];
        assert!((mean_variance(&logits, 2) - 1.0 / 32.0).abs() < 1e-15);
    }
}
