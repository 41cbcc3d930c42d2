//! Inner products of rows with every row of a bank in `f32`, tile by tile: what neighbours and
//! relations between images are made of, without a matrix of all pairs.
//!
//! A tile is [`ROWS`] queries times [`COLUMNS`] rows of the bank, worked on in registers over the
//! whole depth. Both are laid out for that first, the bank once for all queries. Each product is
//! one chain of multiply-adds in a fixed order, so that it depends neither on the number of
//! threads nor on what stands beside it in a batch, which those of a general matrix product do.

use std::ops::Range;

use oodbench_sdk::serde::{Deserialize, Serialize};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Queries of a tile.
pub const ROWS: usize = 12;
/// Rows of the bank of a tile: 32 floats on every instruction set.
pub const COLUMNS: usize = 32;

/// A coordinate of [`COLUMNS`] rows of a bank, or their products with one query.
pub type Line = [f32; COLUMNS];
/// The products of a tile.
pub type Tile = [Line; ROWS];

/// Rows laid out for products: [`COLUMNS`] of them side by side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", try_from = "Saved")]
pub struct Panels {
    n_rows: usize,
    depth: usize,
    /// `[panel, depth, COLUMNS]`, the last panel filled up with zeros.
    values: Vec<f32>,
}

/// [`Panels`] as they are read, before anything about them is known.
#[derive(Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Saved {
    n_rows: usize,
    depth: usize,
    values: Vec<f32>,
}

impl TryFrom<Saved> for Panels {
    type Error = &'static str;

    fn try_from(saved: Saved) -> Result<Self, Self::Error> {
        let Saved { n_rows, depth, values } = saved;
        let lines = n_rows.div_ceil(COLUMNS).checked_mul(depth);
        if lines.and_then(|lines| lines.checked_mul(COLUMNS)) != Some(values.len()) {
            return Err("the rows of a bank are of another size");
        }
        Ok(Self { n_rows, depth, values })
    }
}

impl Panels {
    /// Lays out `n_rows` rows of `depth` numbers, each of which `fill` writes.
    pub fn new(n_rows: usize, depth: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let mut values = vec![0.0; n_rows.div_ceil(COLUMNS) * depth * COLUMNS];
        values.par_chunks_mut((depth * COLUMNS).max(1)).enumerate().for_each_init(
            || vec![0.0; depth],
            |row, (panel, values)| {
                let first = panel * COLUMNS;
                for column in 0..COLUMNS.min(n_rows - first) {
                    row.fill(0.0);
                    fill(first + column, row);
                    for (line, &x) in values.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(&*row) {
                        line[column] = x;
                    }
                }
            },
        );
        Self { n_rows, depth, values }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of panels.
    pub fn len(&self) -> usize {
        self.n_rows.div_ceil(COLUMNS)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.n_rows == 0
    }

    /// The rows that are in a panel.
    pub fn rows_of(&self, panel: usize) -> Range<usize> {
        let first = panel * COLUMNS;
        first..(first + COLUMNS).min(self.n_rows)
    }

    /// A panel, `[depth]` lines.
    pub fn panel(&self, panel: usize) -> &[Line] {
        &self.values.as_chunks().0[panel * self.depth..(panel + 1) * self.depth]
    }

    /// The numbers of a row.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        self.panel(row / COLUMNS).iter().map(move |line| line[row % COLUMNS])
    }
}

/// Queries laid out for products, in blocks of [`ROWS`].
pub struct Blocks {
    depth: usize,
    /// `[block, depth, ROWS]`; what is past the last query may be anything that is finite.
    values: Vec<[f32; ROWS]>,
    row: Vec<f32>,
}

impl Blocks {
    /// Room for queries of `depth` numbers.
    pub fn new(depth: usize) -> Self {
        Self { depth, values: Vec::new(), row: vec![0.0; depth] }
    }

