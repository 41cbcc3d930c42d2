//! SHE: simplified Hopfield energy.
//!
//! Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns
//! Memorization with Modern Hopfield Energy", 2023. Score: `-h . m_y` for features `h` and the
//! pattern `m_y` of the predicted class `y`, the mean of those training images of the class that
//! are classified correctly. The paper also compares the distance `|h - m_y|` and the cosine.
//!
//! A class of which no training image is classified correctly has NaN scores in OpenOOD; here the
//! mean of all its images stands in, with a warning. A class without training images is an error.

use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::single;
use crate::numeric::reduce::argmax;
use crate::numeric::state;

/// How features and pattern are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "snake_case")]
pub enum Metric {
    /// The inner product, negated.
    #[default]
    InnerProduct,
    /// The Euclidean distance.
    Euclidean,
    /// The cosine, negated; 0 where either is a vector of zeros.
    Cosine,
}

/// Parameters of [`She`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    metric: Metric,
}

/// Simplified Hopfield energy.
pub struct She {
    params: Params,
    host: Host,
    /// For each class.
    patterns: Option<Vec<Vec<f64>>>,
}

fn dot(h: &[f32], pattern: &[f64]) -> f64 {
    h.iter().zip(pattern).map(|(&h, m)| f64::from(h) * m).sum()
}

impl Metric {
    fn score(self, h: &[f32], pattern: &[f64]) -> f64 {
        match self {
            Self::InnerProduct => -dot(h, pattern),
            Self::Euclidean => {
                h.iter().zip(pattern).map(|(&h, m)| (f64::from(h) - m).powi(2)).sum::<f64>().sqrt()
            }
            Self::Cosine => {
                let of_h = h.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>();
                let of_pattern = pattern.iter().map(|m| m * m).sum::<f64>();
                let lengths = of_h.sqrt() * of_pattern.sqrt();
                if lengths > 0.0 { -dot(h, pattern) / lengths } else { 0.0 }
            }
        }
    }
}

impl She {
    fn read_out(&self, batch: &Batch<'_>, params: &Params, scores: &mut [f32]) -> Result<()> {
        let patterns = state::fitted(self.patterns.as_ref())?;
        let n_features = patterns.first().map_or(0, Vec::len);
        let features = check::features(batch.features()?, n_features)?;
        let logits = check::logits_of(batch.logits()?, patterns.len())?;
        for ((score, h), logits) in scores.iter_mut().zip(features.rows()).zip(logits.rows()) {
            *score = single(params.metric.score(h, &patterns[argmax(logits)]));
        }
        Ok(())
    }
}

impl Detector for She {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "she",
            title: "SHE",
            family: "distance",
            summary: "the inner product with the mean of the predicted class, negated",
            paper: "Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern Hopfield Energy",
            year: 2023,
            url: "https://openreview.net/forum?id=KkazG4lgKL",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::LABELS).and(Needs::TRAIN),
            params: vec![
                Param::new("metric", "`inner_product`, `euclidean` or `cosine`", "OpenOOD v1.5")
                    .readout(),
            ],
            // The third training image is of class 0 and taken for 1, so it does not count: the
            // patterns are (2, 0) and (0, 2).
            example: Example::of_features(&[&[3.0, 1.0], &[1.0, 4.0]], &[-6.0, -8.0])
                .head(&[&[1.0, 0.0], &[0.0, 1.0]], &[0.0, 0.0])
                .train(&[&[3.0, 0.0], &[1.0, 0.0], &[0.0, 9.0], &[0.0, 2.0]], &[0, 0, 0, 1]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        Ok(Self { params, host, patterns: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let (train, n_classes) = (data.train(), data.n_classes());
        let features = check::fit_features(train.features()?, "training")?;
        let logits = check::logits(train.logits()?)?;
        let classes = check::classes(train.labels()?, n_classes)?;
        let mut patterns = Vec::with_capacity(n_classes);
        let correct = means(features, n_classes, |i| {
            (argmax(logits.row(i)) == classes[i]).then_some(classes[i])
        });
        let all = means(features, n_classes, |i| Some(classes[i]));
        for (class, (correct, all)) in correct.into_iter().zip(all).enumerate() {
            let Some(all) = all else {
                return Err(Error::input(format!("class {class} has no training image")));
            };
            if correct.is_none() {
                self.host.warn(&format!(
                    "no training image of class {class} is classified correctly; the mean of all of them is its pattern"
                ));
            }
            patterns.push(correct.unwrap_or(all));
        }
        self.patterns = Some(patterns);
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
        state::save(self.patterns.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.patterns = state::load(bytes)?;
        Ok(())
    }
}

/// The mean of each class's rows, none where it has no row. Rows without a class do not count.
fn means(
    features: Matrix<'_>,
    n_classes: usize,
    class_of: impl Fn(usize) -> Option<usize>,
) -> Vec<Option<Vec<f64>>> {
    let mut sums = vec![vec![0.0; features.n_cols()]; n_classes];
    let mut counts = vec![0usize; n_classes];
    for (i, row) in features.rows().enumerate() {
        let Some(class) = class_of(i) else { continue };
        counts[class] += 1;
        for (sum, &x) in sums[class].iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let mean = |(sum, count): (Vec<f64>, usize)| {
        (count > 0).then(|| sum.iter().map(|sum| sum / count as f64).collect())
    };
    sums.into_iter().zip(counts).map(mean).collect()
}
