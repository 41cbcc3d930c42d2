//! Two-dimensional convolution: cache-blocked im2col and one matrix product a tile.
//!
//! NCHW in and out, square stride and padding, no groups, no dilation: what the networks of this
//! project use. A tile is a band of output rows small enough that its unfolded patches stay in
//! the second-level cache; tiles of all images run in parallel. An image's patches are laid out
//! `[in_channels * kernel_h * kernel_w, pixels]`, so that a row is a shifted copy of an image row
//! and the product `weight [out_channels, ...] x patches` lands in NCHW without a transpose.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gemm::{MatRef, Output, matmul};
use super::{f32_slice, is_cpu_f32};

/// Patches of one tile take at most this many floats (256 KiB).
const TILE_FLOATS: usize = 64 * 1024;

/// Convolution of `xs` with `weight`, plus `bias` where there is one.
///
/// # Shapes
/// - `xs`: `[batch, in_channels, height, width]`
/// - `weight`: `[out_channels, in_channels, kernel_h, kernel_w]`
/// - `bias`: `[out_channels]`
///
/// # Errors
/// Shapes that do not fit together.
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    if is_cpu_f32(xs) {
        let op = Conv { stride, padding };
        let xs = xs.contiguous()?;
        let weight = weight.contiguous()?;
        return match bias {
            Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, op),
            None => xs.apply_op2(&weight, op),
        };
    }
    let ys = xs.conv2d(weight, padding, stride, /* dilation */ 1, /* groups */ 1)?;
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(ys),
    }
}

#[derive(Clone, Copy)]
struct Conv {
    stride: usize,
    padding: usize,
}

/// All sizes of one convolution.
#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    in_channels: usize,
    in_h: usize,
    in_w: usize,
    out_channels: usize,
    kernel_h: usize,
    kernel_w: usize,
    out_h: usize,
    out_w: usize,
    stride: usize,
    padding: usize,
}

