//! Self-attention over the pixels of an image, forward and backward.
//!
//! Vaswani et al., "Attention Is All You Need", 2017: `out = v softmax(scale k q)`. A task takes an
//! image, or a head of it, 32 queries at a time: their scores, the softmax and the weighted sum stay
//! in the second-level cache, and a matrix of all scores never exists in the forward pass. The
//! backward pass computes the weights again. Scores lie `[keys][32 queries]`, so that the softmax
//! runs down the columns and needs no sum across a vector.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::micro::{COLUMNS, Line, ROWS, Sum, multiply, pack_serial, row_products};
use super::scratch::with_lines;
use super::simd::{exp, vectorised};
use super::{f32_slice, is_cpu_f32};

/// Attention of every position to all positions of the same head.
///
/// # Shapes
/// `qkv`: `[heads, 3 * channels, positions]`, where the channels are those of queries, keys and
/// values, and `heads` may count those of several images; to `[heads, channels, positions]`. Scores
/// are multiplied by `scale`.
///
/// # Errors
/// Channels that are no multiple of three.
pub fn attention(qkv: &Tensor, scale: f64) -> Result<Tensor> {
    let (_, of_three, _) = qkv.dims3()?;
    if !of_three.is_multiple_of(3) {
        candle_core::bail!("attention expected [heads, 3 * channels, positions], got {qkv:?}");
    }
    if is_cpu_f32(qkv) {
        return qkv.contiguous()?.apply_op1(Attention { scale: scale as f32 });
    }
    let channels = of_three / 3;
    let part = |index: usize| qkv.narrow(1, index * channels, channels)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.transpose(1, 2)?.contiguous()?.matmul(&k)? * scale)?;
    let weights = candle_nn::ops::softmax(&scores, 2)?; // [heads, queries, keys]
    v.matmul(&weights.transpose(1, 2)?)
}

#[derive(Clone, Copy)]
struct Attention {
    scale: f32,
}

/// One head: its channels and positions, and its three matrices `[channels, positions]`.
struct Head<'a> {
    channels: usize,
    positions: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    scale: f32,
}

impl<'a> Head<'a> {
    fn new(qkv: &'a [f32], channels: usize, positions: usize, scale: f32) -> Self {
        let (q, kv) = qkv.split_at(channels * positions);
        let (k, v) = kv.split_at(channels * positions);
        Self { channels, positions, q, k, v, scale }
    }

    /// Columns `first..` of a matrix of this head, times `factor`; zeros past the last one.
    fn panel(&self, matrix: &[f32], first: usize, factor: f32, to: &mut [Line]) {
        let len = COLUMNS.min(self.positions - first);
        for (row, line) in matrix.chunks_exact(self.positions).zip(to) {
            for (to, from) in line.iter_mut().zip(&row[first..first + len]) {
                *to = factor * from;
            }
            line[len..].fill(0.0);
        }
    }

    /// Blocks of the transpose of a matrix: a row for each position, a depth of the channels.
    fn by_position(&self, matrix: &[f32]) -> Vec<[f32; ROWS]> {
        pack_serial(self.positions, self.channels, |row, k| matrix[k * self.positions + row])
    }

    /// Blocks of a matrix: a row for each channel, a depth of the positions.
    fn by_channel(&self, matrix: &[f32]) -> Vec<[f32; ROWS]> {
        pack_serial(self.channels, self.positions, |row, k| matrix[row * self.positions + k])
    }

    /// The weights of a panel of queries, `[keys][32]`, from packed keys and scaled queries.
    fn weights(&self, keys: &[[f32; ROWS]], queries: &[Line], weights: &mut [Line]) {
        product(keys, queries, weights);
        vectorised(
            #[inline(always)]
            || softmax(weights),
        );
    }

    fn forward(&self, out: &mut [f32]) {
        let (keys, values) = (self.by_position(self.k), self.by_channel(self.v));
        with_lines(2 * self.channels + self.positions, |lines| {
            let (queries, lines) = lines.split_at_mut(self.channels);
            let (sums, weights) = lines.split_at_mut(self.channels);
            for first in (0..self.positions).step_by(COLUMNS) {
                self.panel(self.q, first, self.scale, queries);
                self.weights(&keys, queries, weights);
                product(&values, weights, sums);
                self.put(sums, first, 1.0, out);
            }
        });
    }

