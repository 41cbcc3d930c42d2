//! Convolution by a 3x3 kernel at stride 1 with a quarter of the products: F(4x4, 3x3).
//!
//! A tile of 6x6 inputs and the 3x3 taps are transformed to 36 factors each, multiplied and summed
//! over the channels, and transformed back to 4x4 outputs ([`super::transform`]). A task has 32
//! tiles, of one image or several, whose factors `[36][in_channels][32]` about fit the second-level
//! cache; each block of output channels is transformed back as soon as its products are there.

use rayon::prelude::*;

use crate::kernels::micro::{COLUMNS, Line, ROWS, multiply};
use crate::kernels::scratch::with_lines;
use crate::kernels::shared::{Shared, filled};
use crate::kernels::simd::vectorised;

use super::direct::parts_of_channels;
use super::geometry::{Geometry, Run, runs};
use super::operands::{Bias, Weight};
use super::tiles::factors_of_input;
use super::transform::{self, IN, OUT, POINTS, TAPS, both_directions};

/// Whether this way is the better one. It follows from an image's own size, never from the
/// batch, so that an image's numbers do not depend on its company.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let three = (geometry.kernel_h, geometry.kernel_w, geometry.stride) == (TAPS, TAPS, 1);
    let (tall, wide) = tiles(geometry);
    // Half-empty tiles and few channels cost more than they save.
    let worthwhile = 2 * geometry.out_pixels() >= OUT * OUT * tall * wide;
    let channels = geometry.in_channels >= 16 && geometry.out_channels >= 8;
    three && geometry.padding < TAPS && tall * wide >= 4 && worthwhile && channels
}

/// Tiles of an image, down and across.
pub(super) fn tiles(geometry: &Geometry) -> (usize, usize) {
    (geometry.out_h.div_ceil(OUT), geometry.out_w.div_ceil(OUT))
}

/// The output, `[batch, out_channels, out_h, out_w]`.
pub(super) fn forward(
    geometry: &Geometry,
    xs: &[f32],
    weight: Weight<'_>,
    bias: Bias<'_>,
) -> Vec<f32> {
    let n_blocks = geometry.out_channels.div_ceil(ROWS);
    let n_factors = n_blocks * POINTS * padded(geometry.in_channels) * ROWS;
    with_lines(n_factors.div_ceil(COLUMNS), |factors| {
        let factors = factors.as_flattened_mut().as_chunks_mut().0;
        factors_of_taps(geometry, weight, factors);
        let (tall, wide) = tiles(geometry);
        let n_panels = (geometry.batch * tall * wide).div_ceil(COLUMNS);
        let parts = parts_of_channels(n_panels, n_blocks);
        let blocks_a_part = n_blocks.div_ceil(parts);
        let fill = |out: &Shared<'_>| {
            (0..n_panels * parts).into_par_iter().for_each(|task| {
                let runs = runs(task / parts, geometry.batch, (tall, wide));
                let first = task % parts * blocks_a_part;
                let blocks = first.min(n_blocks)..(first + blocks_a_part).min(n_blocks);
                // SAFETY: no other task has these tiles and these channels.
                unsafe { convolve(geometry, xs, factors, bias, &runs, blocks, out) };
            });
        };
        // SAFETY: the tiles of all panels cover every pixel, the parts every channel.
        unsafe { filled(geometry.out_len(), fill) }
    })
}

