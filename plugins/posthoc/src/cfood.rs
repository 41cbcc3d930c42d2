//! Concentration-free outlier factor.
//!
//! Angiulli, "CFOF: A Concentration Free Measure for Anomaly Detection", 2020, as OpenOOD's `cfood`
//! (2025) takes it to features scaled to length 1. Score: the smallest part `f` for which at least
//! a part `k` of the reference images have the scored image among their nearest `f` of all
//! reference images; 1 if there is none. An outlier is near to few, so it needs a large part.
//!
//! Parts come from a grid of 230 values, as in OpenOOD, so scores have many ties. The reference
//! images are a random part `alpha` of the training images, without a seed in OpenOOD, whose
//! scores differ from run to run; here it follows from the run's seed. OpenOOD's `avg_topk` has no
//! effect there and does not exist here, and its search cannot run.

use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::neighbours::normalised;
use crate::numeric::products::{Rows, scan};
use crate::numeric::random::Random;
use crate::numeric::state;

/// Parameters of [`Cfood`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    alpha: f64,
    k: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { alpha: 0.1, k: 0.01 }
    }
}

/// Concentration-free outlier factor.
pub struct Cfood {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    /// Reference features of length 1; `f64` so that distances do not depend on the order of sums.
    bank: Vec<f64>,
    n_rows: usize,
    n_features: usize,
    /// The parts that differ among so many images, ascending.
    parts: Vec<f64>,
    /// For each reference image and part, the squared distance within which the nearest so many
    /// lie, `[n_rows, parts]`.
    within: Vec<f32>,
}

/// The grid: 230 parts, close together where they are small.
fn grid() -> Vec<f64> {
    let even = |first: f64, last: f64, n: usize| {
        let step = (last - first) / (n - 1) as f64;
        (0..n).map(move |i| if i + 1 == n { last } else { first + i as f64 * step })
    };
    even(0.001, 0.1, 100).chain(even(0.105, 0.5, 81)).chain(even(0.51, 0.99, 49)).collect()
}

/// The parts of the grid that differ among `n` images, with the neighbour that each ends at, where
/// 0 is the nearest.
fn positions(n: usize) -> (Vec<f64>, Vec<usize>) {
    let (mut parts, mut positions) = (Vec::new(), Vec::new());
    for part in grid() {
        // Towards 0, also from below.
        let position = (part * n as f64 - 1.0).max(0.0) as usize;
        if positions.last() != Some(&position) {
            parts.push(part);
            positions.push(position);
        }
    }
    (parts, positions)
}

/// The values at ascending positions of the sorted list, without sorting all of it. `offset` is the
/// position of the first value.
fn order_statistics(values: &mut [f32], offset: usize, positions: &[usize], out: &mut [f32]) {
    let middle = positions.len() / 2;
    let Some(&position) = positions.get(middle) else { return };
    let (below, &mut value, above) =
        values.select_nth_unstable_by(position - offset, f32::total_cmp);
    out[middle] = value;
    let (out_below, out_above) = out.split_at_mut(middle);
    order_statistics(below, offset, &positions[..middle], out_below);
    order_statistics(above, position + 1, &positions[middle + 1..], &mut out_above[1..]);
}

/// The squared length of each row.
fn squares(rows: &[f64], d: usize) -> Vec<f64> {
    rows.chunks_exact(d).map(|row| row.iter().map(|x| x * x).sum()).collect()
}

/// The squared distance, from squared lengths and the product; rounded, so that sums in another
/// order give the same.
fn distance(a: f64, b: f64, product: f64) -> f32 {
    (a + b - 2.0 * product).max(0.0) as f32
}

/// `within` of [`Fitted`].
fn thresholds(bank: Rows<'_, f64>, positions: &[usize], host: &Host) -> Result<Vec<f32>> {
    /// Rows whose distances to all are held at a time.
    const ROWS: usize = 256;
    let (n, d) = (bank.n_rows, bank.n_cols);
    let squares = squares(bank.values, d);
    // The nearest of all is the image itself.
    let positions: Vec<usize> = positions.iter().map(|position| position + 1).collect();
    let mut within = vec![0.0; n * positions.len()];
    for (first, within) in (0..n).step_by(ROWS).zip(within.chunks_mut(ROWS * positions.len())) {
        host.progress(first, n)?;
        let rows = ROWS.min(n - first);
        let queries =
            Rows { values: &bank.values[first * d..(first + rows) * d], n_rows: rows, n_cols: d };
        let mut distances = scan(
            queries,
            bank,
            |i| (squares[first + i], Vec::with_capacity(n)),
            |(own, distances): &mut (f64, Vec<f32>), start, products| {
                let pairs = products.iter().zip(&squares[start..]);
                distances.extend(pairs.map(|(&product, &other)| distance(*own, other, product)));
            },
        );
        let rows = within.par_chunks_exact_mut(positions.len()).zip(&mut distances);
        rows.for_each(|(within, (_, distances))| {
            order_statistics(distances, 0, &positions, within);
        });
    }
    Ok(within)
}

