//! Exact nearest neighbours: the greatest inner products with a bank, and Euclidean distances.

use oodbench_sdk::Matrix;
use oodbench_sdk::serde::{Deserialize, Serialize};
use rayon::prelude::*;

use super::tiles::{Panels, scan};
use super::wide::sum_of;

/// Rows scaled to length 1; a row of zeros stays one.
pub fn normalised(xs: Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; xs.values().len()];
    let rows = out.par_chunks_mut(xs.n_cols().max(1));
    rows.enumerate().for_each(|(i, out)| normalise(xs.row(i), out));
    out
}

/// One row scaled to length 1; a row of zeros stays one.
pub fn normalise(row: &[f32], out: &mut [f32]) {
    let norm = squared_norm(row).sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    for (out, &x) in out.iter_mut().zip(row) {
        *out = (f64::from(x) * scale) as f32;
    }
}

/// The sum of squares.
pub fn squared_norm(row: &[f32]) -> f64 {
    sum_of(row, |x| f64::from(x) * f64::from(x))
}

/// Rows that neighbours are looked for among.
///
/// Each row `b` is followed by `-|b|^2 / 2` and each query `q` by 1: the nearest rows are those of
/// the greatest product `q . b - |b|^2 / 2`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub struct Bank {
    panels: Panels,
}

impl Bank {
    /// A bank of `n_rows` rows of `n_features` numbers, each of which `fill` writes.
    pub fn new(n_rows: usize, n_features: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let fill = |i: usize, row: &mut [f32]| {
            let (last, row) = row.split_last_mut().expect("room for one more");
            fill(i, row);
            *last = (-0.5 * squared_norm(row)) as f32;
        };
        Self { panels: Panels::new(n_rows, n_features + 1, fill) }
    }

    /// A bank of the rows scaled to length 1.
    pub fn normalised(xs: Matrix<'_>) -> Self {
        Self::new(xs.n_rows(), xs.n_cols(), |i, row| normalise(xs.row(i), row))
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.panels.n_rows()
    }

    /// Numbers of a row.
    pub fn n_features(&self) -> usize {
        self.panels.depth().saturating_sub(1)
    }

    /// For each query, the squared Euclidean distances to its `k`-th nearest row, for each `k`,
    /// from 1. One search for the greatest `k` serves all, and none changes another's result.
    ///
    /// Which row that is follows from products in `f32`, in which rows that are equally far but for
    /// 1e-6 may change places; its distance is computed from the rows in `f64`.
    ///
    /// # Shapes
    /// `queries`: `[n, n_features]`; returns `[k, query]`.
    ///
    /// # Panics
    ///
    /// When a `k` is 0 or greater than the number of rows, or there is none, or queries have
    /// another number of columns.
    pub fn kth_distances(&self, queries: Matrix<'_>, ks: &[usize]) -> Vec<f32> {
        let possible = 1..=self.n_rows();
        assert!(ks.iter().all(|k| possible.contains(k)), "k = {ks:?} of {}", self.n_rows());
        let greatest = *ks.iter().max().expect("at least one k");
        let by_query = self.scan(
            queries,
            || Greatest::new(greatest),
            Greatest::offer,
            |i, mut nearest| {
                let distance = |&k: &usize| self.squared_distance(nearest.kth(k), queries.row(i));
                ks.iter().map(distance).map(|distance| distance as f32).collect::<Vec<f32>>()
            },
        );
        (0..ks.len()).flat_map(|nth| by_query.iter().map(move |of_query| of_query[nth])).collect()
    }

    /// Shows each query `q` its products `q . b - |b|^2 / 2` with the rows, as [`scan`] does.
    ///
    /// # Panics
    ///
    /// When queries have another number of columns.
    pub fn scan<S, R: Send>(
        &self,
        queries: Matrix<'_>,
        init: impl Fn() -> S + Sync,
        visit: impl Fn(&mut S, usize, &[f32]) + Sync,
        end: impl Fn(usize, S) -> R + Sync,
    ) -> Vec<R> {
        let d = self.n_features();
        assert_eq!(queries.n_cols(), d, "columns of queries");
        let fill = |i: usize, row: &mut [f32]| {
            row[..d].copy_from_slice(queries.row(i));
            row[d] = 1.0;
        };
        scan(queries.n_rows(), &self.panels, fill, init, visit, end)
    }

