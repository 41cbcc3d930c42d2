//! Pillow's antialiased bilinear resampling, in its own fixed-point arithmetic, so that results
//! are equal bit for bit and not only to a grey level.
//!
//! A horizontal pass, rounded to 8 bits, then a vertical one; each output pixel is a weighted sum
//! of the input pixels under a triangle as wide as the scale, the weights rounded to 22 bits. Only
//! the window that the crop keeps is computed, which changes no value and bounds the work for
//! very long images. What is resized to what is [`crate::preprocess`]'s business.
//!
//! From version 13 on, Pillow takes the vertical pass first where the height shrinks by far more
//! pixels than the width, which moves some values of images over twice as high as wide by one
//! level. We keep the order of the versions that the published numbers were computed with.

use crate::decode::RgbImage;

const CHANNELS: usize = 3;
/// Fraction bits of a weight: 32 less 8 for the pixel and 2 of headroom.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// A length on one axis, and the part of the resized axis that is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// Resizes and cuts out the window in one go. Returns `[vertical.len, horizontal.len, 3]`.
pub(crate) fn resize_window(image: &RgbImage, horizontal: Axis, vertical: Axis) -> Vec<u8> {
    let row_taps = taps(vertical);
    let first_row = row_taps.first().map_or(0, |tap| tap.start);
    let end_row = row_taps.last().map_or(0, Taps::end);
    let line = image.width as usize * CHANNELS;
    let rows = &image.pixels[first_row * line..end_row * line];
    let narrow = if horizontal.input == horizontal.output {
        let columns = horizontal.start as usize * CHANNELS..;
        let kept = horizontal.len as usize * CHANNELS;
        rows.chunks_exact(line).flat_map(|row| &row[columns.clone()][..kept]).copied().collect()
    } else {
        shrink_rows(rows, line, &taps(horizontal))
    };
    let kept = horizontal.len as usize * CHANNELS;
    if vertical.input == vertical.output {
        return narrow;
    }
    let mut out = Vec::with_capacity(row_taps.len() * kept);
    let mut sums = vec![HALF; kept];
    for tap in &row_taps {
        sums.fill(HALF);
        let first = (tap.start - first_row) * kept;
        for (row, &weight) in narrow[first..].chunks_exact(kept).zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(value);
            }
        }
        out.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    out
}

fn shrink_rows(rows: &[u8], line: usize, column_taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() / line * column_taps.len() * CHANNELS);
    for row in rows.chunks_exact(line) {
        for tap in column_taps {
            let mut sums = [HALF; CHANNELS];
            let window = row[tap.start * CHANNELS..].chunks_exact(CHANNELS);
            for (pixel, &weight) in window.zip(&tap.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(value);
                }
            }
            out.extend(sums.map(to_u8));
        }
    }
    out
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The input pixels that one output pixel sums, from `start` on.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.start + self.weights.len()
    }
}

/// Every step is in the order of Pillow's `precompute_coeffs`, for the rounding is part of the
/// result.
fn taps(axis: Axis) -> Vec<Taps> {
    let wanted = axis.start..axis.start + axis.len;
    if axis.input == axis.output {
        let whole = |at: u64| Taps { start: at as usize, weights: vec![1 << PRECISION] };
        return wanted.map(whole).collect();
    }
    let scale = axis.input as f64 / axis.output as f64;
    let support = scale.max(1.0);
    let narrowing = 1.0 / support;
    wanted
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as u64;
            let end = ((centre + support + 0.5) as u64).min(axis.input);
            let mut weights: Vec<f64> = (start..end)
                .map(|input| (1.0 - ((input as f64 - centre + 0.5) * narrowing).abs()).max(0.0))
                .collect();
            let total: f64 = weights.iter().sum();
            if total != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= total);
            }
            let fixed = |weight: f64| (0.5 + weight * f64::from(1 << PRECISION)) as i32;
            Taps { start: start as usize, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}