    /// Writes a panel to the columns `first..` of a matrix of this head, times `factor`.
    fn put(&self, panel: &[Line], first: usize, factor: f32, to: &mut [f32]) {
        let len = COLUMNS.min(self.positions - first);
        for (row, line) in to.chunks_exact_mut(self.positions).zip(panel) {
            for (to, from) in row[first..first + len].iter_mut().zip(line) {
                *to = factor * from;
            }
        }
    }

    /// The gradients of queries, keys and values, `[3 * channels, positions]`.
    fn backward(&self, grad: &[f32], out: &mut [f32]) {
        /// Panels of queries whose weights are kept at once.
        const PANELS: usize = 16;
        let (channels, positions) = (self.channels, self.positions);
        let (keys, keys_by_channel) = (self.by_position(self.k), self.by_channel(self.k));
        let values = self.by_position(self.v);
        let (q_grad, kv_grad) = out.split_at_mut(channels * positions);
        let (k_grad, v_grad) = kv_grad.split_at_mut(channels * positions);
        let n_panels = positions.div_ceil(COLUMNS);
        let most = PANELS.min(n_panels);
        let n_lines = 2 * (channels + positions) * most + 2 * (channels + positions);
        with_lines(n_lines, |lines| {
            // Rows of many panels, for the gradients of keys and values: queries, gradients of the
            // output, weights, and gradients of the scores.
            let (queries, lines) = lines.split_at_mut(channels * most);
            let (grads, lines) = lines.split_at_mut(channels * most);
            let (weights, lines) = lines.split_at_mut(positions * most);
            let (scores, lines) = lines.split_at_mut(positions * most);
            let (panel, lines) = lines.split_at_mut(channels);
            let (sums, lines) = lines.split_at_mut(channels);
            let (of_panel, of_scores) = lines.split_at_mut(positions);
            for first_panel in (0..n_panels).step_by(PANELS) {
                let n = PANELS.min(n_panels - first_panel);
                for index in 0..n {
                    let first = (first_panel + index) * COLUMNS;
                    self.panel(self.q, first, self.scale, panel);
                    self.weights(&keys, panel, of_panel);
                    spread(panel, queries, index, n);
                    // A column without a query has weights all the same, which must not count.
                    let columns = COLUMNS.min(positions - first);
                    for line in of_panel.iter_mut() {
                        line[columns..].fill(0.0);
                    }
                    spread(of_panel, weights, index, n);
                    self.panel(grad, first, 1.0, panel);
                    spread(panel, grads, index, n);
                    product(&values, panel, of_scores);
                    vectorised(
                        #[inline(always)]
                        || softmax_gradient(of_panel, of_scores),
                    );
                    spread(of_scores, scores, index, n);
                    product(&keys_by_channel, of_scores, sums);
                    self.put(sums, first, self.scale, q_grad);
                }
                let sum = if first_panel == 0 { Sum::Begin } else { Sum::GoOn };
                let (of_channel, of_position) = (channels * n, positions * n);
                // The scale is in the queries.
                let (queries, scores) = (&queries[..of_channel], &scores[..of_position]);
                row_products(queries, scores, n, k_grad, positions, sum);
                let (grads, weights) = (&grads[..of_channel], &weights[..of_position]);
                row_products(grads, weights, n, v_grad, positions, sum);
            }
        });
    }
}

/// Packed blocks times a panel, as many rows as `out` has.
fn product(blocks: &[[f32; ROWS]], panel: &[Line], out: &mut [Line]) {
    let depth = panel.len();
    let mut block_of_out = [[0.0; COLUMNS]; ROWS];
    for (block, out) in blocks.chunks_exact(depth).zip(out.chunks_mut(ROWS)) {
        multiply(block, panel, out.len(), &mut block_of_out);
        out.copy_from_slice(&block_of_out[..out.len()]);
    }
}

/// Puts the lines of a panel where row by row `n` panels lie side by side.
fn spread(panel: &[Line], rows: &mut [Line], index: usize, n: usize) {
    for (row, line) in rows.chunks_exact_mut(n).zip(panel) {
        row[index] = *line;
    }
}

