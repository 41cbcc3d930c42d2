//! Mixtures of Gaussians that share one covariance, fitted by expectation and maximisation.
//!
//! The procedure is that of scikit-learn's `GaussianMixture` with `covariance_type="tied"`: one
//! start from k-means, whose own start is k-means++, a ridge on the covariance's diagonal, and an
//! end when the mean log-likelihood no longer grows. Random numbers are others, so that the two
//! find the same mixture only where the data leave no choice.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use oodbench_sdk::{Error, Matrix, Result};
use rayon::prelude::*;

use crate::numeric::linalg::{
    Stored, eigen, mean, of_projections, scatter, squared_distance, squared_distances,
};
use crate::numeric::random::Random;

/// Rows that are worked on at a time.
const ROWS: usize = 512;
/// What scikit-learn adds to the diagonal of the covariance.
const RIDGE: f64 = 1e-6;
/// The greatest number of rounds of k-means, and of expectation and maximisation.
const KMEANS_ROUNDS: usize = 300;
const EM_ROUNDS: usize = 100;
/// Where both end: a part of the data's variance, a gain in log-likelihood.
const KMEANS_TOLERANCE: f64 = 1e-4;
const EM_TOLERANCE: f64 = 1e-3;

/// A mixture of Gaussians with one covariance.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mixture {
    /// Takes features to where the covariance is the identity, `[n_features, rank]`.
    basis: Stored,
    /// Means there, `[rank, n_clusters]`.
    means: Stored,
    weights: Vec<f64>,
}

impl Mixture {
    /// A mixture in the space of `xs * transform`.
    ///
    /// # Shapes
    /// `transform`: `[n_features, rank]`, `precision`: `[rank, rank]`, `means`:
    /// `[n_clusters, rank]`, `weights`: `[n_clusters]`.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn new(
        transform: &Stored,
        precision: &Stored,
        means: &Stored,
        weights: &[f64],
    ) -> Result<Self> {
        let (transform, means) = (transform.view()?, means.view()?);
        let (values, vectors) = eigen(precision.view()?)?;
        let root = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
            vectors[(i, j)] * values[j].max(0.0).sqrt()
        });
        let (basis, means) = (transform * &root, root.transpose() * means.transpose());
        Ok(Self { basis: (&basis).into(), means: (&means).into(), weights: weights.to_vec() })
    }

    /// Fits a mixture on the first `n_components` principal components, or all if there are fewer.
    /// `progress` is called now and then and may end it.
    ///
    /// # Errors
    /// More clusters than rows, what `progress` fails with.
    pub fn fit(
        xs: Matrix<'_>,
        n_clusters: usize,
        n_components: usize,
        seed: u64,
        progress: impl Fn(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let (n, d) = (xs.n_rows(), xs.n_cols());
        if n_clusters == 0 || n_clusters > n {
            return Err(Error::input(format!("clusters expected 1 to {n}, got {n_clusters}")));
        }
        let centre = mean(xs);
        let (_, vectors) = eigen(scatter(xs, |_| &centre).as_ref())?;
        let rank = n_components.min(d);
        // Eigenvalues ascend.
        let transform = Mat::from_fn(d, rank, |i, j| vectors[(i, d - 1 - j)]);
        let rows = of_projections(xs, &centre, &(&transform).into(), |_, z| z.to_vec())?;
        let zs = rows.concat();
        let zs = MatRef::from_row_major_slice(&zs, n, rank);
        let clusters = kmeans(zs, n_clusters, &mut Random::new(seed), &progress)?;
        let Fitted { mut means, precision, weights } =
            maximise_likelihood(zs, clusters, &progress)?;
        // Back to features that are not centred.
        for j in 0..rank {
            let offset: f64 = (0..d).map(|i| centre[i] * transform[(i, j)]).sum();
            (0..n_clusters).for_each(|k| means[(k, j)] += offset);
        }
        Self::new(&(&transform).into(), &(&precision).into(), &(&means).into(), &weights)
    }

    /// Number of features.
    ///
    /// # Errors
    /// A state whose sizes do not agree with its values.
    pub fn n_features(&self) -> Result<usize> {
        Ok(self.basis.view()?.nrows())
    }

    /// `log(sum_j w_j exp(-m_j / 2))` for each row and its squared Mahalanobis distances `m_j` to
    /// the means; the densities' common factor is left out.
    ///
    /// # Errors
    /// A state whose sizes do not agree with its values.
    pub fn log_densities(&self, xs: Matrix<'_>) -> Result<Vec<f64>> {
        let (rank, n_clusters) = (self.means.view()?.nrows(), self.weights.len());
        if self.means.view()?.ncols() != n_clusters || self.basis.view()?.ncols() != rank {
            return Err(Error::input("the saved state holds a matrix of another size"));
        }
        let log_weights: Vec<f64> = self.weights.iter().map(|weight| weight.ln()).collect();
        let origin = vec![0.0; xs.n_cols()];
        of_projections(xs, &origin, &self.basis, |_, z| {
            let distance = |k: usize| squared_distance(z, self.means.column(k));
            let term = |(k, log_weight): (usize, &f64)| log_weight - 0.5 * distance(k);
            log_sum(&log_weights.iter().enumerate().map(term).collect::<Vec<f64>>())
        })
    }
}