impl Geometry {
    fn new(op: Conv, xs: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, in_channels, in_h, in_w) = xs.dims4()?;
        let (out_channels, weight_in, kernel_h, kernel_w) = weight.dims4()?;
        let Conv { stride, padding } = op;
        let fits = in_h + 2 * padding >= kernel_h && in_w + 2 * padding >= kernel_w;
        if weight_in != in_channels || stride == 0 || !fits {
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

    fn patch_len(&self) -> usize {
        self.in_channels * self.kernel_h * self.kernel_w
    }

    fn out_pixels(&self) -> usize {
        self.out_h * self.out_w
    }

    fn in_image(&self) -> usize {
        self.in_channels * self.in_h * self.in_w
    }

    fn out_image(&self) -> usize {
        self.out_channels * self.out_pixels()
    }

    /// A 1x1 kernel reads each pixel once, where it lies.
    fn is_pointwise(&self) -> bool {
        self.kernel_h == 1 && self.kernel_w == 1 && self.stride == 1 && self.padding == 0
    }

    /// Output rows of one tile: bounded by the cache, and small enough to give each thread work.
    fn tile_rows(&self) -> usize {
        let by_cache = (TILE_FLOATS / (self.patch_len() * self.out_w)).max(1);
        let by_threads = if self.batch >= 2 * rayon::current_num_threads() {
            self.out_h
        } else {
            self.out_h.div_ceil(2 * rayon::current_num_threads())
        };
        by_cache.min(by_threads).clamp(1, self.out_h)
    }

    /// Unfolds the patches of output rows `rows` of one image into `patches`,
    /// `[patch_len, rows * out_w]`.
    fn unfold(&self, image: &[f32], rows: std::ops::Range<usize>, patches: &mut [f32]) {
        let pixels = rows.len() * self.out_w;
        let mut patch_rows = patches.chunks_exact_mut(pixels);
        for channel in image.chunks_exact(self.in_h * self.in_w) {
            for ky in 0..self.kernel_h {
                for kx in 0..self.kernel_w {
                    let patch_row =
                        patch_rows.next().expect("patches hold patch_len rows of pixels");
                    for (oy, line) in rows.clone().zip(patch_row.chunks_exact_mut(self.out_w)) {
                        let iy = (oy * self.stride + ky).wrapping_sub(self.padding);
                        if iy < self.in_h {
                            let source = &channel[iy * self.in_w..(iy + 1) * self.in_w];
                            self.unfold_line(source, kx, line);
                        } else {
                            line.fill(0.0);
                        }
                    }
                }
            }
        }
    }

    fn unfold_line(&self, source: &[f32], kx: usize, line: &mut [f32]) {
        let (first, last) = self.valid_columns(kx);
        line[..first].fill(0.0);
        line[last..].fill(0.0);
        if first >= last {
            return;
        }
        let start = first * self.stride + kx - self.padding;
        if self.stride == 1 {
            line[first..last].copy_from_slice(&source[start..start + (last - first)]);
        } else {
            for (value, x) in line[first..last].iter_mut().zip((start..).step_by(self.stride)) {
                *value = source[x];
            }
        }
    }

    /// The output columns whose input column under kernel column `kx` lies inside the image.
    fn valid_columns(&self, kx: usize) -> (usize, usize) {
        let first = self.padding.saturating_sub(kx).div_ceil(self.stride).min(self.out_w);
        let last = (self.in_w + self.padding)
            .checked_sub(kx + 1)
            .map_or(0, |room| (room / self.stride + 1).min(self.out_w));
        (first, last.max(first))
    }

    /// The transpose of [`Geometry::unfold`]: adds patches back onto the image they came from.
    fn fold(&self, patches: &[f32], rows: std::ops::Range<usize>, image: &mut [f32]) {
        let pixels = rows.len() * self.out_w;
        let mut patch_rows = patches.chunks_exact(pixels);
        for channel in image.chunks_exact_mut(self.in_h * self.in_w) {
            for ky in 0..self.kernel_h {
                for kx in 0..self.kernel_w {
                    let patch_row =
                        patch_rows.next().expect("patches hold patch_len rows of pixels");
                    let (first, last) = self.valid_columns(kx);
                    for (oy, line) in rows.clone().zip(patch_row.chunks_exact(self.out_w)) {
                        let iy = (oy * self.stride + ky).wrapping_sub(self.padding);
                        if iy >= self.in_h || first >= last {
                            continue;
                        }
                        let start = iy * self.in_w + first * self.stride + kx - self.padding;
                        let grads = &line[first..last];
                        if self.stride == 1 {
                            for (value, grad) in channel[start..].iter_mut().zip(grads) {
                                *value += grad;
                            }
                        } else {
                            let target = channel[start..].iter_mut().step_by(self.stride);
                            for (value, grad) in target.zip(grads) {
                                *value += grad;
                            }
                        }
                    }
                }
            }
        }
    }

    fn forward(&self, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0f32; self.batch * self.out_image()];
        if out.is_empty() {
            return out;
        }
        let tile_rows = self.tile_rows();
        let n_tiles = self.out_h.div_ceil(tile_rows);
        let weight = MatRef::new(weight, self.out_channels, self.patch_len());
        if n_tiles == 1 {
            out.par_chunks_mut(self.out_image()).enumerate().for_each_init(
                Vec::new,
                |patches, (b, image_out)| {
                    let image = &xs[b * self.in_image()..(b + 1) * self.in_image()];
                    self.forward_tile(image, weight, bias, 0..self.out_h, patches, image_out);
                },
            );
            return out;
        }
        // A band of rows is strided inside its image, so each tile writes a block of its own
        // that is copied into place afterwards; the copy is small beside the product.
        out.par_chunks_mut(self.out_image()).enumerate().for_each(|(b, image_out)| {
            let image = &xs[b * self.in_image()..(b + 1) * self.in_image()];
            let tiles: Vec<(usize, Vec<f32>)> = (0..n_tiles)
                .into_par_iter()
                .map_init(Vec::new, |patches, tile| {
                    let first = tile * tile_rows;
                    let rows = first..(first + tile_rows).min(self.out_h);
                    let mut block = vec![0.0; self.out_channels * rows.len() * self.out_w];
                    self.forward_tile(image, weight, bias, rows, patches, &mut block);
                    (first, block)
                })
                .collect();
            for (first, block) in tiles {
                let pixels = block.len() / self.out_channels;
                let starts = (first * self.out_w..).step_by(self.out_pixels());
                for (start, line) in starts.zip(block.chunks_exact(pixels)) {
                    image_out[start..start + pixels].copy_from_slice(line);
                }
            }
        });
        out
    }

    /// One band of output rows of one image, into `block`: `[out_channels, rows * out_w]`.
    fn forward_tile(
        &self,
        image: &[f32],
        weight: MatRef<'_>,
        bias: Option<&[f32]>,
        rows: std::ops::Range<usize>,
        patches: &mut Vec<f32>,
        block: &mut [f32],
    ) {
        let pixels = rows.len() * self.out_w;
        let mode = match bias {
            Some(bias) => {
                for (line, bias) in block.chunks_exact_mut(pixels).zip(bias) {
                    line.fill(*bias);
                }
                Output::Accumulate
            }
            None => Output::Overwrite,
        };
        if self.is_pointwise() {
            let first = rows.start * self.out_w;
            let pixels_in = self.in_h * self.in_w;
            let rhs = MatRef::strided(&image[first..], self.in_channels, pixels, pixels_in);
            matmul(block, pixels, mode, weight, rhs);
        } else {
            patches.resize(self.patch_len() * pixels, 0.0);
            self.unfold(image, rows, patches);
            matmul(block, pixels, mode, weight, MatRef::new(patches, self.patch_len(), pixels));
        }
    }

