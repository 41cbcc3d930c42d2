//! RankFeat: logits of activations without their greatest rank-1 part.
//!
//! Song et al., "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection", 2022. The
//! activations of a block are, for each image, a matrix of channels by pixels; its greatest singular
//! value is what tells out-of-distribution images, and taking `s_1 u_1 v_1'` away from the matrix
//! takes away the overconfidence. Score: `-T log sum_c exp((a_c + b_c) / 2T)`, where `a` are the
//! logits that follow from the last block without its rank-1 part, and `b` those from the one before.
//!
//! Blocks are the stages of the classifier with at least two convolutions or ReLUs; the stem and a
//! last normalisation are none. A network with a single stage has `b = a`. OpenOOD takes `layer4` and
//! `layer3` by name, which only its ResNets have.
//!
//! The singular triple comes from the smaller of the two Gram matrices of the activations, by power
//! iteration, and from all of its eigenvectors where the two greatest values are too close for that.
//! `accelerate` stops after 20 steps, as in OpenOOD, which draws the first vector at random; here it
//! is always the same one.

use faer::{Mat, Side};
use oodbench_sdk::prelude::*;
use oodbench_sdk::{ImageBatch, Layer, LayerGroups};
use rayon::prelude::*;

use crate::numeric::check;
use crate::numeric::moments::single;
use crate::numeric::random::Random;
use crate::numeric::reduce::log_sum_exp;

/// Images whose activations are held at once.
const IMAGES_AT_ONCE: usize = 32;

/// Steps of the accelerated power iteration.
const ACCELERATED_STEPS: usize = 20;

/// Steps after which all eigenvectors are quicker.
const MOST_STEPS: usize = 300;

/// Parameters of [`RankFeat`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    temperature: f64,
    accelerate: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, accelerate: false }
    }
}

/// RankFeat.
pub struct RankFeat {
    params: Params,
    host: Host,
    /// The stages that are read, the last one first; known once the classifier is.
    stages: Option<Vec<String>>,
}

impl Detector for RankFeat {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "rankfeat",
            title: "RankFeat",
            family: "shaping",
            summary: "the energy of logits from the last two blocks without their greatest rank-1 part",
            paper: "Song et al., RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection",
            year: 2022,
            url: "https://arxiv.org/abs/2209.08590",
            needs: Needs::IMAGES.and(Needs::LAYERS).and(Needs::FORWARD),
            params: vec![
                Param::new("temperature", "what the logits are divided by", "OpenOOD v1.5")
                    .number(),
                Param::new("accelerate", "stop the power iteration after 20 steps", "OpenOOD v1.5"),
            ],
            // Red and green light different pixels, so that each is a singular vector and the brighter
            // one goes. What is left has means of 0, 0.1 and 0.
            example: Example::of_images(
                &[&[0.8, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]],
                &[-0.744_396_7],
            )
            .head(&[&[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0]], &[0.0, 0.0]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(params.temperature > 0.0 && params.temperature.is_finite()) {
            return Err(Error::parameter("temperature", "a positive number", params.temperature));
        }
        Ok(Self { params, host, stages: None })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let stages = match &self.stages {
            Some(stages) => stages,
            None => self
                .stages
                .insert(last_blocks(&self.host.layer_names()?, &self.host.layer_groups()?)?),
        };
        let names: Vec<&str> = stages.iter().map(String::as_str).collect();
        let steps = if self.params.accelerate { Some(ACCELERATED_STEPS) } else { None };
        let images = batch.images()?;
        let [_, channels, height, width] = images.shape();
        let per_part = channels * height * width * IMAGES_AT_ONCE;
        let parts = images.values().chunks(per_part).zip(scores.chunks_mut(IMAGES_AT_ONCE));
        for (nth, (part, scores)) in parts.enumerate() {
            self.host.progress(nth * IMAGES_AT_ONCE, batch.len())?;
            let layers = self.host.layers(ImageBatch::new(part, height, width)?, &names)?;
            let mut mean: Vec<f64> = Vec::new();
            let mut n_classes = 0;
            for mut layer in layers {
                remove_greatest(&mut layer, steps)?;
                let outputs = self.host.forward_from(&layer.name, &layer.data, &layer.shape)?;
                let logits = check::logits(outputs.logits())?;
                n_classes = logits.n_cols();
                mean.resize(logits.values().len(), 0.0);
                for (mean, &logit) in mean.iter_mut().zip(logits.values()) {
                    *mean += f64::from(logit) / names.len() as f64;
                }
            }
            for (score, logits) in scores.iter_mut().zip(mean.chunks_exact(n_classes.max(1))) {
                let logits: Vec<f32> = logits.iter().map(|&logit| single(logit)).collect();
                *score = single(-log_sum_exp(&logits, self.params.temperature));
            }
        }
        Ok(())
    }
}

