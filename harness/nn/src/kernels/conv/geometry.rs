//! Sizes of a convolution, and the runs of output positions that a panel is made of.

use candle_core::{Result, Shape};

use crate::kernels::micro::COLUMNS;

/// Stride and padding, equal in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moves {
    pub(super) stride: usize,
    pub(super) padding: usize,
}

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) in_channels: usize,
    pub(super) in_h: usize,
    pub(super) in_w: usize,
    pub(super) out_channels: usize,
    pub(super) kernel_h: usize,
    pub(super) kernel_w: usize,
    pub(super) out_h: usize,
    pub(super) out_w: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

impl Geometry {
    pub(super) fn new(moves: Moves, xs: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, in_channels, in_h, in_w) = xs.dims4()?;
        let (out_channels, weight_in, kernel_h, kernel_w) = weight.dims4()?;
        let Moves { stride, padding } = moves;
        let fits = in_h + 2 * padding >= kernel_h && in_w + 2 * padding >= kernel_w;
        if weight_in != in_channels || stride == 0 || !fits || kernel_h * kernel_w == 0 {
            candle_core::bail!(
                "convolution of {xs:?} with weight {weight:?}, stride {stride}, padding {padding}"
            );
        }
        Ok(Self {
            batch,
            in_channels,
            in_h,
            in_w,
            out_channels,
            kernel_h,
            kernel_w,
            out_h: (in_h + 2 * padding - kernel_h) / stride + 1,
            out_w: (in_w + 2 * padding - kernel_w) / stride + 1,
            stride,
            padding,
        })
    }

    /// The same convolution seen as simply as it can be: a 1x1 kernel reads each pixel once, so an
    /// image is one long row.
    pub(super) fn simplified(self) -> Self {
        if self.kernel_h == 1 && self.kernel_w == 1 && self.stride == 1 && self.padding == 0 {
            let pixels = self.in_h * self.in_w;
            return Self { in_h: 1, in_w: pixels, out_h: 1, out_w: pixels, ..self };
        }
        self
    }

    /// The convolution that takes the gradient of the output to that of the input: of the kernel
    /// turned by half a turn, its channels exchanged. Only a stride of one has it.
    pub(super) fn turned(self) -> Option<Self> {
        let square = self.kernel_h == self.kernel_w;
        if self.stride != 1 || !square || self.padding >= self.kernel_h {
            return None;
        }
        Some(Self {
            in_channels: self.out_channels,
            in_h: self.out_h,
            in_w: self.out_w,
            out_channels: self.in_channels,
            out_h: self.in_h,
            out_w: self.in_w,
            padding: self.kernel_h - 1 - self.padding,
            ..self
        })
    }

    pub(super) fn patch_len(&self) -> usize {
        self.in_channels * self.kernel_h * self.kernel_w
    }

    pub(super) fn in_pixels(&self) -> usize {
        self.in_h * self.in_w
    }

    pub(super) fn out_pixels(&self) -> usize {
        self.out_h * self.out_w
    }

    pub(super) fn in_len(&self) -> usize {
        self.batch * self.in_channels * self.in_pixels()
    }

    pub(super) fn out_len(&self) -> usize {
        self.batch * self.out_channels * self.out_pixels()
    }

    /// The plane of a channel of an image of the input.
    pub(super) fn plane<'a>(&self, xs: &'a [f32], image: usize, channel: usize) -> &'a [f32] {
        &xs[(image * self.in_channels + channel) * self.in_pixels()..][..self.in_pixels()]
    }

    /// Where a row of the output begins.
    pub(super) fn out_row(&self, image: usize, channel: usize, y: usize) -> usize {
        ((image * self.out_channels + channel) * self.out_h + y) * self.out_w
    }
}

/// Neighbours in a row of a grid, and the columns of a panel where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) image: usize,
    pub(super) y: usize,
    pub(super) x: usize,
    pub(super) len: usize,
    pub(super) lane: usize,
}

/// Positions `panel * 32 ..` of all grids of a batch, one after the other, cut at the ends of rows.
pub(super) fn runs(panel: usize, batch: usize, (height, width): (usize, usize)) -> Vec<Run> {
    let total = batch * height * width;
    let first = panel * COLUMNS;
    let end = (first + COLUMNS).min(total);
    let mut runs = Vec::new();
    let mut at = first;
    while at < end {
        let (row, x) = (at / width, at % width);
        let len = (width - x).min(end - at);
        runs.push(Run { image: row / height, y: row % height, x, len, lane: at - first });
        at += len;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_rows_end() {
        let run = |image, y, x, len, lane| Run { image, y, x, len, lane };
        assert_eq!(
            runs(0, 2, (2, 10)),
            [run(0, 0, 0, 10, 0), run(0, 1, 0, 10, 10), run(1, 0, 0, 10, 20), run(1, 1, 0, 2, 30)]
        );
        assert_eq!(runs(1, 2, (2, 10)), [run(1, 1, 2, 8, 0)]);
        assert_eq!(runs(1, 1, (1, 70)), [run(0, 0, 32, 32, 0)]);
    }
}
