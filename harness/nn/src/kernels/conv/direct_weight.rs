//! The gradient of the weight of a convolution of any kernel and stride: a product of the gradients
//! of the outputs with the patches, summed over all positions.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::micro::{COLUMNS, Line, ROWS, accumulate, multiply, turn};
use crate::kernels::scratch::with_lines;
use crate::kernels::shared::{Shared, filled};
use crate::kernels::simd::copy;

use super::direct::copy_row;
use super::geometry::{Geometry, Run, runs};

/// Panels of positions whose patches are there at once: 512 positions.
const CHUNK_LINES: usize = 16;

/// The gradient of the weight. A task has 32 elements of the patches, of all positions one chunk
/// after the other, so that every element is summed in one order.
pub(super) fn weight_gradient(geometry: &Geometry, xs: &[f32], grad: &[f32]) -> Vec<f32> {
    let (c_out, n_patch) = (geometry.out_channels, geometry.patch_len());
    let panels: Vec<Vec<Run>> = (0..(geometry.batch * geometry.out_pixels()).div_ceil(COLUMNS))
        .map(|panel| runs(panel, geometry.batch, (geometry.out_h, geometry.out_w)))
        .collect();
    if panels.is_empty() {
        return vec![0.0; c_out * n_patch];
    }
    let depth = panels.len() * COLUMNS;
    let n_grads = c_out.div_ceil(ROWS) * depth;
    with_lines((n_grads * ROWS).div_ceil(COLUMNS), |grads| {
        let grads = &mut grads.as_flattened_mut().as_chunks_mut::<ROWS>().0[..n_grads];
        grads.par_chunks_mut(depth).enumerate().for_each(|(block, grads)| {
            let channels = block * ROWS..(block * ROWS + ROWS).min(c_out);
            turned_gradients(geometry, grad, &panels, channels, grads);
        });
        let fill = |out: &Shared<'_>| {
            (0..n_patch).into_par_iter().step_by(COLUMNS).for_each(|first| {
                let elements = first..(first + COLUMNS).min(n_patch);
                with_lines(c_out, |sums| {
                    sums.fill([0.0; COLUMNS]);
                    add_chunks(geometry, xs, &panels, elements.clone(), grads, sums);
                    for (channel, sums) in sums.iter().enumerate() {
                        let start = channel * n_patch + first;
                        // SAFETY: no other task has these elements of the patches.
                        unsafe { out.write(start, &sums[..elements.len()]) };
                    }
                });
            });
        };
        // SAFETY: the tasks cover every element of a patch, and write it for every channel.
        unsafe { filled(c_out * n_patch, fill) }
    })
}

/// Adds to `sums`, `[out_channels][32]`, the products of the gradients with some elements of the
/// patches.
fn add_chunks(
    geometry: &Geometry,
    xs: &[f32],
    panels: &[Vec<Run>],
    elements: Range<usize>,
    grads: &[[f32; ROWS]],
    sums: &mut [Line],
) {
    let depth = panels.len() * COLUMNS;
    with_lines(CHUNK_LINES * 2 * COLUMNS, |room| {
        let (rows, turned) = room.split_at_mut(CHUNK_LINES * COLUMNS);
        let mut product = [[0.0; COLUMNS]; ROWS];
        for (chunk, panels) in panels.chunks(CHUNK_LINES).enumerate() {
            let rows = &mut rows[..elements.len() * panels.len()];
            let turned = &mut turned[..panels.len() * COLUMNS];
            rows_of_patches(geometry, xs, panels, elements.clone(), rows);
            turn(rows, panels.len(), turned);
            let first = chunk * CHUNK_LINES * COLUMNS;
            for (grads, sums) in grads.chunks_exact(depth).zip(sums.chunks_mut(ROWS)) {
                let grads = &grads[first..first + turned.len()];
                multiply(grads, turned, sums.len(), &mut product);
                for (sums, line) in sums.iter_mut().zip(&product) {
                    accumulate(sums, line);
                }
            }
        }
    });
}

/// Some elements of the patches of panels, `[element][panel][32]`.
fn rows_of_patches(
    geometry: &Geometry,
    xs: &[f32],
    panels: &[Vec<Run>],
    elements: Range<usize>,
    rows: &mut [Line],
) {
    rows.fill([0.0; COLUMNS]);
    let area = geometry.kernel_h * geometry.kernel_w;
    for (element, lines) in elements.zip(rows.chunks_exact_mut(panels.len())) {
        let (channel, position) = (element / area, element % area);
        let (ky, kx) = (position / geometry.kernel_w, position % geometry.kernel_w);
        for (runs, line) in panels.iter().zip(lines) {
            for run in runs {
                let y = (run.y * geometry.stride + ky).wrapping_sub(geometry.padding);
                if y < geometry.in_h {
                    let plane = geometry.plane(xs, run.image, channel);
                    let row = &plane[y * geometry.in_w..][..geometry.in_w];
                    copy_row(geometry, row, run.x, kx, &mut line[run.lane..run.lane + run.len]);
                }
            }
        }
    }
}

/// The gradients of the outputs of panels, `[position][12 channels]`.
fn turned_gradients(
    geometry: &Geometry,
    grad: &[f32],
    panels: &[Vec<Run>],
    channels: Range<usize>,
    to: &mut [[f32; ROWS]],
) {
    with_lines(ROWS, |lines| {
        let lines = &mut lines[..channels.len()];
        for (runs, to) in panels.iter().zip(to.chunks_exact_mut(COLUMNS)) {
            lines.fill([0.0; COLUMNS]);
            for (channel, line) in channels.clone().zip(lines.iter_mut()) {
                for run in runs {
                    let start = geometry.out_row(run.image, channel, run.y) + run.x;
                    copy(&grad[start..start + run.len], &mut line[run.lane..run.lane + run.len]);
                }
            }
            turn(lines, 1, to);
        }
    });
}