/// The last two blocks, the last one first; the last stage where there are no blocks.
fn last_blocks(names: &[String], groups: &LayerGroups) -> Result<Vec<String>> {
    let mut blocks = Vec::new();
    let mut n_maps = 0;
    for name in names {
        n_maps += usize::from(groups.maps.contains(name));
        if let Some(nth) = groups.stages.iter().position(|stage| stage == name) {
            if nth > 0 && n_maps >= 2 {
                blocks.push(name.clone());
            }
            n_maps = 0;
        }
    }
    if blocks.is_empty() {
        let last =
            groups.stages.last().ok_or_else(|| Error::new("the classifier has no stages"))?;
        return Ok(vec![last.clone()]);
    }
    Ok(blocks.into_iter().rev().take(2).collect())
}

/// Takes the greatest rank-1 part away from the activations of each image.
fn remove_greatest(layer: &mut Layer, steps: Option<usize>) -> Result<()> {
    let (channels, pixels) = match *layer.shape.as_slice() {
        [_, channels, height, width] => (channels, height * width),
        ref shape => {
            let name = &layer.name;
            return Err(Error::input(format!(
                "layer `{name}` expected [n, channels, height, width], got {shape:?}"
            )));
        }
    };
    if channels * pixels == 0 {
        return Ok(());
    }
    if layer.data.iter().any(|x| !x.is_finite()) {
        return Err(Error::input(format!("layer `{}` expected finite values", layer.name)));
    }
    layer
        .data
        .par_chunks_exact_mut(channels * pixels)
        .try_for_each(|matrix| remove_from(matrix, channels, pixels, steps))
}

/// Takes `s_1 u_1 v_1'` away from a matrix of this many rows and columns.
fn remove_from(matrix: &mut [f32], rows: usize, cols: usize, steps: Option<usize>) -> Result<()> {
    let wide: Vec<f64> = if rows < cols {
        matrix.iter().map(|&x| f64::from(x)).collect()
    } else {
        // Rows are what there is less of.
        (0..cols).flat_map(|col| matrix.iter().skip(col).step_by(cols)).map(|&x| x.into()).collect()
    };
    let (n, len) = (rows.min(cols), rows.max(cols));
    let row = |i: usize| &wide[i * len..(i + 1) * len];
    // Compiled for the vectors that the machine has.
    let gram = pulp::Arch::new().dispatch(|| products(&wide, n, len));
    let u = greatest_vector(&gram, n, steps)?;
    // `u' A`, so that `u (u' A)` is what goes.
    let mut along = vec![0.0; len];
    for (i, &weight) in u.iter().enumerate() {
        for (sum, &x) in along.iter_mut().zip(row(i)) {
            *sum += weight * x;
        }
    }
    for (i, &weight) in u.iter().enumerate() {
        for (k, (&x, along)) in row(i).iter().zip(&along).enumerate() {
            let at = if rows < cols { i * cols + k } else { k * cols + i };
            matrix[at] = single(x - weight * along);
        }
    }
    Ok(())
}

/// `A A'` of a matrix with `n` rows.
#[inline(always)]
fn products(a: &[f64], n: usize, len: usize) -> Vec<f64> {
    let row = |i: usize| &a[i * len..(i + 1) * len];
    let mut gram = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let product = dot(row(i), row(j));
            gram[i * n + j] = product;
            gram[j * n + i] = product;
        }
    }
    gram
}