    /// Lays out `n` queries, each of which `fill` writes, in place of those before.
    pub fn lay_out(&mut self, n: usize, fill: impl Fn(usize, &mut [f32])) {
        let Self { depth, values, row } = self;
        values.resize(n.div_ceil(ROWS) * *depth, [0.0; ROWS]);
        for query in 0..n {
            row.fill(0.0);
            fill(query, row);
            let block = &mut values[query / ROWS * *depth..][..*depth];
            for (block, &x) in block.iter_mut().zip(&*row) {
                block[query % ROWS] = x;
            }
        }
    }

    /// A block, `[depth]`.
    pub fn block(&self, block: usize) -> &[[f32; ROWS]] {
        &self.values[block * self.depth..(block + 1) * self.depth]
    }
}

/// How many queries a thread works on at a time: enough that a panel is read rarely, few enough
/// that they stay in the cache and that all threads have work.
pub fn queries_at_a_time(n: usize) -> usize {
    /// 8 blocks of 512 numbers are 192 KiB.
    const MOST: usize = 8;
    let for_each_thread = n.div_ceil(4 * rayon::current_num_threads());
    for_each_thread.div_ceil(ROWS).clamp(1, MOST) * ROWS
}

/// Makes a state for each of `n` queries, shows it the inner products with the bank in the bank's
/// order, and returns what the states come to, in the order of the queries.
///
/// `fill` writes a query. `visit` gets the state, the first row of the bank, and a product for each
/// of up to [`COLUMNS`] rows from there. `end` gets the query and its state; few of these are kept
/// at a time.
pub fn scan<S, R: Send>(
    n: usize,
    bank: &Panels,
    fill: impl Fn(usize, &mut [f32]) + Sync,
    init: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, usize, &[f32]) + Sync,
    end: impl Fn(usize, S) -> R + Sync,
) -> Vec<R> {
    let at_a_time = queries_at_a_time(n);
    let parts: Vec<Vec<R>> = (0..n.div_ceil(at_a_time))
        .into_par_iter()
        .map_init(
            || (Blocks::new(bank.depth()), [[0.0; COLUMNS]; ROWS]),
            |(blocks, tile), part| {
                let first = part * at_a_time;
                let n = at_a_time.min(n - first);
                blocks.lay_out(n, |query, row| fill(first + query, row));
                let mut states: Vec<S> = (0..n).map(|_| init()).collect();
                for panel in 0..bank.len() {
                    let rows = bank.rows_of(panel);
                    for (block, states) in states.chunks_mut(ROWS).enumerate() {
                        multiply(blocks.block(block), bank.panel(panel), states.len(), tile);
                        for (state, products) in states.iter_mut().zip(&*tile) {
                            visit(state, rows.start, &products[..rows.len()]);
                        }
                    }
                }
                (first..).zip(states).map(|(query, state)| end(query, state)).collect()
            },
        )
        .collect();
    parts.into_iter().flatten().collect()
}

/// `out[r][c] = sum over k of block[k][r] * panel[k][c]`, for the first `rows` rows. Rows of `out`
/// past those may hold anything afterwards.
pub fn multiply(block: &[[f32; ROWS]], panel: &[Line], rows: usize, out: &mut Tile) {
    debug_assert_eq!(block.len(), panel.len());
    pulp::Arch::new().dispatch(Multiply { block, panel, rows, out });
}

struct Multiply<'a> {
    block: &'a [[f32; ROWS]],
    panel: &'a [Line],
    rows: usize,
    out: &'a mut Tile,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    /// A tile fills the registers: 24 sums of 32 registers, or 12 of 16.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { block, panel, rows, out } = self;
        match (S::F32_LANES, rows.div_ceil(4)) {
            (16, 0 | 1) => part::<S, 4, 2>(simd, block, panel, (0, 0), out),
            (16, 2) => part::<S, 8, 2>(simd, block, panel, (0, 0), out),
            (16, _) => part::<S, 12, 2>(simd, block, panel, (0, 0), out),
            (8, _) => {
                for at in [(0, 0), (0, 16), (6, 0), (6, 16)] {
                    part::<S, 6, 2>(simd, block, panel, at, out);
                }
            }
            _ => {
                for column in (0..COLUMNS).step_by(2 * S::F32_LANES) {
                    for row in (0..ROWS).step_by(4) {
                        part::<S, 4, 2>(simd, block, panel, (row, column), out);
                    }
                }
            }
        }
    }
}

