//! The neural relation graph.
//!
//! Kim et al., "Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier
//! Data", 2023. Score: `-sum_i r_i^pow` over the training images whose relation
//! `r_i = max(0, z . z_i) (p . p_i)` is above a threshold, for features `z` scaled to length 1 and
//! probabilities `p`.
//!
//! The sum grows with the number of training images, and the threshold of 0.03 is part of
//! OpenOOD's implementation: a relation that rounding moves across it changes the sum by
//! `0.03^pow`. Images of unlike predictions are not related whatever their features, so training
//! images are kept by predicted class and blocks without a likely relation are passed over.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::products::multiply;
use crate::numeric::reduce::{argmax, max_probability, softmax};
use crate::numeric::state;

/// Queries and bank rows of one product.
const QUERIES: usize = 64;
const BANK: usize = 512;

/// Parameters of [`Relation`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    pow: f64,
    threshold: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { pow: 1.0, threshold: 0.03 }
    }
}

/// The neural relation graph.
pub struct Relation {
    params: Params,
    bank: Option<Images>,
}

/// Images in the order of their predicted classes, and in each of how sure the prediction is, so
/// that the few that are related to many classes are together.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Images {
    /// Features of length 1, `[len, n_features]`.
    features: Vec<f32>,
    n_features: usize,
    /// `[len, n_classes]`
    probabilities: Vec<f32>,
    n_classes: usize,
    /// The place of each image in the list that it came from.
    places: Vec<usize>,
}

