//! From pictures to the factors of Winograd's tiles.
//!
//! Tiles lie four pixels apart, and a vector holds the same pixel of neighbouring tiles. So rows are
//! laid side by side first, as they are in memory, and then dealt out in fours, which a processor
//! does with shuffles.

use crate::kernels::micro::{COLUMNS, Line};
use crate::kernels::simd::{copy, vectorised};

use super::geometry::{Geometry, Run};
use super::transform::{self, IN, OUT, both_directions};

/// One row of pixels of all tiles of a panel: four for each tile.
pub(super) type Row = [[f32; OUT]; COLUMNS];

/// The factors of the tiles of `runs`, `[36][point_stride]`, of which the first lines of each point
/// are `[in_channels][32]`. Columns without a tile get some numbers that are finite.
pub(super) fn factors_of_input(
    geometry: &Geometry,
    xs: &[f32],
    runs: &[Run],
    to: &mut [Line],
    point_stride: usize,
) {
    vectorised(
        #[inline(always)]
        || {
            let mut rows = [[[0.0; OUT]; COLUMNS]; 2];
            for channel in 0..geometry.in_channels {
                input_factors(geometry, xs, runs, channel, &mut rows, |point, line| {
                    to[point * point_stride + channel] = *line;
                });
            }
        },
    );
}

/// Hands the factors of one channel of the tiles of `runs` to `take`, point by point.
///
/// `rows` is room to work in; it is finite before and after.
#[inline(always)]
pub(super) fn input_factors(
    geometry: &Geometry,
    xs: &[f32],
    runs: &[Run],
    channel: usize,
    rows: &mut [Row; 2],
    take: impl FnMut(usize, &Line),
) {
    let mut tiles = [[[0.0; COLUMNS]; IN]; IN];
    // A tile reads six pixels of a row: its own four, and the next two again.
    let [own, next] = rows;
    let mut padded = [0.0; COLUMNS * OUT + OUT];
    for (i, tiles) in tiles.iter_mut().enumerate() {
        for run in runs {
            let y = (run.y * OUT + i).wrapping_sub(geometry.padding);
            let lanes = run.lane..run.lane + run.len;
            let own = own[lanes.clone()].as_flattened_mut();
            let next = next[lanes].as_flattened_mut();
            if y >= geometry.in_h {
                own.fill(0.0);
                next.fill(0.0);
                continue;
            }
            let row = &geometry.plane(xs, run.image, channel)[y * geometry.in_w..];
            let row = &row[..geometry.in_w];
            if geometry.padding == 1 && run.x == 0 && own.len() == row.len() {
                padded[0] = 0.0;
                copy(row, &mut padded[1..=row.len()]);
                padded[row.len() + 1] = 0.0;
            } else {
                pad(row, run.x * OUT, geometry.padding, &mut padded[..own.len() + 2]);
            }
            let len = own.len();
            copy(&padded[..len], own);
            copy(&padded[OUT..OUT + len], next);
        }
        let (first, last) = tiles.split_at_mut(OUT);
        deal(own, first);
        deal(next, last);
    }
    both_directions(|i, j| &tiles[i][j], transform::input, take);
}

/// Hands the factors of the gradients of one channel's outputs to `take`, point by point.
///
/// `own` is room to work in; columns without a tile are zero before and after.
#[inline(always)]
pub(super) fn gradient_factors(
    geometry: &Geometry,
    grad: &[f32],
    runs: &[Run],
    channel: usize,
    own: &mut Row,
    take: impl FnMut(usize, &Line),
) {
    let mut tiles = [[[0.0; COLUMNS]; OUT]; OUT];
    for (i, tiles) in tiles.iter_mut().enumerate() {
        for run in runs {
            let y = run.y * OUT + i;
            let own = own[run.lane..run.lane + run.len].as_flattened_mut();
            if y >= geometry.out_h {
                own.fill(0.0);
                continue;
            }
            let row = &grad[geometry.out_row(run.image, channel, y)..][..geometry.out_w];
            if run.x == 0 && own.len() == row.len() {
                copy(row, own);
            } else {
                pad(row, run.x * OUT, 0, own);
            }
        }
        deal(own, tiles);
    }
    both_directions(|i, j| &tiles[i][j], transform::output_gradient, take);
}

/// `padding` zeros, then `row`, then zeros: from `start`.
fn pad(row: &[f32], start: usize, padding: usize, to: &mut [f32]) {
    let before = padding.saturating_sub(start).min(to.len());
    let row = &row[start.saturating_sub(padding).min(row.len())..];
    let len = row.len().min(to.len() - before);
    to[..before].fill(0.0);
    to[before..before + len].copy_from_slice(&row[..len]);
    to[before + len..].fill(0.0);
}

/// Deals each tile's first pixels out to lines, as many as there are lines.
#[inline(always)]
fn deal(row: &Row, lines: &mut [Line]) {
    for (j, line) in lines.iter_mut().enumerate() {
        for (value, group) in line.iter_mut().zip(row) {
            *value = group[j];
        }
    }
}
