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
//! images are kept by predicted class and tiles without a likely relation are passed over.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::neighbours::squared_norm;
use crate::numeric::reduce::{argmax, max_probability, softmax};
use crate::numeric::tiles::{
    Blocks, COLUMNS, Line, Panels, ROWS, Tile, multiply, queries_at_a_time,
};
use crate::numeric::{check, state};

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

/// Training images in the order of their predicted classes.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Images {
    /// Features of length 1.
    features: Panels,
    probabilities: Panels,
}

/// The places of images in the order of their predicted classes, and in each of how sure the
/// prediction is, so that the few that are related to many classes are together.
fn by_prediction(logits: Matrix<'_>) -> Vec<usize> {
    let keys: Vec<(usize, f64)> =
        logits.rows().map(|row| (argmax(row), max_probability(row, 1.0))).collect();
    let mut places: Vec<usize> = (0..keys.len()).collect();
    places.sort_by(|&a, &b| keys[a].0.cmp(&keys[b].0).then(keys[a].1.total_cmp(&keys[b].1)));
    places
}

/// Writes features scaled to length 1, as the reference does it.
fn unit(h: &[f32], out: &mut [f32]) {
    let scale = 1.0 / (squared_norm(h) + 1e-10).sqrt();
    for (out, &h) in out.iter_mut().zip(h) {
        *out = (f64::from(h) * scale) as f32;
    }
}

/// Writes probabilities.
fn probabilities(logits: &[f32], out: &mut [f32]) {
    for (out, p) in out.iter_mut().zip(softmax(logits, 1.0)) {
        *out = p as f32;
    }
}

/// The sums over the bank for some queries, for each power: `[query, power]`.
struct Sums<'a> {
    bank: &'a Images,
    threshold: f64,
    pows: &'a [f64],
}

impl Sums<'_> {
    fn of(&self, n: usize, features: &Blocks, probabilities: &Blocks, sums: &mut [f64]) {
        let (mut of_z, mut of_p): (Tile, Tile) = ([[0.0; COLUMNS]; ROWS], [[0.0; COLUMNS]; ROWS]);
        // A little below the threshold, since a product of unit vectors may round to above 1.
        let possible = (self.threshold * (1.0 - 1e-4)) as f32;
        for panel in 0..self.bank.features.len() {
            let rows = self.bank.features.rows_of(panel).len();
            let queries = sums.chunks_mut(ROWS * self.pows.len());
            for (block, sums) in queries.enumerate() {
                let n = ROWS.min(n - block * ROWS);
                let of_bank = self.bank.probabilities.panel(panel);
                multiply(probabilities.block(block), of_bank, n, &mut of_p);
                // Most often no image of the tile is related to any.
                let any = |line: &Line| line.iter().fold(0, |n, &p| n + u32::from(p > possible));
                if of_p[..n].iter().map(any).sum::<u32>() == 0 {
                    continue;
                }
                multiply(features.block(block), self.bank.features.panel(panel), n, &mut of_z);
                let pairs = of_z.iter().zip(&of_p);
                for (sums, (z, p)) in sums.chunks_exact_mut(self.pows.len()).zip(pairs) {
                    self.add(&z[..rows], &p[..rows], sums);
                }
            }
        }
    }

    /// Adds the relations of a query to some images.
    fn add(&self, z: &[f32], p: &[f32], sums: &mut [f64]) {
        let relations = z.iter().zip(p).map(|(&z, &p)| f64::from(z).max(0.0) * f64::from(p));
        for relation in relations.filter(|&relation| relation > self.threshold) {
            for (sum, &pow) in sums.iter_mut().zip(self.pows) {
                *sum += power(relation, pow);
            }
        }
    }
}

/// `x` to a power; whole ones are quicker by multiplication.
fn power(x: f64, pow: f64) -> f64 {
    if pow == 1.0 {
        return x;
    }
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
        let logits = check::logits(train.logits()?)?;
        let places = by_prediction(logits);
        let n = places.len();
        self.bank = Some(Images {
            features: Panels::new(n, features.n_cols(), |i, z| unit(features.row(places[i]), z)),
            probabilities: Panels::new(n, logits.n_cols(), |i, p| {
                probabilities(logits.row(places[i]), p);
            }),
        });
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
        let features = check::features(batch.features()?, bank.features.depth())?;
        let logits = check::logits_of(batch.logits()?, bank.probabilities.depth())?;
        let pows: Vec<f64> = variants.iter().map(|params| params.pow).collect();
        let of_queries = Sums { bank, threshold: self.params.threshold, pows: &pows };
        let places = by_prediction(logits);
        let n = places.len();
        let at_a_time = queries_at_a_time(n);
        let mut sums = vec![0.0; n * pows.len()];
        let parts = sums.par_chunks_mut(at_a_time * pows.len().max(1));
        parts.zip(places.par_chunks(at_a_time)).for_each_init(
            || (Blocks::new(features.n_cols()), Blocks::new(logits.n_cols())),
            |(z, p), (sums, places)| {
                z.lay_out(places.len(), |i, z| unit(features.row(places[i]), z));
                p.lay_out(places.len(), |i, p| probabilities(logits.row(places[i]), p));
                of_queries.of(places.len(), z, p, sums);
            },
        );
        for (sums, &place) in sums.chunks_exact(pows.len()).zip(&places) {
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
        let bank: Option<Images> = state::load(bytes)?;
        if bank.as_ref().is_some_and(|bank| bank.features.n_rows() != bank.probabilities.n_rows()) {
            return Err(Error::input("the saved state has not as many features as predictions"));
        }
        self.bank = bank;
        Ok(())
    }
}
