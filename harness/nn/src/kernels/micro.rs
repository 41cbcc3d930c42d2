//! The two inner loops that every convolution, and attention, is made of.
//!
//! Both work on operands that the caller has laid out for them, in registers alone, over the whole
//! depth of a product. So each element of a result is one chain of fused multiply-adds in a fixed
//! order: it depends neither on the number of threads nor on what stands beside it in a batch.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::scratch::with_lines;
use super::simd::vectorised;

/// Rows of a block of the left operand.
pub(super) const ROWS: usize = 12;
/// Columns of a panel of the right operand, 32 floats on every instruction set.
pub(super) const COLUMNS: usize = 32;

/// A row of a panel.
pub(super) type Line = [f32; COLUMNS];

/// `out[r][c] = sum over k of lhs[k][r] * rhs[k][c]`, for the first `rows` rows. Rows of `out` past
/// those may hold anything afterwards.
pub(super) fn multiply(lhs: &[[f32; ROWS]], rhs: &[Line], rows: usize, out: &mut [Line; ROWS]) {
    debug_assert_eq!(lhs.len(), rhs.len());
    pulp::Arch::new().dispatch(Multiply { lhs, rhs, rows, out });
}

struct Multiply<'a> {
    lhs: &'a [[f32; ROWS]],
    rhs: &'a [Line],
    rows: usize,
    out: &'a mut [Line; ROWS],
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    /// A tile fills the registers: 24 sums of 32 registers, or 12 of 16.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { lhs, rhs, rows, out } = self;
        match (S::F32_LANES, rows.div_ceil(4)) {
            (16, 0 | 1) => tile::<S, 4, 2>(simd, lhs, rhs, (0, 0), out),
            (16, 2) => tile::<S, 8, 2>(simd, lhs, rhs, (0, 0), out),
            (16, _) => tile::<S, 12, 2>(simd, lhs, rhs, (0, 0), out),
            (8, _) => {
                for at in [(0, 0), (0, 16), (6, 0), (6, 16)] {
                    tile::<S, 6, 2>(simd, lhs, rhs, at, out);
                }
            }
            _ => {
                for column in (0..COLUMNS).step_by(2 * S::F32_LANES) {
                    for row in (0..ROWS).step_by(4) {
                        tile::<S, 4, 2>(simd, lhs, rhs, (row, column), out);
                    }
                }
            }
        }
    }
}

