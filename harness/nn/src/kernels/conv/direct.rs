//! Convolution of any kernel and stride as a product of the weight with panels of patches.
//!
//! A panel is 32 neighbouring output positions, across rows and images if need be, and their
//! patches `[in_channels * kernel_h * kernel_w][32]`: small enough for the second-level cache, and
//! already in the layout of the inner loop, so that nothing is unfolded that does not stay there.

use rayon::prelude::*;

use crate::kernels::micro::{COLUMNS, Line, ROWS, multiply, pack};
use crate::kernels::scratch::with_lines;
use crate::kernels::shared::{Shared, filled};
use crate::kernels::simd::copy;

use super::geometry::{Geometry, Run, runs};
use super::operands::{Bias, Weight};

/// Panels of a task, and the most lines that their patches take: half of a second-level cache.
const PANELS: usize = 4;
const MOST_LINES: usize = 4096;

/// Panels, and into how many parts the blocks of output channels are cut where panels alone would
/// leave threads without work. What is computed for an element does not depend on it.
pub(super) fn parts_of_channels(n_panels: usize, n_blocks: usize) -> usize {
    let wanted = (2 * rayon::current_num_threads()).div_ceil(n_panels.max(1));
    wanted.clamp(1, n_blocks.max(1))
}

/// The output, `[batch, out_channels, out_h, out_w]`.
pub(super) fn forward(
    geometry: &Geometry,
    xs: &[f32],
    weight: Weight<'_>,
    bias: Bias<'_>,
) -> Vec<f32> {
    let n_panels = (geometry.batch * geometry.out_pixels()).div_ceil(COLUMNS);
    let n_blocks = geometry.out_channels.div_ceil(ROWS);
    // Several panels at once: what lies side by side in a plane is read in one go.
    let at_once = (MOST_LINES / geometry.patch_len())
        .min(n_panels / (2 * rayon::current_num_threads()))
        .clamp(1, PANELS);
    let n_groups = n_panels.div_ceil(at_once);
    let parts = parts_of_channels(n_groups, n_blocks);
    let blocks_a_part = n_blocks.div_ceil(parts);
    weight.with_packed(geometry, |packed| {
        let fill = |out: &Shared<'_>| {
            (0..n_groups * parts).into_par_iter().for_each(|task| {
                let group = task / parts * at_once;
                let grid = (geometry.out_h, geometry.out_w);
                let panels: Vec<_> = (group..(group + at_once).min(n_panels))
                    .map(|panel| runs(panel, geometry.batch, grid))
                    .collect();
                let first = task % parts * blocks_a_part;
                let blocks = first.min(n_blocks)..(first + blocks_a_part).min(n_blocks);
                // SAFETY: no other task has these panels and these channels.
                unsafe { convolve(geometry, xs, packed, bias, &panels, blocks, out) };
            });
        };
        // SAFETY: the panels cover every position, the parts every channel.
        unsafe { filled(geometry.out_len(), fill) }
    })
}

/// Some panels and some blocks of output channels.
///
/// # Safety
/// Nobody else writes these positions of these channels meanwhile.
unsafe fn convolve(
    geometry: &Geometry,
    xs: &[f32],
    packed: &[[f32; ROWS]],
    bias: Bias<'_>,
    panels: &[Vec<Run>],
    blocks: std::ops::Range<usize>,
    out: &Shared<'_>,
) {
    let depth = geometry.patch_len();
    with_lines(depth * panels.len(), |patches| {
        unfold(geometry, xs, panels, patches);
        let mut product = [[0.0; COLUMNS]; ROWS];
        for block in blocks {
            let first = block * ROWS;
            let rows = ROWS.min(geometry.out_channels - first);
            for (runs, patches) in panels.iter().zip(patches.chunks_exact(depth)) {
                multiply(&packed[block * depth..][..depth], patches, rows, &mut product);
                for (channel, line) in (first..).zip(&mut product[..rows]) {
                    for run in runs {
                        let bias = bias.at(run.image, channel);
                        let values = &mut line[run.lane..run.lane + run.len];
                        for value in values.iter_mut() {
                            *value += bias;
                        }
                        let start = geometry.out_row(run.image, channel, run.y) + run.x;
                        // SAFETY: the caller has these positions for itself.
                        unsafe { out.write(start, values) };
                    }
                }
            }
        }
    });
}

