//! Deep ensembles: what several networks say of the same image.
//!
//! Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
//! Ensembles", 2017. The members are the classifier of the run and those whose weights the files in
//! `checkpoints` are; `with_classifier = false` leaves the former out. Networks that were trained
//! alike but from other seeds agree on what they know and differ on what they do not.
//!
//! With the logits `l_m` of the members, `p_m = softmax(l_m)` and means over the members:
//!
//! | `score` | | |
//! | --- | --- | --- |
//! | `mean-logits` | `-max_c softmax(mean_m l_m)_c` | OpenOOD v1.5; the default |
//! | `mean-probabilities` | `-max_c mean_m p_mc` | equation of the paper's section 2.4 |
//! | `entropy` | `H(mean_m p_m)` | the paper's measure of unknown classes, in section 3.5 |
//! | `mutual-information` | `H(mean_m p_m) - mean_m H(p_m)` | the members' disagreement: the paper's `sum_m KL(p_m, mean p)`, divided by their number |
//!
//! OpenOOD takes every member from a file, sums and divides logits in single precision, and so does
//! `mean-logits`; `double_precision` tells apart what that rounds to a probability of 1. The other
//! scores, which OpenOOD lacks, are always in double precision.
//!
//! The classifier's own logits come from the feature bank; each file costs a pass of its network. A
//! member is normalised as its file says, else as the classifier.

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::reduce::{log_sum_exp, max_probability, max_probability_single, softmax};

/// What is read out of the members' logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "kebab-case")]
pub enum Score {
    /// The greatest probability by the mean of the logits, negated.
    #[default]
    MeanLogits,
    /// The greatest mean probability, negated.
    MeanProbabilities,
    /// The entropy of the mean probabilities.
    Entropy,
    /// What of that entropy is disagreement.
    MutualInformation,
}

/// Parameters of [`Ensemble`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    checkpoints: Vec<String>,
    with_classifier: bool,
    score: Score,
    double_precision: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            checkpoints: Vec::new(),
            with_classifier: true,
            score: Score::MeanLogits,
            double_precision: false,
        }
    }
}

/// A deep ensemble.
pub struct Ensemble {
    params: Params,
    host: Host,
}