/// `R` rows and `V` vectors of columns of the product.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    lhs: &[[f32; ROWS]],
    rhs: &[Line],
    (row, column): (usize, usize),
    out: &mut [Line; ROWS],
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (lhs, rhs) in lhs.iter().zip(rhs) {
        let rhs = S::as_simd_f32s(&rhs[column..]).0;
        for (sums, &factor) in sums.iter_mut().zip(&lhs[row..]) {
            let factor = simd.splat_f32s(factor);
            for (sum, &value) in sums.iter_mut().zip(rhs) {
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

/// What happens to the values that an output holds already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    /// They are replaced.
    Begin,
    /// They are added to.
    GoOn,
}

/// The scalar products of all rows of `lhs` with all rows of `rhs`:
/// `out[i * out_stride + j] = sum over k of lhs[i][k] * rhs[j][k]`, or added to what is there.
///
/// Both are turned first, so that [`multiply`] can take them: a product along the rows would end in
/// a sum across each vector, which costs more than the product where rows are short.
///
/// # Shapes
/// `lhs`: `[m, lines]`, `rhs`: `[n, lines]`, both in whole lines; `out`: `m` rows of `n` values.
pub(super) fn row_products(
    lhs: &[Line],
    rhs: &[Line],
    lines: usize,
    out: &mut [f32],
    out_stride: usize,
    sum: Sum,
) {
    if lhs.is_empty() || rhs.is_empty() {
        return;
    }
    let (m, n, depth) = (lhs.len() / lines, rhs.len() / lines, lines * COLUMNS);
    let len = m.div_ceil(ROWS) * depth;
    with_lines((len * ROWS).div_ceil(COLUMNS) + depth, |room| {
        let (panel, turned) = room.split_at_mut(depth);
        let blocks = &mut turned.as_flattened_mut().as_chunks_mut::<ROWS>().0[..len];
        for (lhs, block) in lhs.chunks(ROWS * lines).zip(blocks.chunks_exact_mut(depth)) {
            turn(lhs, lines, block);
        }
        let mut product = [[0.0; COLUMNS]; ROWS];
        for (first, rhs) in (0..n).step_by(COLUMNS).zip(rhs.chunks(COLUMNS * lines)) {
            turn(rhs, lines, panel);
            let columns = first..(first + COLUMNS).min(n);
            for (block, lhs) in blocks.chunks_exact(depth).enumerate() {
                let rows = ROWS.min(m - block * ROWS);
                multiply(lhs, panel, rows, &mut product);
                for (row, line) in (block * ROWS..).zip(&product[..rows]) {
                    let out = &mut out[row * out_stride..][columns.clone()];
                    match sum {
                        Sum::Begin => out.copy_from_slice(&line[..columns.len()]),
                        Sum::GoOn => accumulate(out, line),
                    }
                }
            }
        }
    });
}

/// Adds a line to values, of which there may be fewer.
pub(super) fn accumulate(out: &mut [f32], line: &Line) {
    vectorised(
        #[inline(always)]
        || {
            for (out, value) in out.iter_mut().zip(line) {
                *out += value;
            }
        },
    );
}

/// Rows of `lines` lines each become columns: `to[k][row]`. Columns without a row become zeros.
pub(super) fn turn<const N: usize>(from: &[Line], lines: usize, to: &mut [[f32; N]]) {
    let n_rows = from.len() / lines;
    vectorised(
        #[inline(always)]
        || {
            for (line, to) in to.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
                if n_rows < N {
                    *to = [[0.0; N]; COLUMNS];
                }
                for row in 0..n_rows {
                    let values = &from[row * lines + line];
                    for (to, &value) in to.iter_mut().zip(values) {
                        to[row] = value;
                    }
                }
            }
        },
    );
}

/// Lays a matrix out for [`multiply`]: blocks of [`ROWS`] rows, each `[depth][ROWS]`, the last one
/// filled up with zeros. `value(row, k)` gives an element.
pub(super) fn pack(
    rows: usize,
    depth: usize,
    value: impl Fn(usize, usize) -> f32 + Sync,
) -> Vec<[f32; ROWS]> {
    let mut packed = vec![[0.0; ROWS]; rows.div_ceil(ROWS) * depth];
    packed
        .par_chunks_mut(depth.max(1))
        .enumerate()
        .for_each(|(block, packed)| pack_block(packed, block * ROWS, rows, &value));
    packed
}

/// [`pack`] on this thread alone.
pub(super) fn pack_serial(
    rows: usize,
    depth: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Vec<[f32; ROWS]> {
    let mut packed = vec![[0.0; ROWS]; rows.div_ceil(ROWS) * depth];
    for (block, packed) in packed.chunks_mut(depth.max(1)).enumerate() {
        pack_block(packed, block * ROWS, rows, &value);
    }
    packed
}

#[inline(always)]
fn pack_block(
    packed: &mut [[f32; ROWS]],
    first: usize,
    rows: usize,
    value: &impl Fn(usize, usize) -> f32,
) {
    let rows = ROWS.min(rows - first);
    for (k, packed) in packed.iter_mut().enumerate() {
        for (r, packed) in packed[..rows].iter_mut().enumerate() {
            *packed = value(first + r, k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::uniform;

    #[test]
    fn a_block_times_a_panel_is_their_product() {
        for (rows, depth) in [(12, 7), (8, 1), (3, 40), (12, 0)] {
            let (a, b) =
                (uniform("a", rows * depth, -1.0, 1.0), uniform("b", depth * COLUMNS, -1.0, 1.0));
            let lhs = pack(rows, depth, |r, k| a[r * depth + k]);
            let rhs: Vec<Line> = b.as_chunks().0.to_vec();
            let mut out = [[f32::NAN; COLUMNS]; ROWS];
            multiply(&lhs, &rhs, rows, &mut out);
            for r in 0..rows {
                for c in 0..COLUMNS {
                    let terms = (0..depth).map(|k| a[r * depth + k] * b[k * COLUMNS + c]);
                    let expected: f32 = terms.sum();
                    assert!((out[r][c] - expected).abs() < 1e-5, "{rows}x{depth} at {r}, {c}");
                }
            }
        }
    }

    #[test]
    fn products_of_rows_are_put_or_added() {
        for (m, n, lines) in [(4, 6, 2), (9, 31, 1), (1, 1, 3)] {
            let length = lines * COLUMNS;
            let (a, b) = (uniform("a", m * length, -1.0, 1.0), uniform("b", n * length, -1.0, 1.0));
            let mut out = vec![1.0; m * (n + 1)];
            let (lhs, rhs) = (a.as_chunks().0, b.as_chunks().0);
            row_products(lhs, rhs, lines, &mut out, n + 1, Sum::Begin);
            row_products(lhs, rhs, lines, &mut out, n + 1, Sum::GoOn);
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..length).map(|k| a[i * length + k] * b[j * length + k]);
                    let expected = 2.0 * terms.sum::<f32>();
                    assert!((out[i * (n + 1) + j] - expected).abs() < 1e-4, "{m}x{n} at {i}, {j}");
                }
            }
        }
    }
}