/// The unit eigenvector of the greatest eigenvalue of a symmetric matrix without negative ones; zeros
/// for a matrix of zeros.
fn greatest_vector(gram: &[f64], n: usize, steps: Option<usize>) -> Result<Vec<f64>> {
    // Off by this part of the eigenvalue, a vector is right to the rounding of `f64`.
    const CONVERGED: f64 = 1e-14;
    let scale = (0..n).map(|i| gram[i * n + i]).fold(0.0, f64::max);
    if scale == 0.0 {
        return Ok(vec![0.0; n]);
    }
    // Positive, as are the first singular vectors of rectified maps, and unlike any pattern.
    let mut random = Random::new(0);
    let mut v: Vec<f64> = (0..n).map(|_| 0.5 + random.unit()).collect();
    let mut next = vec![0.0; n];
    for _ in 0..steps.unwrap_or(MOST_STEPS) {
        for (x, row) in next.iter_mut().zip(gram.chunks_exact(n)) {
            *x = dot(row, &v) / scale;
        }
        let length = dot(&next, &next).sqrt();
        if length == 0.0 {
            break;
        }
        let mut moved = 0.0f64;
        for (x, next) in v.iter_mut().zip(&next) {
            let unit = next / length;
            moved = moved.max((unit - *x).abs());
            *x = unit;
        }
        if moved < CONVERGED {
            return Ok(v);
        }
    }
    if steps.is_some() {
        return Ok(v);
    }
    let gram = Mat::from_fn(n, n, |i, j| gram[i * n + j] / scale);
    let eigen = gram.self_adjoint_eigen(Side::Lower);
    let eigen = eigen.map_err(|err| Error::new(format!("eigenvectors of a layer: {err:?}")))?;
    let values = eigen.S().column_vector();
    let best = (0..n).fold(0, |best, i| if values[i] > values[best] { i } else { best });
    Ok((0..n).map(|i| eigen.U()[(i, best)]).collect())
}

/// `sum(a * b)` in an order that several lanes can add up in.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (a, rest_of_a) = a.as_chunks::<LANES>();
    let (b, rest_of_b) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = rest_of_a.iter().zip(rest_of_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_greatest(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        let mut out = matrix.to_vec();
        remove_from(&mut out, rows, cols, None).unwrap();
        out
    }

    fn assert_close(ours: &[f32], expected: &[f32]) {
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-6, "{ours} {expected}");
        }
    }

    #[test]
    fn what_is_left_agrees_with_a_singular_value_decomposition() {
        let mut random = Random::new(5);
        for (rows, cols) in [(3, 40), (40, 3), (17, 17), (1, 9), (9, 1)] {
            let matrix: Vec<f32> =
                (0..rows * cols).map(|_| (random.unit() * 2.0 - 0.7) as f32).collect();
            let a = Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j]));
            let svd = a.thin_svd().unwrap();
            let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
            let expected: Vec<f32> = (0..rows * cols)
                .map(|at| {
                    let (i, j) = (at / cols, at % cols);
                    (a[(i, j)] - s[0] * u[(i, 0)] * v[(j, 0)]) as f32
                })
                .collect();
            assert_close(&without_greatest(&matrix, rows, cols), &expected);
        }
    }

    #[test]
    fn a_matrix_of_rank_one_leaves_nothing() {
        assert_close(&without_greatest(&[1.0, 2.0, 3.0, 6.0], 2, 2), &[0.0; 4]);
        assert_close(&without_greatest(&[0.5; 12], 3, 4), &[0.0; 12]);
        assert_close(&without_greatest(&[-2.0, 0.0, 4.0], 3, 1), &[0.0; 3]);
        assert_eq!(without_greatest(&[0.0; 6], 2, 3), [0.0; 6]);
    }

    #[test]
    fn extreme_activations_stay_finite() {
        for size in [f32::MAX, f32::MIN_POSITIVE] {
            let left = without_greatest(&[size, 0.0, 0.0, size / 2.0], 2, 2);
            assert_close(&[left[0] / size, left[3] / size], &[0.0, 0.5]);
        }
    }

    #[test]
    fn two_values_that_are_nearly_equal_are_told_apart() {
        // Too close for a power iteration within its steps.
        let left = without_greatest(&[1.0, 0.0, 0.0, 1.000_01], 2, 2);
        assert_close(&left, &[1.0, 0.0, 0.0, 0.0]);
        // Of equal ones any may go, but one of them goes.
        let left = without_greatest(&[1.0, 0.0, 0.0, 1.0], 2, 2);
        let trace = left[0] + left[3];
        assert!((trace - 1.0).abs() < 1e-6, "{left:?}");
    }

    #[test]
    fn blocks_are_stages_with_something_inside() {
        let names = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let all = "conv1 relu1 stem b.conv1 b.conv2 block1 c.conv1 c.conv2 block2 relu bn";
        let groups = LayerGroups {
            stages: names("stem block1 block2 bn"),
            maps: names("conv1 relu1 b.conv1 b.conv2 c.conv1 c.conv2 relu"),
            heads: Vec::new(),
        };
        assert_eq!(last_blocks(&names(all), &groups).unwrap(), ["block2", "block1"]);
        let groups = LayerGroups { stages: names("input"), ..LayerGroups::default() };
        assert_eq!(last_blocks(&names("input"), &groups).unwrap(), ["input"]);
        assert!(last_blocks(&[], &LayerGroups::default()).is_err());
    }
}