    /// Gradient with respect to the input.
    fn backward_input(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0f32; self.batch * self.in_image()];
        if out.is_empty() || grad.is_empty() {
            return out;
        }
        let rows_a_tile = (TILE_FLOATS / (self.patch_len() * self.out_w)).clamp(1, self.out_h);
        let weight = MatRef::new(weight, self.out_channels, self.patch_len()).transposed();
        out.par_chunks_mut(self.in_image()).enumerate().for_each_init(
            Vec::new,
            |patches, (b, image)| {
                let grad = &grad[b * self.out_image()..(b + 1) * self.out_image()];
                for first in (0..self.out_h).step_by(rows_a_tile) {
                    let rows = first..(first + rows_a_tile).min(self.out_h);
                    let pixels = rows.len() * self.out_w;
                    let band = &grad[first * self.out_w..];
                    let band = MatRef::strided(band, self.out_channels, pixels, self.out_pixels());
                    if self.is_pointwise() {
                        let image = &mut image[first * self.out_w..];
                        matmul(image, self.out_pixels(), Output::Overwrite, weight, band);
                    } else {
                        patches.resize(self.patch_len() * pixels, 0.0);
                        matmul(patches, pixels, Output::Overwrite, weight, band);
                        self.fold(patches, rows, image);
                    }
                }
            },
        );
        out
    }

    /// Gradient with respect to the weight. The batch is cut into a fixed number of parts whose
    /// sums are added in order, so that the result does not depend on the number of threads.
    fn backward_weight(&self, xs: &[f32], grad: &[f32]) -> Vec<f32> {
        const PARTS: usize = 8;
        let mut total = vec![0.0f32; self.out_channels * self.patch_len()];
        if xs.is_empty() || grad.is_empty() {
            return total;
        }
        let images_a_part = self.batch.div_ceil(PARTS);
        let rows_a_tile = (TILE_FLOATS / (self.patch_len() * self.out_w)).clamp(1, self.out_h);
        let parts: Vec<Vec<f32>> = (0..self.batch.div_ceil(images_a_part))
            .into_par_iter()
            .map_init(Vec::new, |patches, part| {
                let mut sum = vec![0.0f32; total.len()];
                let first_image = part * images_a_part;
                for b in first_image..(first_image + images_a_part).min(self.batch) {
                    let image = &xs[b * self.in_image()..(b + 1) * self.in_image()];
                    let grad = &grad[b * self.out_image()..(b + 1) * self.out_image()];
                    for first in (0..self.out_h).step_by(rows_a_tile) {
                        let rows = first..(first + rows_a_tile).min(self.out_h);
                        let pixels = rows.len() * self.out_w;
                        let band = &grad[first * self.out_w..];
                        let band =
                            MatRef::strided(band, self.out_channels, pixels, self.out_pixels());
                        let rhs = if self.is_pointwise() {
                            let image = &image[first * self.out_w..];
                            MatRef::strided(image, self.in_channels, pixels, self.out_pixels())
                        } else {
                            patches.resize(self.patch_len() * pixels, 0.0);
                            self.unfold(image, rows, patches);
                            MatRef::new(patches, self.patch_len(), pixels)
                        };
                        let stride = self.patch_len();
                        matmul(&mut sum, stride, Output::Accumulate, band, rhs.transposed());
                    }
                }
                sum
            })
            .collect();
        for part in parts {
            for (total, value) in total.iter_mut().zip(part) {
                *total += value;
            }
        }
        total
    }
}

impl Conv {
    fn run(
        self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self, xs.1.shape(), weight.1.shape())?;
        let bias = bias.map(|(storage, layout)| f32_slice(storage, layout)).transpose()?;
        if bias.is_some_and(|bias| bias.len() != geometry.out_channels) {
            candle_core::bail!("convolution bias does not have {} values", geometry.out_channels);
        }
        let out = geometry.forward(f32_slice(xs.0, xs.1)?, f32_slice(weight.0, weight.1)?, bias);
        let Geometry { batch, out_channels, out_h, out_w, .. } = geometry;
        Ok((CpuStorage::F32(out), Shape::from((batch, out_channels, out_h, out_w))))
    }

    fn gradients(self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
        let grad = grad.contiguous()?;
        let xs_grad = weight
            .apply_op2_no_bwd(&grad, &InputGradient { conv: self, xs: xs.shape().clone() })?;
        let weight_grad = xs.apply_op2_no_bwd(
            &grad,
            &WeightGradient { conv: self, weight: weight.shape().clone() },
        )?;
        Ok((xs_grad, weight_grad))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((xs, xs_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs_grad, weight_grad) = self.gradients(xs, weight, grad)?;
        Ok((Some(xs_grad), Some(weight_grad)))
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((xs, xs_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (xs_grad, weight_grad) = self.gradients(xs, weight, grad)?;
        let bias_grad = grad.contiguous()?.apply_op1_no_bwd(&BiasGradient)?;
        Ok((Some(xs_grad), Some(weight_grad), Some(bias_grad)))
    }
}

/// `(weight, grad of the output) -> grad of the input`.
struct InputGradient {
    conv: Conv,
    xs: Shape,
}

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "conv2d-input-gradient"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self.conv, &self.xs, weight_layout.shape())?;
        let weight = f32_slice(weight, weight_layout)?;
        let out = geometry.backward_input(weight, f32_slice(grad, grad_layout)?);
        Ok((CpuStorage::F32(out), self.xs.clone()))
    }
}