impl Detector for Cfood {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "cfood",
            title: "Concentration-free outlier factor",
            family: "distance",
            summary: "how many neighbours training images must have for enough of them to have this one",
            paper: "Angiulli, CFOF: A Concentration Free Measure for Anomaly Detection",
            year: 2020,
            url: "https://arxiv.org/abs/1901.04992",
            needs: Needs::FEATURES.and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "alpha",
                    "which part of the training images is referred to",
                    "OpenOOD v1.5",
                )
                .sweep([0.1, 0.5, 1.0]),
                Param::new("k", "which part of these must have the image near", "OpenOOD v1.5")
                    .sweep([0.001, 0.005, 0.01, 0.05])
                    .readout(),
            ],
            // Three directions at right angles and one opposite to the first, so that squared
            // distances are 2 or, between the opposite two, 4. With four images the parts end at the
            // nearest (0.001), the second (0.5) and the third (0.75) neighbour. For all of them to
            // have the image near, the first needs the third neighbours, because of its opposite, the
            // second is at most as far from each as its nearest, and the last is opposite to one
            // that has no neighbour so far.
            example: Example::of_features(
                &[&[5.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, -1.0, 0.0]],
                &[0.75, 0.001, 1.0],
            )
            .train(
                &[&[1.0, 0.0, 0.0], &[0.0, 2.0, 0.0], &[0.0, 0.0, 3.0], &[-4.0, 0.0, 0.0]],
                &[0, 0, 1, 1],
            )
            .param("alpha", 1.0)
            .param("k", 1.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        for (name, value) in [("alpha", params.alpha), ("k", params.k)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(Error::parameter(name, "above 0, up to 1", value));
            }
        }
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let features = check::fit_features(data.train().features()?, "training")?;
        let (n, n_features) = (features.n_rows(), features.n_cols());
        let n_rows = (n as f64 * self.params.alpha) as usize;
        if n_rows < 2 {
            return Err(Error::input(format!(
                "reference images expected at least 2, got {n_rows} of {n} training images\n\nhint: raise `alpha`"
            )));
        }
        let mut chosen: Vec<usize> = if n_rows == n {
            (0..n).collect()
        } else {
            Random::new(self.host.seed()).choose(n_rows, n)
        };
        chosen.sort_unstable();
        let mut bank = Vec::with_capacity(n_rows * n_features);
        for i in chosen {
            let row = normalised(Matrix::new(features.row(i), 1, n_features)?);
            bank.extend(row.into_iter().map(f64::from));
        }
        let (parts, positions) = positions(n_rows);
        let rows = Rows { values: &bank, n_rows, n_cols: n_features };
        let within = thresholds(rows, &positions, &self.host)?;
        self.fitted = Some(Fitted { bank, n_rows, n_features, parts, within });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    /// How many references have an image within each part is counted once for every `k`.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let features = check::features(batch.features()?, fitted.n_features)?;
        let queries: Vec<f64> = normalised(features).into_iter().map(f64::from).collect();
        let d = fitted.n_features;
        let (of_queries, of_bank) = (squares(&queries, d), squares(&fitted.bank, d));
        let n_parts = fitted.parts.len();
        let counts = scan(
            Rows { values: &queries, n_rows: features.n_rows(), n_cols: d },
            Rows { values: &fitted.bank, n_rows: fitted.n_rows, n_cols: d },
            // The last count is of references that do not have it within any part.
            |i| (of_queries[i], vec![0usize; n_parts + 1]),
            |(own, counts): &mut (f64, Vec<usize>), start, products| {
                let within = fitted.within[start * n_parts..].chunks_exact(n_parts);
                for ((&product, &other), within) in
                    products.iter().zip(&of_bank[start..]).zip(within)
                {
                    let distance = distance(*own, other, product);
                    counts[within.partition_point(|&within| within < distance)] += 1;
                }
            },
        );
        let n = batch.len();
        for (i, (_, counts)) in counts.iter().enumerate() {
            for (variant, params) in variants.iter().enumerate() {
                let enough = params.k * fitted.n_rows as f64;
                let mut so_far = 0;
                let part = counts.iter().zip(&fitted.parts).find(|(count, _)| {
                    so_far += **count;
                    so_far as f64 >= enough
                });
                scores[variant * n + i] = part.map_or(1.0, |(_, part)| *part) as f32;
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.fitted = state::load(bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_images_leave_few_parts() {
        assert_eq!(grid().len(), 230);
        let (parts, at) = positions(4);
        assert_eq!(at, [0, 1, 2]);
        assert_eq!((parts[0], parts[1]), (0.001, 0.5));
        assert_eq!(positions(2000).0.len(), 230);
        assert_eq!(positions(200).0.len(), 149);
    }

    #[test]
    fn order_statistics_are_those_of_the_sorted_list() {
        let values: Vec<f32> = (0..97u32).map(|i| (i * 31 % 97) as f32).collect();
        let positions = [0, 3, 4, 50, 96];
        let mut out = [0.0; 5];
        order_statistics(&mut values.clone(), 0, &positions, &mut out);
        assert_eq!(out, [0.0, 3.0, 4.0, 50.0, 96.0]);
    }
}
