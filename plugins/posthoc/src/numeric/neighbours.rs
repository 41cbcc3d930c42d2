//! Exact nearest neighbours among unit vectors, in blocks.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};
use oodbench_sdk::Matrix;
use rayon::prelude::*;

/// Rows scaled to length 1; a row of zeros stays one.
pub fn normalised(xs: Matrix<'_>) -> Vec<f32> {
    let mut out = Vec::with_capacity(xs.values().len());
    for row in xs.rows() {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        out.extend(row.iter().map(|&x| (f64::from(x) * scale) as f32));
    }
    out
}

/// For each row of `queries`, the squared Euclidean distances to its `k`-th nearest row of `bank`,
/// for each `k`, from 1. One search for the greatest `k` serves all, and none changes another's
/// result. Memory is bounded by blocks of both.
///
/// # Shapes
/// Returns `[k, query]`.
///
/// # Panics
///
/// When a `k` is 0 or greater than the number of rows of `bank`, or there is none.
pub fn kth_distances(queries: Matrix<'_>, bank: Matrix<'_>, ks: &[usize]) -> Vec<f32> {
    /// Queries and bank rows of one product: 64 x 2048 floats stay in the cache.
    const QUERIES: usize = 64;
    const BANK: usize = 2048;
    let possible = 1..=bank.n_rows();
    assert!(ks.iter().all(|k| possible.contains(k)), "k = {ks:?} of {}", bank.n_rows());
    let greatest = *ks.iter().max().expect("at least one k");
    let d = bank.n_cols();
    let squares = |xs: &[f32]| xs.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32;
    let bank_squares: Vec<f32> = bank.rows().map(squares).collect();
    let n_blocks = queries.n_rows().div_ceil(QUERIES);
    let blocks: Vec<Vec<f32>> = (0..n_blocks)
        .into_par_iter()
        .map_init(
            || vec![0f32; QUERIES * BANK],
            |products, block| {
                let first = block * QUERIES;
                let n = QUERIES.min(queries.n_rows() - first);
                let block = &queries.values()[first * d..(first + n) * d];
                let block = MatRef::from_row_major_slice(block, n, d);
                let mut nearest: Vec<Smallest> = (0..n).map(|_| Smallest::new(greatest)).collect();
                for start in (0..bank.n_rows()).step_by(BANK) {
                    let m = BANK.min(bank.n_rows() - start);
                    let rows = &bank.values()[start * d..(start + m) * d];
                    let rows = MatRef::from_row_major_slice(rows, m, d);
                    let out = faer::MatMut::from_row_major_slice_mut(&mut products[..n * m], n, m);
                    matmul(out, Accum::Replace, block, rows.transpose(), 1.0, Par::Seq);
                    for (nearest, dots) in nearest.iter_mut().zip(products.chunks_exact(m)) {
                        // The query's own square is the same for all and is added at the end.
                        for (dot, square) in dots.iter().zip(&bank_squares[start..]) {
                            nearest.offer(square - 2.0 * dot);
                        }
                    }
                }
                let of_query = (first..first + n).zip(&mut nearest).flat_map(|(i, nearest)| {
                    let own = squares(queries.row(i));
                    ks.iter().map(move |&k| (nearest.kth(k) + own).max(0.0))
                });
                of_query.collect()
            },
        )
        .collect();
    let by_query = blocks.concat();
    let of = |nth: usize| by_query[nth..].iter().step_by(ks.len()).copied();
    (0..ks.len()).filter(|_| !by_query.is_empty()).flat_map(of).collect()
}

/// Keeps the `k` smallest values of a stream: a buffer of twice as many, cut down when full.
pub struct Smallest {
    k: usize,
    buffer: Vec<f32>,
    /// No value above it can be among the smallest.
    bound: f32,
}

impl Smallest {
    /// None so far.
    pub fn new(k: usize) -> Self {
        Self { k, buffer: Vec::with_capacity(2 * k), bound: f32::INFINITY }
    }

    /// The next value of the stream.
    pub fn offer(&mut self, value: f32) {
        // A NaN is kept, so that it shows in the result.
        if value > self.bound {
            return;
        }
        self.buffer.push(value);
        if self.buffer.len() == 2 * self.k {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let (_, &mut kth, _) = self.buffer.select_nth_unstable_by(self.k - 1, f32::total_cmp);
        self.buffer.truncate(self.k);
        self.bound = kth;
    }

    /// The smallest in ascending order, as many as there are, up to `k`.
    pub fn sorted(mut self) -> Vec<f32> {
        self.buffer.sort_unstable_by(f32::total_cmp);
        self.buffer.truncate(self.k);
        self.buffer
    }

    /// The `k`-th smallest of all, for a `k` of at most as many as are kept.
    fn kth(&mut self, k: usize) -> f32 {
        if self.buffer.iter().any(|value| value.is_nan()) {
            return f32::NAN;
        }
        *self.buffer.select_nth_unstable_by(k - 1, f32::total_cmp).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_sorting_every_distance() {
        let (n, m, d) = (70, 2100, 5);
        let value = |i: usize| ((i * 7919 % 1013) as f32 / 1013.0) - 0.5;
        let queries: Vec<f32> = (0..n * d).map(value).collect();
        let bank: Vec<f32> = (0..m * d).map(|i| value(i * 3 + 1)).collect();
        let queries = Matrix::new(&queries, n, d).unwrap();
        let bank = Matrix::new(&bank, m, d).unwrap();
        let ks = [50, 1, m, 2];
        let together = kth_distances(queries, bank, &ks);
        for (k, together) in ks.into_iter().zip(together.chunks_exact(n)) {
            let got = kth_distances(queries, bank, &[k]);
            assert_eq!(got, together, "k {k}");
            for (i, got) in got.iter().enumerate() {
                let mut all: Vec<f32> = bank
                    .rows()
                    .map(|b| b.iter().zip(queries.row(i)).map(|(x, y)| (x - y).powi(2)).sum())
                    .collect();
                all.sort_by(f32::total_cmp);
                assert!((got - all[k - 1]).abs() < 1e-5, "k {k}: {got} {}", all[k - 1]);
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let xs = [0.0, 0.0, 3.0, 4.0];
        assert_eq!(normalised(Matrix::new(&xs, 2, 2).unwrap()), [0.0, 0.0, 0.6, 0.8]);
    }
}