/// `R` rows and `V` vectors of columns of the product.
#[inline(always)]
fn part<S: Simd, const R: usize, const V: usize>(
    simd: S,
    block: &[[f32; ROWS]],
    panel: &[Line],
    (row, column): (usize, usize),
    out: &mut Tile,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (block, panel) in block.iter().zip(panel) {
        let values = S::as_simd_f32s(&panel[column..]).0;
        for (sums, &factor) in sums.iter_mut().zip(&block[row..]) {
            let factor = simd.splat_f32s(factor);
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = simd.mul_add_e_f32s(factor, value, *sum);
            }
        }
    }
    for (out, sums) in out[row..].iter_mut().zip(sums) {
        for (out, sum) in S::as_mut_simd_f32s(&mut out[column..]).0.iter_mut().zip(sums) {
            *out = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::state;

    fn value(i: usize) -> f32 {
        ((i * 7919 % 1013) as f32 / 1013.0) - 0.5
    }

    /// All products, query by query.
    fn products(queries: &[f32], bank: &[f32], d: usize) -> Vec<Vec<f32>> {
        let fill = |values: &[f32], i: usize, row: &mut [f32]| {
            row.copy_from_slice(&values[i * d..(i + 1) * d]);
        };
        let panels = Panels::new(bank.len() / d, d, |i, row| fill(bank, i, row));
        scan(
            queries.len() / d,
            &panels,
            |i, row| fill(queries, i, row),
            Vec::new,
            |seen: &mut Vec<f32>, first, products| {
                assert_eq!(seen.len(), first);
                seen.extend_from_slice(products);
            },
            |_, seen| seen,
        )
    }

    #[test]
    fn every_pair_is_seen_once_in_order() {
        for (n, m, d) in [(70, 205, 7), (1, 1, 1), (13, 64, 40), (0, 5, 3), (5, 0, 3)] {
            let queries: Vec<f32> = (0..n * d).map(value).collect();
            let bank: Vec<f32> = (0..m * d).map(|i| value(i * 3 + 1)).collect();
            let seen = products(&queries, &bank, d);
            assert_eq!(seen.len(), n);
            for (query, seen) in queries.chunks_exact(d).zip(&seen) {
                assert_eq!(seen.len(), m);
                for (row, product) in bank.chunks_exact(d).zip(seen) {
                    let expected: f32 = query.iter().zip(row).map(|(x, y)| x * y).sum();
                    assert!((product - expected).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_product_does_not_depend_on_its_neighbours() {
        let (n, m, d) = (29, 100, 33);
        let queries: Vec<f32> = (0..n * d).map(value).collect();
        let bank: Vec<f32> = (0..m * d).map(|i| value(i * 3 + 1)).collect();
        let together = products(&queries, &bank, d);
        for (query, together) in queries.chunks_exact(d).zip(&together) {
            assert_eq!(products(query, &bank, d), std::slice::from_ref(together));
            for (row, product) in bank.chunks_exact(d).zip(together) {
                assert_eq!(products(query, row, d), [[*product]]);
            }
        }
    }

    #[test]
    fn rows_come_back_and_survive_being_saved() {
        let panels = Panels::new(40, 3, |i, row| {
            row.copy_from_slice(&[i as f32, 0.5, -(i as f32)]);
        });
        let bytes = state::save(Some(&panels)).unwrap().unwrap();
        let loaded = state::load::<Panels>(&bytes).unwrap().unwrap();
        assert_eq!(loaded.row(39).collect::<Vec<f32>>(), [39.0, 0.5, -39.0]);
        assert_eq!((loaded.n_rows(), loaded.len(), loaded.rows_of(1)), (40, 2, 32..40));
        // Another number of rows than there are values for.
        let mut broken = bytes.clone();
        broken[0] = 80;
        assert!(state::load::<Panels>(&broken).is_err());
    }
}