impl Images {
    fn new(features: Matrix<'_>, logits: Matrix<'_>) -> Self {
        let keys: Vec<(usize, f64)> =
            logits.rows().map(|row| (argmax(row), max_probability(row, 1.0))).collect();
        let mut places: Vec<usize> = (0..features.n_rows()).collect();
        places.sort_by(|&a, &b| keys[a].0.cmp(&keys[b].0).then(keys[a].1.total_cmp(&keys[b].1)));
        let mut images = Self {
            features: Vec::with_capacity(features.values().len()),
            n_features: features.n_cols(),
            probabilities: Vec::with_capacity(logits.values().len()),
            n_classes: logits.n_cols(),
            places,
        };
        for &i in &images.places {
            let h = features.row(i);
            let square: f64 = h.iter().map(|&h| f64::from(h).powi(2)).sum();
            let scale = 1.0 / (square + 1e-10).sqrt();
            images.features.extend(h.iter().map(|&h| (f64::from(h) * scale) as f32));
            images.probabilities.extend(softmax(logits.row(i), 1.0).iter().map(|&p| p as f32));
        }
        images
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    /// Images `first .. first + n` in their order here: features and probabilities.
    fn part(&self, first: usize, n: usize) -> (&[f32], &[f32]) {
        let of = |values, columns: usize| -> &[f32] {
            let values: &Vec<f32> = values;
            &values[first * columns..(first + n) * columns]
        };
        (of(&self.features, self.n_features), of(&self.probabilities, self.n_classes))
    }
}

/// The sums over the bank for some queries, for each power: `[query, power]`.
fn sums(queries: (&[f32], &[f32]), bank: &Images, threshold: f64, pows: &[f64]) -> Vec<f64> {
    let (z, p) = queries;
    let n = p.len() / bank.n_classes;
    // As many queries whatever the batch, so that an image's sum does not depend on it.
    let padded = |values: &[f32], columns: usize| {
        let mut padded = values.to_vec();
        padded.resize(QUERIES * columns, 0.0);
        padded
    };
    let (z, p) = (padded(z, bank.n_features), padded(p, bank.n_classes));
    let mut of_z = vec![0.0; QUERIES * BANK];
    let mut of_p = vec![0.0; QUERIES * BANK];
    let mut sums = vec![0.0; n * pows.len()];
    // A little below the threshold, since a product of unit vectors may round to above 1.
    let possible = (threshold * (1.0 - 1e-4)) as f32;
    for first in (0..bank.len()).step_by(BANK) {
        let m = BANK.min(bank.len() - first);
        let (bank_z, bank_p) = bank.part(first, m);
        let (of_z, of_p) = (&mut of_z[..QUERIES * m], &mut of_p[..QUERIES * m]);
        multiply(&p, bank_p, bank.n_classes, of_p);
        if of_p[..n * m].iter().all(|&product| product <= possible) {
            continue;
        }
        multiply(&z, bank_z, bank.n_features, of_z);
        let pairs = of_z.chunks_exact(m).zip(of_p.chunks_exact(m));
        for (sums, (of_z, of_p)) in sums.chunks_exact_mut(pows.len()).zip(pairs) {
            for (&z, &p) in of_z.iter().zip(of_p) {
                let relation = f64::from(z).max(0.0) * f64::from(p);
                if relation > threshold {
                    for (sum, &pow) in sums.iter_mut().zip(pows) {
                        *sum += power(relation, pow);
                    }
                }
            }
        }
    }
    sums
}

/// `x` to a power; whole ones are quicker by multiplication.
fn power(x: f64, pow: f64) -> f64 {
    if pow.fract() == 0.0 && pow.abs() <= 64.0 { x.powi(pow as i32) } else { x.powf(pow) }
}

impl Detector for Relation {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "relation",
            title: "Neural relation graph",
            family: "distance",
            summary: "the sum of relations, in features and predictions, to all training images, negated",
            paper: "Kim et al., Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier Data",
            year: 2023,
            url: "https://arxiv.org/abs/2301.12321",
            needs: Needs::FEATURES.and(Needs::LOGITS).and(Needs::TRAIN),
            params: vec![
                Param::new("pow", "the power of each relation", "OpenOOD v1.5")
                    .sweep([1, 2, 4, 6, 8])
                    .readout(),
                Param::new("threshold", "relations up to it do not count", "OpenOOD v1.5"),
            ],
            // All probabilities are equal, so that p . p_i is 1/2; the cosines are 1, 0.6 and -1.
            example: Example::of_features(&[&[2.0, 0.0], &[-4.0, 0.0]], &[-0.34, -0.25])
                .head(&[&[0.0, 0.0], &[0.0, 0.0]], &[0.0, 0.0])
                .train(&[&[1.0, 0.0], &[3.0, 4.0], &[-2.0, 0.0]], &[0, 1, 0])
                .param("pow", 2),
            ..Info::default()
        }
    }

    fn new(params: Params, _host: Host) -> Result<Self> {
        if !params.pow.is_finite() {
            return Err(Error::parameter("pow", "a number", params.pow));
        }
        if !(0.0..1.0).contains(&params.threshold) {
            return Err(Error::parameter("threshold", "at least 0, below 1", params.threshold));
        }
        Ok(Self { params, bank: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        let features = check::fit_features(train.features()?, "training")?;
        self.bank = Some(Images::new(features, check::logits(train.logits()?)?));
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    /// Relations are found once for all powers.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let bank = state::fitted(self.bank.as_ref())?;
        let features = check::features(batch.features()?, bank.n_features)?;
        let logits = check::logits_of(batch.logits()?, bank.n_classes)?;
        let queries = Images::new(features, logits);
        let pows: Vec<f64> = variants.iter().map(|params| params.pow).collect();
        let threshold = self.params.threshold;
        let n = queries.len();
        let blocks: Vec<Vec<f64>> = (0..n.div_ceil(QUERIES))
            .into_par_iter()
            .map(|block| {
                let first = block * QUERIES;
                sums(queries.part(first, QUERIES.min(n - first)), bank, threshold, &pows)
            })
            .collect();
        let by_query = blocks.concat();
        for (sums, &place) in by_query.chunks_exact(pows.len()).zip(&queries.places) {
            for (variant, sum) in sums.iter().enumerate() {
                scores[variant * n + place] = -sum as f32;
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.bank.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.bank = state::load(bytes)?;
        Ok(())
    }
}
