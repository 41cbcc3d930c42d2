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

use faer::Par;
use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::neighbours::{Bank, normalise, normalised, squared_norm};
use crate::numeric::products::multiply_on;
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
    /// Reference features of length 1.
    bank: Bank,
    /// The parts that differ among so many images, ascending.
    parts: Vec<f64>,
    /// For each part and reference image, the squared distance within which the nearest so many
    /// lie, `[parts, n_rows]`.
    within: Vec<f32>,
}

impl Fitted {
    /// How many references have an image at these distances within a part. Distances count as
    /// shorter by `slack`.
    fn count(&self, part: usize, distances: &[f32], slack: f32) -> usize {
        let n = distances.len();
        let within = &self.within[part * n..(part + 1) * n];
        let pairs = distances.iter().zip(within);
        pairs.map(|(&distance, &within)| u32::from(distance - slack <= within)).sum::<u32>()
            as usize
    }

    /// The first part that enough references have the image within, as counts grow from part to
    /// part; as many as there are where there is none.
    fn first_part(&self, distances: &[f32], enough: f64, slack: f32) -> usize {
        let (mut low, mut high) = (0, self.parts.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.count(middle, distances, slack) as f64 >= enough {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        low
    }

    /// The same for distances that rounding may have moved by up to `slack`: where that can make a
    /// difference, they are computed from the features in `f64`.
    fn part(&self, query: &[f32], distances: &mut [f32], enough: f64, slack: f32) -> usize {
        let part = self.first_part(distances, enough, -slack);
        if part > 0 && self.count(part - 1, distances, slack) as f64 >= enough {
            for (row, distance) in distances.iter_mut().enumerate() {
                *distance = self.bank.squared_distance(row, query) as f32;
            }
            return self.first_part(distances, enough, 0.0);
        }
        part
    }
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

/// `within` of [`Fitted`].
fn thresholds(unit: &[f32], d: usize, positions: &[usize], host: &Host) -> Result<Vec<f32>> {
    /// Rows whose distances to all are held at a time.
    const ROWS: usize = 256;
    // In `f64`, so that distances do not depend on the order of sums.
    let rows: Vec<f64> = unit.iter().map(|&x| f64::from(x)).collect();
    let n = rows.len() / d;
    let squares: Vec<f64> = unit.chunks_exact(d).map(squared_norm).collect();
    // The nearest of all is the image itself.
    let positions: Vec<usize> = positions.iter().map(|position| position + 1).collect();
    let mut within = vec![0.0; n * positions.len()];
    let mut products = vec![0.0; ROWS * n];
    let mut by_row = vec![0.0; ROWS * positions.len()];
    for first in (0..n).step_by(ROWS) {
        host.progress(first, n)?;
        let some = &rows[first * d..(first + ROWS).min(n) * d];
        let products = &mut products[..some.len() / d * n];
        multiply_on(Par::rayon(0), some, &rows, d, products);
        let by_row = &mut by_row[..some.len() / d * positions.len()];
        let lists = by_row.par_chunks_exact_mut(positions.len()).zip(products.par_chunks_exact(n));
        lists.enumerate().for_each_init(
            || vec![0.0; n],
            |distances, (i, (within, products))| {
                for ((distance, product), square) in
                    distances.iter_mut().zip(products).zip(&squares)
                {
                    *distance = (squares[first + i] + square - 2.0 * product).max(0.0) as f32;
                }
                order_statistics(distances, 0, &positions, within);
            },
        );
        for (i, of_row) in by_row.chunks_exact(positions.len()).enumerate() {
            for (part, &distance) in of_row.iter().enumerate() {
                within[part * n + first + i] = distance;
            }
        }
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
        let mut unit = vec![0.0; n_rows * n_features];
        for (unit, &i) in unit.chunks_exact_mut(n_features).zip(&chosen) {
            normalise(features.row(i), unit);
        }
        let (parts, positions) = positions(n_rows);
        let within = thresholds(&unit, n_features, &positions, &self.host)?;
        let row = |i: usize| &unit[i * n_features..(i + 1) * n_features];
        let bank = Bank::new(n_rows, n_features, |i, out| out.copy_from_slice(row(i)));
        self.fitted = Some(Fitted { bank, parts, within });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    /// The distances to the references are found once for every `k`.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        let (n_rows, n_features) = (fitted.bank.n_rows(), fitted.bank.n_features());
        let features = check::features(batch.features()?, n_features)?;
        let queries = normalised(features);
        let queries = Matrix::new(&queries, features.n_rows(), n_features)?;
        // Of each sum's steps the errors are independent: the slack is several times what they are
        // expected to come to.
        let slack = (((n_features + 1) as f64).sqrt() * 2f64.powi(-22)) as f32;
        let parts = fitted.bank.scan(
            queries,
            || Vec::with_capacity(n_rows),
            |products, _, more| products.extend_from_slice(more),
            |i, mut distances| {
                let query = queries.row(i);
                let own = squared_norm(query) as f32;
                distances.iter_mut().for_each(|x: &mut f32| *x = (own - 2.0 * *x).max(0.0));
                let part = |params: &Params| {
                    fitted.part(query, &mut distances, params.k * n_rows as f64, slack)
                };
                variants.iter().map(part).collect::<Vec<usize>>()
            },
        );
        let n = batch.len();
        for (i, parts) in parts.iter().enumerate() {
            for (variant, &part) in parts.iter().enumerate() {
                scores[variant * n + i] = fitted.parts.get(part).map_or(1.0, |&part| part as f32);
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let fitted: Option<Fitted> = state::load(bytes)?;
        let fits = |fitted: &Fitted| {
            let expected = fitted.bank.n_rows().checked_mul(fitted.parts.len());
            expected == Some(fitted.within.len()) && fitted.bank.n_rows() > 0
        };
        if !fitted.as_ref().is_some_and(fits) {
            return Err(Error::input("the saved state holds thresholds of other images"));
        }
        self.fitted = fitted;
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
    fn rounding_does_not_decide_where_it_could() {
        // References have all within 3, or 4 for the second part.
        let rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let fitted = Fitted {
            bank: Bank::new(3, 3, |i, row| row.copy_from_slice(&rows[i])),
            parts: vec![0.25, 0.5],
            within: vec![3.0, 3.0, 3.0, 4.0, 4.0, 4.0],
        };
        // The last one's distance is at the threshold and was rounded up.
        let query = [1.0, -1.0, 0.0];
        let exact: Vec<f64> = (0..3).map(|row| fitted.bank.squared_distance(row, &query)).collect();
        assert_eq!(exact, [1.0, 5.0, 3.0]);
        let mut rounded = [1.0, 5.0, 3.000_002];
        assert_eq!(fitted.first_part(&rounded, 2.0, 0.0), 1);
        assert_eq!(fitted.part(&query, &mut rounded, 2.0, 1e-5), 0);
        assert_eq!(fitted.part(&query, &mut rounded, 3.0, 1e-5), 2);
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