/// `(input, grad of the output) -> grad of the weight`.
struct WeightGradient {
    conv: Conv,
    weight: Shape,
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "conv2d-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(self.conv, xs_layout.shape(), &self.weight)?;
        let out =
            geometry.backward_weight(f32_slice(xs, xs_layout)?, f32_slice(grad, grad_layout)?);
        Ok((CpuStorage::F32(out), self.weight.clone()))
    }
}

/// `grad of the output -> grad of the bias`: the sum over each channel.
struct BiasGradient;

impl CustomOp1 for BiasGradient {
    fn name(&self) -> &'static str {
        "conv2d-bias-gradient"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let grad = f32_slice(grad, layout)?;
        let plane = height * width;
        let sum_plane = |b: usize, channel: usize| {
            let plane = &grad[(b * channels + channel) * plane..][..plane];
            // Eight lanes, so that the loop vectorises.
            let mut lanes = [0f32; 8];
            let chunks = plane.chunks_exact(8);
            let rest: f32 = chunks.remainder().iter().sum();
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += value;
                }
            }
            f64::from(rest) + f64::from(lanes.iter().sum::<f32>())
        };
        let sums = (0..channels)
            .into_par_iter()
            .map(|channel| (0..batch).map(|b| sum_plane(b, channel)).sum::<f64>() as f32)
            .collect();
        Ok((CpuStorage::F32(sums), Shape::from(channels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, var};

    /// Value and gradients against candle's own convolution.
    fn check(
        batch: usize,
        channels: (usize, usize),
        size: (usize, usize),
        kernel: usize,
        stride: usize,
        padding: usize,
    ) {
        let (c_in, c_out) = channels;
        let xs = var("xs", &[batch, c_in, size.0, size.1]);
        let weight = var("weight", &[c_out, c_in, kernel, kernel]);
        let bias = var("bias", &[c_out]);
        let ours = conv2d(&xs, &weight, Some(&bias), stride, padding).unwrap();
        let theirs = xs
            .conv2d(&weight, padding, stride, 1, 1)
            .unwrap()
            .broadcast_add(&bias.reshape((1, c_out, 1, 1)).unwrap())
            .unwrap();
        assert_close(&ours, &theirs, 1e-5);
        let probe = random("probe", ours.dims());
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        for v in [&xs, &weight, &bias] {
            assert_close(grads.get(v).unwrap(), expected.get(v).unwrap(), 1e-5);
        }
    }

    #[test]
    fn agrees_with_candle() {
        check(2, (3, 5), (8, 8), 3, 1, 1);
        check(3, (4, 6), (9, 7), 3, 1, 0);
        check(1, (16, 8), (33, 20), 3, 1, 1);
        check(2, (4, 4), (8, 8), 1, 1, 0);
        check(5, (2, 3), (12, 12), 5, 1, 2);
        check(9, (8, 8), (16, 16), 3, 1, 1);
    }

    #[test]
    fn agrees_with_candle_when_strided() {
        check(2, (3, 5), (8, 8), 3, 2, 1);
        check(2, (3, 5), (9, 9), 3, 2, 0);
        check(1, (6, 4), (8, 8), 1, 2, 0);
        check(1, (3, 8), (31, 31), 7, 2, 3);
    }

    #[test]
    fn large_images_are_cut_into_tiles() {
        check(1, (32, 16), (64, 64), 3, 1, 1);
    }

    #[test]
    fn an_empty_batch_gives_an_empty_batch() {
        let xs = random("xs", &[0, 3, 8, 8]);
        let weight = random("weight", &[4, 3, 3, 3]);
        assert_eq!(conv2d(&xs, &weight, None, 1, 1).unwrap().dims(), &[0, 4, 8, 8]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let xs = random("xs", &[1, 3, 8, 8]);
        let weight = random("weight", &[4, 2, 3, 3]);
        let err = conv2d(&xs, &weight, None, 1, 1).unwrap_err().to_string();
        assert!(err.contains("[1, 3, 8, 8]") && err.contains("[4, 2, 3, 3]"), "{err}");
    }
}