/// `log(sum(exp(terms)))`
fn log_sum(terms: &[f64]) -> f64 {
    let max = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + terms.iter().map(|term| (term - max).exp()).sum::<f64>().ln()
}

/// What `of_block` makes of each block of rows: it gets the number of the first row, the rows, and
/// their squared distances to the means. Blocks run in parallel and come back in order.
fn of_blocks<R: Send>(
    zs: MatRef<'_, f64>,
    means: MatRef<'_, f64>,
    of_block: impl Fn(usize, MatRef<'_, f64>, Mat<f64>) -> R + Sync,
) -> Vec<R> {
    (0..zs.nrows().div_ceil(ROWS))
        .into_par_iter()
        .map(|block| {
            let first = block * ROWS;
            let rows = zs.subrows(first, ROWS.min(zs.nrows() - first));
            of_block(first, rows, squared_distances(rows, means))
        })
        .collect()
}

/// The sum of the rows of each cluster, weighted, and of the weights.
struct Sums {
    rows: Mat<f64>,
    counts: Vec<f64>,
}

impl Sums {
    fn none(n_clusters: usize, d: usize) -> Self {
        Self { rows: Mat::zeros(n_clusters, d), counts: vec![0.0; n_clusters] }
    }

    fn add(&mut self, other: &Self) {
        self.rows += &other.rows;
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
    }
}

/// The cluster of each row, as sums over the clusters.
fn kmeans(
    zs: MatRef<'_, f64>,
    n_clusters: usize,
    random: &mut Random,
    progress: &impl Fn(usize, usize) -> Result<()>,
) -> Result<Sums> {
    let (n, d) = (zs.nrows(), zs.ncols());
    let mut means = first_means(zs, n_clusters, random);
    let centre: Vec<f64> = (0..d).map(|j| zs.col(j).sum() / n as f64).collect();
    let variance = |j: usize| zs.col(j).iter().map(|z| (z - centre[j]).powi(2)).sum::<f64>();
    let mean_variance = (0..d).map(variance).sum::<f64>() / (n * d.max(1)) as f64;
    let mut round = 0;
    loop {
        progress(round, KMEANS_ROUNDS + EM_ROUNDS)?;
        let blocks = of_blocks(zs, means.as_ref(), |_, rows, distances| {
            let mut nearest = vec![f64::INFINITY; rows.nrows()];
            let mut labels = vec![0; rows.nrows()];
            for k in 0..n_clusters {
                let of_mean = distances.col_as_slice(k).iter();
                for ((distance, nearest), label) in of_mean.zip(&mut nearest).zip(&mut labels) {
                    if distance < nearest {
                        (*nearest, *label) = (*distance, k);
                    }
                }
            }
            let mut sums = Sums::none(n_clusters, d);
            labels.iter().for_each(|&k| sums.counts[k] += 1.0);
            for j in 0..d {
                for (i, &k) in labels.iter().enumerate() {
                    sums.rows[(k, j)] += rows[(i, j)];
                }
            }
            (sums, nearest)
        });
        let mut sums = Sums::none(n_clusters, d);
        blocks.iter().for_each(|(of_block, _)| sums.add(of_block));
        if round == KMEANS_ROUNDS {
            return Ok(sums);
        }
        let mut nearest: Vec<f64> = blocks.into_iter().flat_map(|(_, nearest)| nearest).collect();
        let mut shift = 0.0;
        for k in 0..n_clusters {
            let mean = if sums.counts[k] > 0.0 {
                Mat::from_fn(1, d, |_, j| sums.rows[(k, j)] / sums.counts[k])
            } else {
                // An empty cluster goes to the row that is worst off.
                let worst = (0..n).max_by(|&a, &b| nearest[a].total_cmp(&nearest[b])).unwrap_or(0);
                nearest[worst] = 0.0;
                zs.subrows(worst, 1).to_owned()
            };
            shift += (0..d).map(|j| (mean[(0, j)] - means[(k, j)]).powi(2)).sum::<f64>();
            means.row_mut(k).copy_from(mean.row(0));
        }
        // The last round finds the clusters of the last means.
        round = if shift <= KMEANS_TOLERANCE * mean_variance { KMEANS_ROUNDS } else { round + 1 };
    }
}

/// Rows to start from: each next is the likelier the farther it is from those that there are.
fn first_means(zs: MatRef<'_, f64>, n_clusters: usize, random: &mut Random) -> Mat<f64> {
    let n = zs.nrows();
    let mut means = Mat::zeros(n_clusters, zs.ncols());
    let mut nearest = vec![f64::INFINITY; n];
    let mut row = random.below(n);
    for k in 0..n_clusters {
        means.row_mut(k).copy_from(zs.row(row));
        let blocks = of_blocks(zs, means.as_ref().subrows(k, 1), |_, _, distances| distances);
        let distances = blocks.iter().flat_map(|block| block.col_as_slice(0));
        for (nearest, distance) in nearest.iter_mut().zip(distances) {
            *nearest = nearest.min(*distance);
        }
        let mut at = random.unit() * nearest.iter().sum::<f64>();
        let next = nearest.iter().position(|distance| {
            at -= distance;
            at < 0.0
        });
        // Where all rows are means already there is none.
        row = next.unwrap_or_else(|| random.below(n));
    }
    means
}

/// The parameters of a mixture.
struct Fitted {
    means: Mat<f64>,
    precision: Mat<f64>,
    weights: Vec<f64>,
}

/// Goes from the clusters of `sums` to a mixture of greater likelihood until that no longer grows.
fn maximise_likelihood(
    zs: MatRef<'_, f64>,
    mut sums: Sums,
    progress: &impl Fn(usize, usize) -> Result<()>,
) -> Result<Fitted> {
    let (n, d, n_clusters) = (zs.nrows(), zs.ncols(), sums.counts.len());
    let mut squares = Mat::<f64>::zeros(d, d);
    matmul(squares.as_mut(), Accum::Replace, zs.transpose(), zs, 1.0, Par::rayon(0));
    let mut likelihood = f64::NEG_INFINITY;
    let mut round = 0;
    loop {
        progress(KMEANS_ROUNDS + round, KMEANS_ROUNDS + EM_ROUNDS)?;
        // A cluster may be empty.
        sums.counts.iter_mut().for_each(|count| *count += 10.0 * f64::EPSILON);
        let total: f64 = sums.counts.iter().sum();
        let weights: Vec<f64> = sums.counts.iter().map(|count| count / total).collect();
        let means = Mat::from_fn(n_clusters, d, |k, j| sums.rows[(k, j)] / sums.counts[k]);
        let mut covariance = Mat::from_fn(d, d, |i, j| squares[(i, j)] / total);
        let weighted = Mat::from_fn(n_clusters, d, |k, j| means[(k, j)] * weights[k]);
        matmul(covariance.as_mut(), Accum::Add, means.transpose(), &weighted, -1.0, Par::rayon(0));
        (0..d).for_each(|j| covariance[(j, j)] += RIDGE);
        let (values, vectors) = eigen(covariance.as_ref())?;
        // Rounding may take a variance below the ridge.
        let values: Vec<f64> = values.iter().map(|value| value.max(RIDGE)).collect();
        let root = Mat::from_fn(d, d, |i, j| vectors[(i, j)] / values[j].sqrt());
        if round == EM_ROUNDS {
            return Ok(Fitted { means, precision: &root * root.transpose(), weights });
        }
        let log_det: f64 = values.iter().map(|value| value.ln()).sum();
        let whitened = zs * &root;
        let blocks =
            of_blocks(whitened.as_ref(), (&means * &root).as_ref(), |first, rows, shares| {
                share_out(zs.subrows(first, rows.nrows()), shares, &weights)
            });
        let mut now = 0.0;
        sums = Sums::none(n_clusters, d);
        for (of_block, log_density) in &blocks {
            sums.add(of_block);
            now += log_density;
        }
        now = now / n as f64 - 0.5 * log_det;
        round = if (now - likelihood).abs() < EM_TOLERANCE { EM_ROUNDS } else { round + 1 };
        likelihood = now;
    }
}

/// Shares rows out among clusters by their squared distances, and sums their log densities.
fn share_out(rows: MatRef<'_, f64>, mut shares: Mat<f64>, weights: &[f64]) -> (Sums, f64) {
    let n = rows.nrows();
    let mut greatest = vec![f64::NEG_INFINITY; n];
    for (k, weight) in weights.iter().enumerate() {
        let log_weight = weight.ln();
        for (share, greatest) in shares.col_as_slice_mut(k).iter_mut().zip(&mut greatest) {
            *share = log_weight - 0.5 * *share;
            *greatest = greatest.max(*share);
        }
    }
    let mut total = vec![0.0; n];
    for k in 0..weights.len() {
        let of_cluster = shares.col_as_slice_mut(k).iter_mut();
        for ((share, greatest), total) in of_cluster.zip(&greatest).zip(&mut total) {
            *share = (*share - greatest).exp();
            *total += *share;
        }
    }
    let mut sums = Sums::none(weights.len(), rows.ncols());
    for (k, count) in sums.counts.iter_mut().enumerate() {
        for (share, total) in shares.col_as_slice_mut(k).iter_mut().zip(&total) {
            *share /= total;
            *count += *share;
        }
    }
    matmul(sums.rows.as_mut(), Accum::Replace, shares.transpose(), rows, 1.0, Par::Seq);
    (sums, greatest.iter().zip(&total).map(|(greatest, total)| greatest + total.ln()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_heaps_far_apart_are_found() {
        // Three times as many on the left, each heap with half the identity as covariance.
        let cross = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]];
        let heap = |x: f32| cross.iter().flat_map(move |c| [c[0] as f32 + x, c[1] as f32]);
        let values: Vec<f32> =
            heap(-50.0).chain(heap(-50.0)).chain(heap(-50.0)).chain(heap(70.0)).collect();
        let xs = Matrix::new(&values, 16, 2).unwrap();
        for seed in 0..10 {
            let mixture = Mixture::fit(xs, 2, 2, seed, |_, _| Ok(())).unwrap();
            let queries = [-50.0, 0.0, 70.0, 0.0, 72.0, 0.0];
            let got = mixture.log_densities(Matrix::new(&queries, 3, 2).unwrap()).unwrap();
            let expected = [0.75f64.ln(), 0.25f64.ln(), 0.25f64.ln() - 4.0];
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-4, "seed {seed}: {got} {expected}");
            }
        }
    }

    #[test]
    fn rows_that_are_all_the_same_have_finite_densities() {
        let values = [3.0f32; 20];
        let xs = Matrix::new(&values, 10, 2).unwrap();
        let mixture = Mixture::fit(xs, 4, 2, 0, |_, _| Ok(())).unwrap();
        let densities = mixture.log_densities(xs).unwrap();
        assert!(densities.iter().all(|density| density.is_finite()));
        assert!(Mixture::fit(xs, 11, 2, 0, |_, _| Ok(())).is_err());
    }
}