impl Detector for Ensemble {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "ensemble",
            title: "Deep ensemble",
            family: "logits",
            summary: "the greatest probability by the mean logits of several networks, negated",
            paper: "Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
            year: 2017,
            url: "https://arxiv.org/abs/1612.01474",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::FORWARD).and(Needs::ASSETS),
            params: vec![
                Param::new(
                    "checkpoints",
                    "weights of the other members, in any number",
                    "OpenOOD v1.5 has five, of LeNet",
                )
                .assets(),
                Param::new(
                    "with_classifier",
                    "whether the classifier of the run is a member",
                    "OpenOOD v1.5 names every member",
                ),
                Param::new(
                    "score",
                    "mean-logits, mean-probabilities, entropy or mutual-information",
                    "OpenOOD v1.5; the others are of the paper",
                )
                .sweep(["mean-logits", "mean-probabilities", "entropy", "mutual-information"])
                .readout(),
                Param::new(
                    "double_precision",
                    "sum logits in double precision, which tells apart what single precision rounds to 1",
                    "OpenOOD v1.5 sums in single precision",
                )
                .readout(),
            ],
            // A file of the example is its classifier over again, so that the members agree, with
            // the logits 2 and 0, 0 and 0.
            example: Example::of_images(&[&[1.0, 0.0, 0.5], &[0.5, 0.5, 0.5]], &[-0.880_797, -0.5])
                .head(&[&[2.0, 0.0, 0.0], &[0.0, 2.0, 0.0]], &[0.0, 0.0])
                .param("checkpoints", vec!["other.safetensors"]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if params.checkpoints.is_empty() {
            return Err(Error::parameter("checkpoints", "at least one file", "[]"));
        }
        let before = |nth: usize| &params.checkpoints[..nth];
        let twice = |(nth, name): &(usize, &String)| before(*nth).contains(name);
        if let Some((_, name)) = params.checkpoints.iter().enumerate().find(twice) {
            let got = format!("{name} twice");
            return Err(Error::parameter("checkpoints", "different files", got));
        }
        Ok(Self { params, host })
    }

    fn fit(&mut self, _data: &FitData<'_>) -> Result<()> {
        // Weights that do not fit are better found before an hour of scoring than after it.
        let (height, width) = self.host.image_size()?;
        let nothing = ImageBatch::new(&[], height, width)?;
        for nth in 0..self.params.checkpoints.len() {
            self.host.forward_with(&file(nth), nothing)?;
        }
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = [self.params.clone()];
        self.score_variants(batch, &own, scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let n = batch.len();
        if n == 0 {
            return Ok(());
        }
        let own = check::logits(batch.logits()?)?;
        let images = batch.images()?;
        let mut others = Vec::with_capacity(self.params.checkpoints.len());
        for (nth, place) in self.params.checkpoints.iter().enumerate() {
            let outputs = self.host.forward_with(&file(nth), images)?;
            let logits = outputs.logits();
            if logits.n_cols() != own.n_cols() {
                return Err(Error::input(format!(
                    "logits of `{place}` expected {} classes, as of the classifier, got {}",
                    own.n_cols(),
                    logits.n_cols()
                )));
            }
            if let Some(value) = logits.values().iter().find(|logit| !logit.is_finite()) {
                return Err(Error::input(format!(
                    "logits of `{place}` expected finite values, got `{value}`"
                )));
            }
            others.push(outputs);
        }
        let mut members: Vec<&[f32]> = Vec::with_capacity(others.len() + 1);
        for image in 0..n {
            members.clear();
            members.extend(self.params.with_classifier.then(|| own.row(image)));
            members.extend(others.iter().map(|outputs| outputs.logits().row(image)));
            for (variant, params) in variants.iter().enumerate() {
                scores[variant * n + image] = score_of(&members, params);
            }
        }
        Ok(())
    }
}

/// The name under which the host has the `nth` file.
fn file(nth: usize) -> String {
    format!("checkpoints.{nth}")
}

/// The score of an image by the logits of each member, `[n_classes]` each.
fn score_of(members: &[&[f32]], params: &Params) -> f32 {
    match params.score {
        Score::MeanLogits if params.double_precision => {
            let mean: Vec<f32> =
                (0..members[0].len()).map(|class| mean_logit(members, class)).collect();
            -max_probability(&mean, 1.0) as f32
        }
        Score::MeanLogits => {
            let mean = |class: usize| {
                let sum: f32 = members.iter().map(|logits| logits[class]).sum();
                // A sum may be more than single precision holds, where the mean is not.
                let mean = sum / members.len() as f32;
                if mean.is_finite() { mean } else { mean_logit(members, class) }
            };
            let mean: Vec<f32> = (0..members[0].len()).map(mean).collect();
            -max_probability_single(&mean, 1.0)
        }
        Score::MeanProbabilities => {
            let mean = mean_probabilities(members);
            -mean.into_iter().fold(0.0, f64::max) as f32
        }
        Score::Entropy => entropy(&mean_probabilities(members)) as f32,
        Score::MutualInformation => {
            let each = members.iter().map(|logits| entropy_of_logits(logits)).sum::<f64>();
            // Not below 0 but for rounding.
            (entropy(&mean_probabilities(members)) - each / members.len() as f64).max(0.0) as f32
        }
    }
}

/// Summed in double precision, and rounded to what a network would have given.
fn mean_logit(members: &[&[f32]], class: usize) -> f32 {
    let sum: f64 = members.iter().map(|logits| f64::from(logits[class])).sum();
    (sum / members.len() as f64) as f32
}

fn mean_probabilities(members: &[&[f32]]) -> Vec<f64> {
    let mut mean = vec![0.0; members[0].len()];
    for logits in members {
        for (mean, p) in mean.iter_mut().zip(softmax(logits, 1.0)) {
            *mean += p / members.len() as f64;
        }
    }
    mean
}