/// A panel of tiles and some blocks of output channels.
///
/// # Safety
/// Nobody else writes pixels of these tiles and channels meanwhile.
unsafe fn convolve(
    geometry: &Geometry,
    xs: &[f32],
    factors: &[[f32; ROWS]],
    bias: Bias<'_>,
    runs: &[Run],
    blocks: std::ops::Range<usize>,
    out: &Shared<'_>,
) {
    let depth = geometry.in_channels;
    let point_stride = padded(depth);
    with_lines(POINTS * (point_stride + ROWS), |lines| {
        let (inputs, products) = lines.split_at_mut(POINTS * point_stride);
        let products = products.as_chunks_mut::<ROWS>().0;
        factors_of_input(geometry, xs, runs, inputs, point_stride);
        for block in blocks {
            let first = block * ROWS;
            let rows = ROWS.min(geometry.out_channels - first);
            let factors = &factors[block * POINTS * point_stride..][..POINTS * point_stride];
            let factors = factors.chunks_exact(point_stride);
            let operands = factors.zip(inputs.chunks_exact(point_stride));
            for (product, (lhs, rhs)) in products.iter_mut().zip(operands) {
                multiply(&lhs[..depth], &rhs[..depth], rows, product);
            }
            vectorised(
                #[inline(always)]
                || {
                    let mut pixels = [[[0.0; COLUMNS]; OUT]; OUT];
                    for (row, channel) in (first..first + rows).enumerate() {
                        let of_row = |i: usize, j: usize| &products[i * IN + j][row];
                        both_directions(of_row, transform::output, |at, line| {
                            pixels[at / OUT][at % OUT] = *line;
                        });
                        // SAFETY: the caller has these tiles and these channels for itself.
                        unsafe { write(geometry, out, channel, runs, &pixels, bias) };
                    }
                },
            );
        }
    });
}

/// Lines of a point, for so many channels: an odd number. What is one point apart is written in
/// turn, and at a distance of a power of two it would all go to one place of the cache.
pub(super) fn padded(channels: usize) -> usize {
    channels | 1
}

/// The factors of all taps, `[block of channels out][36][padded channels in][12]`.
fn factors_of_taps(geometry: &Geometry, weight: Weight<'_>, factors: &mut [[f32; ROWS]]) {
    /// Lanes of a whole vector, of which the last ones are not used.
    const LANES: usize = 16;
    let (c_in, c_out) = (geometry.in_channels, geometry.out_channels);
    let point_stride = padded(c_in);
    let n_blocks = c_out.div_ceil(ROWS);
    let blocks = factors[..n_blocks * POINTS * point_stride].par_chunks_mut(POINTS * point_stride);
    blocks.enumerate().for_each(|(block, factors)| {
        let first = block * ROWS;
        let rows = ROWS.min(c_out - first);
        vectorised(
            #[inline(always)]
            || {
                for channel in 0..c_in {
                    let mut taps = [[[0.0; LANES]; TAPS]; TAPS];
                    for row in 0..rows {
                        let kernel = weight.kernel_3x3(first + row, channel);
                        for (taps, value) in taps.as_flattened_mut().iter_mut().zip(kernel) {
                            taps[row] = value;
                        }
                    }
                    both_directions(
                        |i, j| &taps[i][j],
                        transform::taps,
                        |point, values: &[f32; LANES]| {
                            let factors = &mut factors[point * point_stride + channel];
                            if let Some(values) = values.first_chunk() {
                                *factors = *values;
                            }
                        },
                    );
                }
            },
        );
    });
}

/// Puts the pixels of the tiles of `runs` where they belong.
///
/// # Safety
/// Nobody else writes pixels of these tiles of this channel meanwhile.
#[inline(always)]
unsafe fn write(
    geometry: &Geometry,
    out: &Shared<'_>,
    channel: usize,
    runs: &[Run],
    pixels: &[[Line; OUT]; OUT],
    bias: Bias<'_>,
) {
    for (i, pixels) in pixels.iter().enumerate() {
        let mut row = [[0.0; OUT]; COLUMNS];
        for (lane, group) in row.iter_mut().enumerate() {
            *group = std::array::from_fn(|j| pixels[j][lane]);
        }
        for run in runs {
            let (x, y) = (run.x * OUT, run.y * OUT + i);
            if y < geometry.out_h {
                let len = (run.len * OUT).min(geometry.out_w - x);
                let row = &mut row.as_flattened_mut()[run.lane * OUT..][..len];
                let bias = bias.at(run.image, channel);
                for value in row.iter_mut() {
                    *value += bias;
                }
                // SAFETY: the caller has these pixels for itself.
                unsafe { out.write(geometry.out_row(run.image, channel, y) + x, row) };
            }
        }
    }
}
