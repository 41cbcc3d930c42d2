//! Rotation prediction: an image whose rotation the classifier cannot tell is no image of its own.
//!
//! Hendrycks et al., "Using Self-Supervised Learning Can Improve Model Robustness and Uncertainty",
//! 2019. A head tells by how many quarters an image was turned. Score: the mean over the four
//! rotations of `-log2 q_r(r)`, minus `KL(uniform || p)` in bits, for the probabilities `q_r` of
//! the rotation head on the image turned by `r` quarters, and `p` of the classes on the image as it
//! is.
//!
//! Turns are counter-clockwise, as OpenOOD's. It takes logarithms of probabilities that were rounded
//! to single precision first, and gives infinity where one became 0; here logarithms follow from
//! logits. The classifier must have the layer `rotation`, `[n, 4]`, as checkpoints of OpenOOD's
//! `rot_net` give it.

use std::f64::consts::LN_2;

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::further::HeadRows;
use crate::numeric::moments::single;
use crate::numeric::reduce::log_sum_exp;

/// Rotation prediction.
pub struct RotPred {
    host: Host,
}

/// Images turned by `quarters` counter-clockwise, with their height and width.
///
/// # Shapes
/// `images`: `[n, 3, height, width]`
fn turned(images: ImageBatch<'_>, quarters: usize) -> (Vec<f32>, usize, usize) {
    let [_, _, height, width] = images.shape();
    let (rows, columns) =
        if quarters.is_multiple_of(2) { (height, width) } else { (width, height) };
    let mut out = Vec::with_capacity(images.values().len());
    for channel in images.values().chunks_exact(height * width) {
        for i in 0..rows {
            for j in 0..columns {
                let (y, x) = match quarters % 4 {
                    0 => (i, j),
                    1 => (j, width - 1 - i),
                    2 => (height - 1 - i, width - 1 - j),
                    _ => (height - 1 - j, i),
                };
                out.push(channel[y * width + x]);
            }
        }
    }
    (out, rows, columns)
}

/// `-log2 softmax(logits)[class]`
fn bits(logits: &[f32], class: usize) -> f64 {
    (log_sum_exp(logits, 1.0) - f64::from(logits[class])) / LN_2
}

impl Detector for RotPred {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "rotpred",
            title: "Rotation prediction",
            family: "heads",
            summary: "how badly rotations of the image are told, minus how far its classes are from uniform",
            paper: "Hendrycks et al., Using Self-Supervised Learning Can Improve Model Robustness and Uncertainty",
            year: 2019,
            url: "https://arxiv.org/abs/1906.12340",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::LAYERS),
            // Rotations are told with a probability of a quarter each, 2 bits; classes are uniform.
            example: Example::of_images(&[&[0.5, 0.5, 0.0]], &[2.0])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .further_head(
                    "rotation",
                    &[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]],
                    &[0.0; 4],
                ),
            companion_of: "RotPred",
            ..Info::default()
        }
    }

    fn new(_params: NoParams, host: Host) -> Result<Self> {
        Ok(Self { host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (logits, images) = (check::logits(batch.logits()?)?, batch.images()?);
        let mut sums = vec![0.0; batch.len()];
        for quarters in 0..4 {
            let (values, height, width) = turned(images, quarters);
            let images = ImageBatch::new(&values, height, width)?;
            let rotations = HeadRows::of_columns(&self.host, images, "rotation", 4)?;
            for (sum, row) in sums.iter_mut().zip(rotations.rows()) {
                *sum += bits(row, quarters) / 4.0;
            }
        }
        for ((score, sum), row) in scores.iter_mut().zip(sums).zip(logits.rows()) {
            let n = row.len() as f64;
            let cross_entropy = (0..row.len()).map(|class| bits(row, class)).sum::<f64>() / n;
            *score = single(sum - (cross_entropy - n.log2()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_those_of_torch() {
        // torch.rot90(torch.arange(6).reshape(2, 3), k)
        let image: Vec<f32> = [0, 1, 2, 3, 4, 5].repeat(3).into_iter().map(|x| x as f32).collect();
        let images = ImageBatch::new(&image, 2, 3).unwrap();
        let cases = [
            (0, [0, 1, 2, 3, 4, 5], (2, 3)),
            (1, [2, 5, 1, 4, 0, 3], (3, 2)),
            (2, [5, 4, 3, 2, 1, 0], (2, 3)),
            (3, [3, 0, 4, 1, 5, 2], (3, 2)),
        ];
        for (quarters, expected, size) in cases {
            let (values, height, width) = turned(images, quarters);
            assert_eq!((height, width), size);
            let expected: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            assert_eq!(values[..6], expected, "{quarters} quarters");
            assert_eq!(values[12..], expected, "{quarters} quarters");
        }
    }

    #[test]
    fn an_impossible_rotation_costs_many_bits_and_not_infinity() {
        assert!((bits(&[0.0, 1000.0, 0.0, 0.0], 0) - 1000.0 / LN_2).abs() < 1e-9);
        assert_eq!(bits(&[0.0; 4], 2), 2.0);
    }
}