    /// The squared Euclidean distance of a row to a query.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn squared_distance(&self, row: usize, query: &[f32]) -> f64 {
        let pairs = self.panels.row(row).zip(query);
        pairs.map(|(b, &q)| (f64::from(b) - f64::from(q)).powi(2)).sum()
    }
}

/// Keeps the `k` greatest of a query's products with a bank, the first of equal ones: a buffer of
/// twice as many, cut down when full.
pub struct Greatest {
    k: usize,
    /// Products and the rows that they are with.
    buffer: Vec<(f32, u32)>,
    /// Nothing up to it can be among the greatest.
    bound: f32,
}

impl Greatest {
    /// None so far.
    ///
    /// # Panics
    ///
    /// When `k` is 0.
    pub fn new(k: usize) -> Self {
        assert!(k > 0, "at least one product is kept");
        Self { k, buffer: Vec::with_capacity(2 * k), bound: f32::NEG_INFINITY }
    }

    /// The next products, with the rows from `first`.
    pub fn offer(&mut self, first: usize, products: &[f32]) {
        // A NaN is kept, so that it shows in the result.
        let passes = |product: f32, bound: f32| (product > bound) | product.is_nan();
        // Most often nothing does, which is found out without a jump for each.
        let bound = self.bound;
        if products.iter().map(|&product| u32::from(passes(product, bound))).sum::<u32>() == 0 {
            return;
        }
        for (row, &product) in (first..).zip(products) {
            if passes(product, self.bound) {
                self.buffer.push((product, row as u32));
                if self.buffer.len() == 2 * self.k {
                    self.cut();
                }
            }
        }
    }

    /// Greater products first, then rows in order.
    fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
        b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
    }

    fn cut(&mut self) {
        let (_, &mut (kth, _), _) = self.buffer.select_nth_unstable_by(self.k - 1, Self::order);
        self.buffer.truncate(self.k);
        self.bound = kth;
    }

    /// The row of the `k`-th greatest product, for a `k` of at most as many as are kept.
    fn kth(&mut self, k: usize) -> usize {
        self.buffer.select_nth_unstable_by(k - 1, Self::order).1.1 as usize
    }

    /// The products in descending order, as many as there are, up to `k`.
    pub fn sorted(mut self) -> Vec<f32> {
        self.buffer.sort_unstable_by(Self::order);
        self.buffer.truncate(self.k);
        self.buffer.into_iter().map(|(product, _)| product).collect()
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
        let rows = Matrix::new(&bank, m, d).unwrap();
        let bank = Bank::new(m, d, |i, row| row.copy_from_slice(rows.row(i)));
        let ks = [50, 1, m, 2];
        let together = bank.kth_distances(queries, &ks);
        for (k, together) in ks.into_iter().zip(together.chunks_exact(n)) {
            let got = bank.kth_distances(queries, &[k]);
            assert_eq!(got, together, "k {k}");
            for (i, got) in got.iter().enumerate() {
                let mut all: Vec<f32> = rows
                    .rows()
                    .map(|b| b.iter().zip(queries.row(i)).map(|(x, y)| (x - y).powi(2)).sum())
                    .collect();
                all.sort_by(f32::total_cmp);
                assert!((got - all[k - 1]).abs() < 1e-6, "k {k}: {got} {}", all[k - 1]);
            }
        }
    }

    #[test]
    fn an_image_of_the_bank_is_at_no_distance() {
        let values: Vec<f32> = (0..40 * 300).map(|i| (i * 7919 % 1013) as f32).collect();
        let xs = Matrix::new(&values, 40, 300).unwrap();
        let queries = normalised(xs);
        let queries = Matrix::new(&queries, 40, 300).unwrap();
        assert_eq!(Bank::normalised(xs).kth_distances(queries, &[1]), [0.0; 40]);
    }

    #[test]
    fn the_first_of_equal_products_are_kept() {
        let mut greatest = Greatest::new(2);
        for (first, products) in [(0, [1.0, 3.0]), (2, [3.0, 3.0]), (4, [2.0, 3.0])] {
            greatest.offer(first, &products);
        }
        assert_eq!((greatest.kth(1), greatest.kth(2)), (1, 2));
        assert_eq!(greatest.sorted(), [3.0, 3.0]);
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let xs = [0.0, 0.0, 3.0, 4.0];
        assert_eq!(normalised(Matrix::new(&xs, 2, 2).unwrap()), [0.0, 0.0, 0.6, 0.8]);
    }
}