/// The softmax down each column.
#[inline(always)]
fn softmax(scores: &mut [Line]) {
    let mut most = [f32::NEG_INFINITY; COLUMNS];
    for line in scores.iter() {
        for (most, &score) in most.iter_mut().zip(line) {
            *most = if score > *most { score } else { *most };
        }
    }
    let mut sums = [0.0; COLUMNS];
    for line in scores.iter_mut() {
        for ((score, sum), most) in line.iter_mut().zip(&mut sums).zip(&most) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    for line in scores.iter_mut() {
        for (weight, sum) in line.iter_mut().zip(&sums) {
            *weight /= sum;
        }
    }
}

/// From weights and the gradients of the weights, in place, to the gradients of the scores.
#[inline(always)]
fn softmax_gradient(weights: &[Line], grads: &mut [Line]) {
    let mut sums = [0.0; COLUMNS];
    for (weights, grads) in weights.iter().zip(grads.iter()) {
        for ((sum, weight), grad) in sums.iter_mut().zip(weights).zip(grads) {
            *sum += weight * grad;
        }
    }
    for (weights, grads) in weights.iter().zip(grads) {
        for ((grad, weight), sum) in grads.iter_mut().zip(weights).zip(&sums) {
            *grad = weight * (*grad - sum);
        }
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (heads, of_three, positions) = layout.shape().dims3()?;
        let channels = of_three / 3;
        let qkv = f32_slice(qkv, layout)?;
        let mut out = vec![0.0; heads * channels * positions];
        if !out.is_empty() {
            let of_heads = qkv.par_chunks(of_three * positions);
            out.par_chunks_mut(channels * positions).zip(of_heads).for_each(|(out, qkv)| {
                Head::new(qkv, channels, positions, self.scale).forward(out);
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((heads, channels, positions))))
    }

    fn bwd(&self, qkv: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(qkv.apply_op2_no_bwd(&grad.contiguous()?, &AttentionGradient(*self))?))
    }
}

/// `(qkv, grad of the output) -> grad of qkv`.
struct AttentionGradient(Attention);

impl CustomOp2 for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention-gradient"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, of_three, positions) = layout.shape().dims3()?;
        let channels = of_three / 3;
        let (qkv, grad) = (f32_slice(qkv, layout)?, f32_slice(grad, grad_layout)?);
        let mut out = vec![0.0; qkv.len()];
        if !out.is_empty() {
            let len = channels * positions;
            let of_heads = qkv.par_chunks(3 * len).zip(grad.par_chunks(len));
            out.par_chunks_mut(3 * len).zip(of_heads).for_each(|(out, (qkv, grad))| {
                Head::new(qkv, channels, positions, self.0.scale).backward(grad, out);
            });
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random, var};
    use candle_core::DType;

    /// Against candle's own operations, in `f64`.
    #[track_caller]
    fn check(heads: usize, channels: usize, positions: usize) {
        let qkv = var("qkv", &[heads, 3 * channels, positions]);
        let scale = (channels as f64).powf(-0.5) * 4.0;
        let ours = attention(&qkv, scale).unwrap();
        let theirs = attention(&qkv.to_dtype(DType::F64).unwrap(), scale).unwrap();
        assert_close(&ours, &theirs.to_dtype(DType::F32).unwrap(), 1e-5);
        let probe = random("probe", ours.dims());
        let grads = ours.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let probe = probe.to_dtype(DType::F64).unwrap();
        let expected = theirs.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        // Gradients of the scores are differences of near numbers.
        assert_close(grads.get(&qkv).unwrap(), expected.get(&qkv).unwrap(), 1e-4);
    }

    #[test]
    fn agrees_with_candle() {
        check(2, 32, 64);
        check(3, 7, 49);
        check(1, 40, 33);
        check(1, 16, 600);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let qkv = (random("qkv", &[1, 12, 16]) * 1e3).unwrap();
        let out = attention(&qkv, 1.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(out.iter().all(|x| x.is_finite() && x.abs() <= 1e3));
    }

    #[test]
    fn channels_come_in_threes() {
        assert!(attention(&random("qkv", &[1, 8, 4]), 1.0).is_err());
    }
}