fn entropy(probabilities: &[f64]) -> f64 {
    // A probability of 0 counts for nothing.
    probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

/// From logits, because a probability that is rounded to 1 has lost its entropy.
fn entropy_of_logits(logits: &[f32]) -> f64 {
    let normaliser = log_sum_exp(logits, 1.0);
    let term = |(p, &logit): (f64, &f32)| p * (normaliser - f64::from(logit));
    softmax(logits, 1.0).into_iter().zip(logits).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(members: &[&[f32]], score: Score) -> f32 {
        score_of(members, &Params { score, ..Params::default() })
    }

    /// Logits of these probabilities.
    fn logits(p: [f32; 2]) -> [f32; 2] {
        p.map(f32::ln)
    }

    #[track_caller]
    fn near(got: f32, expected: f64) {
        assert!((f64::from(got) - expected).abs() < 1e-6, "{got} {expected}");
    }

    #[test]
    fn scores_are_those_of_the_formulas() {
        let (a, b) = (logits([0.9, 0.1]), logits([0.4, 0.6]));
        let members: [&[f32]; 2] = [&a, &b];
        // The mean logits are those of the geometric means 0.6 and sqrt(0.06).
        near(score(&members, Score::MeanLogits), -0.6 / (0.6 + 0.06f64.sqrt()));
        near(score(&members, Score::MeanProbabilities), -0.65);
        let h = |p: f64| -p * p.ln() - (1.0 - p) * (1.0 - p).ln();
        near(score(&members, Score::Entropy), h(0.65));
        near(score(&members, Score::MutualInformation), h(0.65) - (h(0.9) + h(0.4)) / 2.0);
    }

    #[test]
    fn members_that_agree_are_as_one() {
        let one: &[f32] = &logits([0.7, 0.3]);
        for score_name in [Score::MeanLogits, Score::MeanProbabilities, Score::Entropy] {
            near(score(&[one; 5], score_name), f64::from(score(&[one], score_name)));
        }
        near(score(&[one; 3], Score::MutualInformation), 0.0);
        assert!(score(&[one; 3], Score::MutualInformation) >= 0.0);
    }

    #[test]
    fn mutual_information_is_the_mean_divergence_from_the_mean() {
        let members = [logits([0.9, 0.1]), logits([0.4, 0.6]), logits([0.2, 0.8])];
        let mean: Vec<f64> = vec![0.5, 0.5];
        let divergence =
            |p: [f64; 2]| -> f64 { p.iter().zip(&mean).map(|(p, mean)| p * (p / mean).ln()).sum() };
        let expected = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]].map(divergence).iter().sum::<f64>();
        let members: Vec<&[f32]> = members.iter().map(|m| &m[..]).collect();
        near(score(&members, Score::MutualInformation), expected / 3.0);
    }

    #[test]
    fn double_precision_tells_saturated_images_apart() {
        let (sure, surer): ([&[f32]; 2], [&[f32]; 2]) =
            ([&[16.5, 0.0], &[17.5, 0.0]], [&[17.0, 0.0], &[18.0, 0.0]]);
        assert_eq!(score(&sure, Score::MeanLogits), score(&surer, Score::MeanLogits));
        let double = |members: &[&[f32]]| {
            score_of(members, &Params { double_precision: true, ..Params::default() })
        };
        assert!(double(&sure) > double(&surer));
    }

    #[test]
    fn huge_logits_and_a_single_class_have_finite_scores() {
        let members: [&[f32]; 2] = [&[3e38, -3e38], &[-3e38, 3e38]];
        for name in [Score::MeanProbabilities, Score::Entropy, Score::MutualInformation] {
            assert!(score(&members, name).is_finite(), "{name:?}");
        }
        let alike: [&[f32]; 3] = [&[3e38, -3e38]; 3];
        assert_eq!(score(&alike, Score::MeanLogits), -1.0);
        for name in [Score::MeanLogits, Score::MeanProbabilities] {
            assert_eq!(score(&[&[5.0], &[-1.0]], name), -1.0);
        }
        assert_eq!(score(&[&[5.0], &[-1.0]], Score::Entropy), 0.0);
    }
}
