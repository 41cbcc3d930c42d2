//! How the algorithms see weights and biases.

use rayon::prelude::*;

use crate::kernels::micro::{COLUMNS, ROWS};
use crate::kernels::scratch::with_lines;

use super::geometry::Geometry;

/// A weight `[out_channels, in_channels, kernel_h, kernel_w]`, or the one of the turned
/// convolution: `in` and `out` exchanged, and the kernel turned by half a turn.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    data: &'a [f32],
    out_stride: usize,
    in_stride: usize,
    area: usize,
    turned: bool,
}

impl<'a> Weight<'a> {
    pub(super) fn new(data: &'a [f32], geometry: &Geometry) -> Self {
        let area = geometry.kernel_h * geometry.kernel_w;
        Self { data, out_stride: geometry.in_channels * area, in_stride: area, area, turned: false }
    }

    /// What [`Geometry::turned`] is convolved with.
    pub(super) fn turned(self) -> Self {
        let (out_stride, in_stride) = (self.in_stride, self.out_stride);
        Self { out_stride, in_stride, turned: !self.turned, ..self }
    }

    /// The element at a position of the kernel, counted row by row.
    #[inline(always)]
    pub(super) fn at(&self, c_out: usize, c_in: usize, position: usize) -> f32 {
        let position = if self.turned { self.area - 1 - position } else { position };
        self.data[c_out * self.out_stride + c_in * self.in_stride + position]
    }

    /// The nine elements of a 3x3 kernel.
    #[inline(always)]
    pub(super) fn kernel_3x3(&self, c_out: usize, c_in: usize) -> [f32; 9] {
        let start = c_out * self.out_stride + c_in * self.in_stride;
        let mut kernel = [0.0; 9];
        kernel.copy_from_slice(&self.data[start..start + 9]);
        if self.turned {
            kernel.reverse();
        }
        kernel
    }

    /// Calls `f` with blocks of rows for a product with patches, as [`pack`] makes them.
    ///
    /// [`pack`]: crate::kernels::micro::pack
    pub(super) fn with_packed<R>(
        &self,
        geometry: &Geometry,
        f: impl FnOnce(&[[f32; ROWS]]) -> R,
    ) -> R {
        let depth = geometry.patch_len();
        let len = geometry.out_channels.div_ceil(ROWS) * depth;
        with_lines((len * ROWS).div_ceil(COLUMNS), |lines| {
            let packed = &mut lines.as_flattened_mut().as_chunks_mut().0[..len];
            packed.par_chunks_mut(depth).enumerate().for_each(|(block, packed)| {
                self.pack(block * ROWS, geometry.out_channels, packed);
            });
            f(packed)
        })
    }

    fn pack(&self, first: usize, c_out: usize, packed: &mut [[f32; ROWS]]) {
        let rows = ROWS.min(c_out - first);
        if rows < ROWS {
            packed.fill([0.0; ROWS]);
        }
        for r in 0..rows {
            for (c_in, packed) in packed.chunks_exact_mut(self.area).enumerate() {
                let start = (first + r) * self.out_stride + c_in * self.in_stride;
                let kernel = &self.data[start..start + self.area];
                if self.turned {
                    packed.iter_mut().zip(kernel.iter().rev()).for_each(|(p, &w)| p[r] = w);
                } else {
                    packed.iter_mut().zip(kernel).for_each(|(p, &w)| p[r] = w);
                }
            }
        }
    }
}

/// What is added to each channel of the output.
#[derive(Clone, Copy)]
pub(super) enum Bias<'a> {
    None,
    /// `[out_channels]`
    Channel(&'a [f32]),
    /// `[batch, out_channels]`
    Image(&'a [f32], usize),
}

impl Bias<'_> {
    #[inline(always)]
    pub(super) fn at(&self, image: usize, channel: usize) -> f32 {
        match self {
            Self::None => 0.0,
            Self::Channel(bias) => bias[channel],
            Self::Image(bias, channels) => bias[image * channels + channel],
        }
    }
}