/// The patches of the positions of panels, `[panel][patch_len][32]`; zeros where there is no
/// position.
fn unfold(geometry: &Geometry, xs: &[f32], panels: &[Vec<Run>], patches: &mut [Line]) {
    let (area, depth) = (geometry.kernel_h * geometry.kernel_w, geometry.patch_len());
    for channel in 0..geometry.in_channels {
        for (runs, patches) in panels.iter().zip(patches.chunks_exact_mut(depth)) {
            let patches = &mut patches[channel * area..(channel + 1) * area];
            let whole = matches!(runs[..], [run] if run.len == COLUMNS);
            if !(whole && area == 1 && geometry.padding == 0) {
                patches.fill([0.0; COLUMNS]);
            }
            for run in runs {
                let plane = geometry.plane(xs, run.image, channel);
                for (position, line) in patches.iter_mut().enumerate() {
                    let (ky, kx) = (position / geometry.kernel_w, position % geometry.kernel_w);
                    let line = &mut line[run.lane..run.lane + run.len];
                    let y = (run.y * geometry.stride + ky).wrapping_sub(geometry.padding);
                    if y < geometry.in_h {
                        let row = &plane[y * geometry.in_w..][..geometry.in_w];
                        copy_row(geometry, row, run.x, kx, line);
                    }
                }
            }
        }
    }
}

/// The output columns `x..x + len` that kernel column `kx` reads inside of the image, from `x`.
fn valid(geometry: &Geometry, x: usize, len: usize, kx: usize) -> (usize, usize) {
    let Geometry { stride, padding, in_w, .. } = *geometry;
    let first = padding.saturating_sub(kx).div_ceil(stride).saturating_sub(x).min(len);
    let last = (in_w + padding)
        .checked_sub(kx + 1)
        .map_or(0, |room| (room / stride + 1).saturating_sub(x).min(len));
    (first, last.max(first))
}

pub(super) fn copy_row(geometry: &Geometry, row: &[f32], x: usize, kx: usize, line: &mut [f32]) {
    let (first, last) = valid(geometry, x, line.len(), kx);
    if first == last {
        return;
    }
    let start = (x + first) * geometry.stride + kx - geometry.padding;
    let line = &mut line[first..last];
    if geometry.stride == 1 {
        copy(&row[start..start + line.len()], line);
    } else {
        for (value, source) in line.iter_mut().zip(row[start..].iter().step_by(geometry.stride)) {
            *value = *source;
        }
    }
}

/// The gradient of the input where the convolution has a stride: patches of gradients are added
/// back onto the image that they came from, one image a task.
pub(super) fn input_gradient(geometry: &Geometry, weight: Weight<'_>, grad: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; geometry.in_len()];
    if out.is_empty() || grad.is_empty() {
        return out;
    }
    let (depth, n_patch) = (geometry.out_channels, geometry.patch_len());
    let area = geometry.kernel_h * geometry.kernel_w;
    let packed = pack(n_patch, depth, |row, c_out| weight.at(c_out, row / area, row % area));
    let n_panels = geometry.out_pixels().div_ceil(COLUMNS);
    let image_len = geometry.in_channels * geometry.in_pixels();
    let of_one = Geometry { batch: 1, ..*geometry };
    let grads = grad.par_chunks(geometry.out_channels * geometry.out_pixels());
    out.par_chunks_mut(image_len).zip(grads).for_each_init(Vec::new, |panel, (image, grad)| {
        let mut product = [[0.0; COLUMNS]; ROWS];
        for index in 0..n_panels {
            let runs = runs(index, 1, (geometry.out_h, geometry.out_w));
            gather(&of_one, grad, &runs, panel);
            for (block, packed) in packed.chunks_exact(depth).enumerate() {
                let rows = ROWS.min(n_patch - block * ROWS);
                multiply(packed, panel, rows, &mut product);
                for (row, line) in (block * ROWS..).zip(&product[..rows]) {
                    fold(geometry, image, row, &runs, line);
                }
            }
        }
    });
    out
}

/// The values of an output-shaped tensor at a panel's positions, `[out_channels][32]`.
fn gather(geometry: &Geometry, values: &[f32], runs: &[Run], panel: &mut Vec<Line>) {
    panel.clear();
    panel.resize(geometry.out_channels, [0.0; COLUMNS]);
    for (channel, line) in panel.iter_mut().enumerate() {
        for run in runs {
            let start = geometry.out_row(run.image, channel, run.y) + run.x;
            line[run.lane..run.lane + run.len].copy_from_slice(&values[start..start + run.len]);
        }
    }
}

/// Adds row `row` of a panel of patches onto an image.
fn fold(geometry: &Geometry, image: &mut [f32], row: usize, runs: &[Run], line: &Line) {
    let area = geometry.kernel_h * geometry.kernel_w;
    let (channel, position) = (row / area, row % area);
    let (ky, kx) = (position / geometry.kernel_w, position % geometry.kernel_w);
    for run in runs {
        let y = (run.y * geometry.stride + ky).wrapping_sub(geometry.padding);
        let (first, last) = valid(geometry, run.x, run.len, kx);
        if y >= geometry.in_h || first == last {
            continue;
        }
        let x = (run.x + first) * geometry.stride + kx - geometry.padding;
        let start = (channel * geometry.in_h + y) * geometry.in_w + x;
        let target = image[start..].iter_mut().step_by(geometry.stride);
        for (value, grad) in target.zip(&line[run.lane + first..run.lane + last]) {
            *value += grad;
        }
    }
}
