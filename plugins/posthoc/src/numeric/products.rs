//! Inner products of queries with every row of a bank, in blocks: what neighbours and relations
//! between images are made of, without a matrix of all pairs.

use faer::linalg::matmul::matmul;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Queries of one product: 64 x 2048 floats stay in the cache.
pub const QUERIES: usize = 64;
/// Bank rows of one product.
pub const BANK: usize = 2048;

/// Rows of numbers, row-major.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    /// The numbers.
    pub values: &'a [T],
    /// Number of rows.
    pub n_rows: usize,
    /// Number of columns.
    pub n_cols: usize,
}

impl<'a, T> Rows<'a, T> {
    fn part(&self, first: usize, n: usize) -> &'a [T] {
        &self.values[first * self.n_cols..(first + n) * self.n_cols]
    }
}

/// Makes a state for each query, shows it the inner products with the bank, block by block in the
/// bank's order, and returns the states in the order of the queries.
///
/// `visit` gets the state, the first bank row of the block, and a product for each row of it.
/// Blocks have the same size whatever the number of queries, the last being filled up with zeros,
/// so that a query's products do not depend on how many others there are.
pub fn scan<T, S>(
    queries: Rows<'_, T>,
    bank: Rows<'_, T>,
    init: impl Fn(usize) -> S + Sync,
    visit: impl Fn(&mut S, usize, &[T]) + Sync,
) -> Vec<S>
where
    T: RealField + Copy + Default + Send + Sync,
    S: Send,
{
    let d = queries.n_cols;
    let blocks: Vec<Vec<S>> = (0..queries.n_rows.div_ceil(QUERIES))
        .into_par_iter()
        .map_init(
            || (vec![T::default(); QUERIES * d], vec![T::default(); QUERIES * BANK]),
            |(padded, products), block| {
                let first = block * QUERIES;
                let n = QUERIES.min(queries.n_rows - first);
                let mut states: Vec<S> = (first..first + n).map(&init).collect();
                padded[..n * d].copy_from_slice(queries.part(first, n));
                padded[n * d..].fill(T::default());
                for start in (0..bank.n_rows).step_by(BANK) {
                    let m = BANK.min(bank.n_rows - start);
                    multiply(padded, bank.part(start, m), d, &mut products[..QUERIES * m]);
                    for (state, products) in states.iter_mut().zip(products.chunks_exact(m)) {
                        visit(state, start, products);
                    }
                }
                states
            },
        )
        .collect();
    blocks.into_iter().flatten().collect()
}

/// `out = left * right'` for rows of `d` columns, all row-major, on this thread.
pub fn multiply<T: RealField + Copy>(left: &[T], right: &[T], d: usize, out: &mut [T]) {
    let (n, m) = match d {
        0 => return out.fill(T::zero_impl()),
        d => (left.len() / d, right.len() / d),
    };
    let left = MatRef::from_row_major_slice(left, n, d);
    let right = MatRef::from_row_major_slice(right, m, d);
    let out = MatMut::from_row_major_slice_mut(out, n, m);
    matmul(out, Accum::Replace, left, right.transpose(), T::one_impl(), Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_seen_once_in_order() {
        let (n, m, d) = (70, 2100, 3);
        let value = |i: usize| ((i * 7919 % 1013) as f64 / 1013.0) - 0.5;
        let queries: Vec<f64> = (0..n * d).map(value).collect();
        let bank: Vec<f64> = (0..m * d).map(|i| value(i * 3 + 1)).collect();
        let rows = |values, n_rows| Rows { values, n_rows, n_cols: d };
        let seen = scan(
            rows(&queries, n),
            rows(&bank, m),
            |_| Vec::new(),
            |seen: &mut Vec<f64>, first, products| {
                assert_eq!(seen.len(), first);
                seen.extend_from_slice(products);
            },
        );
        assert_eq!(seen.len(), n);
        for (query, seen) in queries.chunks_exact(d).zip(&seen) {
            assert_eq!(seen.len(), m);
            for (row, product) in bank.chunks_exact(d).zip(seen) {
                let expected: f64 = query.iter().zip(row).map(|(x, y)| x * y).sum();
                assert!((product - expected).abs() < 1e-12);
            }
        }
        // The first query alone gives the same to the last bit.
        let alone = scan(
            rows(&queries[..d], 1),
            rows(&bank, m),
            |_| Vec::new(),
            |seen: &mut Vec<f64>, _, products| seen.extend_from_slice(products),
        );
        assert_eq!(alone[0], seen[0]);
    }
}
