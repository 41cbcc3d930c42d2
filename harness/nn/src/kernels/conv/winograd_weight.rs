//! The gradient of the weight of a 3x3 convolution at stride 1, with a quarter of the products.
//!
//! What the outputs of F(4x4, 3x3) are for the taps, the taps are for the outputs: the gradients of
//! a tile's 4x4 outputs become 36 factors by the transpose of the output's transform, are multiplied
//! with the 36 of the input, summed over the tiles, and go back through the transpose of the taps'.

use rayon::prelude::*;

use crate::kernels::micro::{COLUMNS, Line, Sum, row_products};
use crate::kernels::scratch::with_lines;
use crate::kernels::shared::refilled;
use crate::kernels::simd::vectorised;

use super::geometry::{Geometry, Run, runs};
use super::tiles::{gradient_factors, input_factors};
use super::transform::{self, IN, OUT, POINTS, TAPS, both_directions};
use super::winograd::{padded, tiles};

/// Panels of tiles whose factors are there at once: 512 tiles.
const CHUNK_LINES: usize = 16;

/// `[out_channels, in_channels, 3, 3]`. Chunks of tiles come one after the other, so that every
/// element is summed in one order.
pub(super) fn weight_gradient(geometry: &Geometry, xs: &[f32], grad: &[f32]) -> Vec<f32> {
    let (c_in, c_out) = (geometry.in_channels, geometry.out_channels);
    let grid = tiles(geometry);
    let n_panels = (geometry.batch * grid.0 * grid.1).div_ceil(COLUMNS);
    let n_sums = POINTS * c_out * c_in;
    if n_panels == 0 {
        return vec![0.0; c_out * c_in * TAPS * TAPS];
    }
    let most = CHUNK_LINES.min(n_panels);
    let most_of = |channels| POINTS * padded(channels * most);
    with_lines(n_sums.div_ceil(COLUMNS), |sums| {
        let sums = &mut sums.as_flattened_mut()[..n_sums];
        with_lines(most_of(c_in) + most_of(c_out), |lines| {
            let (inputs, grads) = lines.split_at_mut(most_of(c_in));
            for first in (0..n_panels).step_by(CHUNK_LINES) {
                let lines = CHUNK_LINES.min(n_panels - first);
                let panels: Vec<Vec<Run>> =
                    (first..first + lines).map(|p| runs(p, geometry.batch, grid)).collect();
                let inputs = &mut inputs[..POINTS * padded(c_in * lines)];
                let grads = &mut grads[..POINTS * padded(c_out * lines)];
                fill(inputs, c_in, &panels, Source::Input(geometry, xs));
                fill(grads, c_out, &panels, Source::Gradient(geometry, grad));
                let sum = if first == 0 { Sum::Begin } else { Sum::GoOn };
                let operands = inputs
                    .par_chunks(padded(c_in * lines))
                    .zip(grads.par_chunks(padded(c_out * lines)));
                sums.par_chunks_mut(c_out * c_in).zip(operands).for_each(
                    |(sums, (inputs, grads))| {
                        let (inputs, grads) = (&inputs[..c_in * lines], &grads[..c_out * lines]);
                        row_products(grads, inputs, lines, sums, c_in, sum);
                    },
                );
            }
        });
        gradient_of_taps(sums, c_in, c_out)
    })
}

/// What factors are made of: the convolution's input, or the gradient of its output.
#[derive(Clone, Copy)]
enum Source<'a> {
    Input(&'a Geometry, &'a [f32]),
    Gradient(&'a Geometry, &'a [f32]),
}

/// Fills `all` with factors, `[36][channels * panels, padded]`, the channels in parallel.
fn fill(all: &mut [Line], channels: usize, panels: &[Vec<Run>], source: Source<'_>) {
    let lines = panels.len();
    let point_stride = padded(channels * lines);
    refilled(all.as_flattened_mut(), |all| {
        (0..channels).into_par_iter().for_each(|channel| {
            vectorised(
                #[inline(always)]
                || {
                    let mut rows = [[[0.0; OUT]; COLUMNS]; 2];
                    for (panel, runs) in panels.iter().enumerate() {
                        // The last panel may be the only one with columns that have no tile.
                        if panel + 1 == lines {
                            rows = [[[0.0; OUT]; COLUMNS]; 2];
                        }
                        let put = |point: usize, line: &Line| {
                            let at = point * point_stride + channel * lines + panel;
                            // SAFETY: each task has a channel of its own.
                            unsafe { all.write(at * COLUMNS, line) };
                        };
                        match source {
                            Source::Input(geometry, xs) => {
                                input_factors(geometry, xs, runs, channel, &mut rows, put);
                            }
                            Source::Gradient(geometry, grad) => {
                                let [own, _] = &mut rows;
                                gradient_factors(geometry, grad, runs, channel, own, put);
                            }
                        }
                    }
                },
            );
        });
    });
}

/// From the sums of products, `[36][channels out][channels in]`, to the gradient of the taps.
fn gradient_of_taps(sums: &[f32], c_in: usize, c_out: usize) -> Vec<f32> {
    /// Channels that are transformed at once.
    const LANES: usize = 16;
    const AREA: usize = TAPS * TAPS;
    let mut out = vec![0.0; c_out * c_in * AREA];
    out.par_chunks_mut((c_in * AREA).max(1)).enumerate().for_each(|(channel, out)| {
        for (group, out) in out.chunks_mut(LANES * AREA).enumerate() {
            let lanes = out.len() / AREA;
            let first = channel * c_in + group * LANES;
            let mut rest = [[0.0; LANES]; POINTS];
            if lanes < LANES {
                for (point, rest) in rest.iter_mut().enumerate() {
                    let start = point * c_out * c_in + first;
                    rest[..lanes].copy_from_slice(&sums[start..start + lanes]);
                }
            }
            let factors = |i: usize, j: usize| {
                let point = i * IN + j;
                let whole = sums[point * c_out * c_in + first..].first_chunk();
                whole.filter(|_| lanes == LANES).unwrap_or(&rest[point])
            };
            let mut taps = [[[0.0; LANES]; TAPS]; TAPS];
            let keep = |at: usize, lanes: &[f32; LANES]| taps[at / TAPS][at % TAPS] = *lanes;
            vectorised(
                #[inline(always)]
                || both_directions(factors, transform::taps_gradient, keep),
            );
            for (lane, out) in out.chunks_exact_mut(AREA).enumerate() {
                for (value, taps) in out.iter_mut().zip(taps.as_flattened()) {
                    *value = taps[lane];
                }
            }
        }
    });
    out
}
