//! ODIN: temperature scaling and input perturbation.
//!
//! Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
//! Networks", 2018. Score: `-max_c softmax(l(x') / T)_c`, where `x'` is the image after one step of
//! size `noise` along the signs that raise the predicted class's probability at temperature `T`.
//!
//! The step is taken in units of pixels in `[0, 1]`. OpenOOD takes it on normalised pixels,
//! divided by the data set's standard deviation, which is the same where the classifier's own
//! normalisation is that of the data set. A gradient of 0 counts as positive, as there.

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::reduce::{argmax, max_probability, softmax};

/// Parameters of [`Odin`], and of [`Iodin`](crate::iodin::Iodin).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    pub(crate) temperature: f64,
    pub(crate) noise: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1000.0, noise: 0.0014 }
    }
}

impl Params {
    pub(crate) fn described() -> Vec<Param> {
        vec![
            Param::new("temperature", "what the logits are divided by", "OpenOOD v1.5")
                .sweep([1, 10, 100, 1000]),
            Param::new("noise", "size of the step, in units of pixels in [0, 1]", "OpenOOD v1.5")
                .sweep([0.0014, 0.0028]),
        ]
    }

    /// # Errors
    /// A parameter out of range.
    pub(crate) fn check(&self) -> Result<()> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::parameter("temperature", "a positive number", self.temperature));
        }
        if !(self.noise >= 0.0 && self.noise.is_finite()) {
            return Err(Error::parameter("noise", "a number from 0", self.noise));
        }
        Ok(())
    }
}

/// ODIN.
pub struct Odin {
    params: Params,
    host: Host,
}

impl Detector for Odin {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "odin",
            title: "ODIN",
            family: "gradient",
            summary: "the greatest probability at a high temperature after a step towards it, negated",
            paper: "Liang et al., Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
            year: 2018,
            url: "https://arxiv.org/abs/1706.02690",
            needs: Needs::LOGITS.and(Needs::IMAGES).and(Needs::GRADIENT).and(Needs::FORWARD),
            params: Params::described(),
            // The step of 0.1 moves the first channel's mean up and the second's down.
            example: Example::of_images(&[&[0.6, 0.4, 0.5]], &[-0.598_687_7])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .param("temperature", 1.0)
                .param("noise", 0.1),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        params.check()?;
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        // As f32, in which images are.
        let noise = self.params.noise as f32;
        let step = |image: &mut [f32], gradient: &[f32]| {
            for (x, &g) in image.iter_mut().zip(gradient) {
                *x += against(g, noise);
            }
        };
        score_after(step, &self.params, &self.host, batch, scores)
    }
}

/// A step of this size against a gradient, of which 0 counts as positive.
pub(crate) fn against(gradient: f32, size: f32) -> f32 {
    if gradient >= 0.0 { -size } else { size }
}

/// Scores images after a step, which gets an image `[3, height, width]` and the gradient, with
/// respect to it, of the cross-entropy between its probabilities and its predicted class.
///
/// Needs `LOGITS`, `IMAGES`, `GRADIENT` and `FORWARD`.
///
/// # Errors
/// Logits that are not finite, and what the host's services say.
pub(crate) fn score_after(
    step: impl Fn(&mut [f32], &[f32]),
    params: &Params,
    host: &Host,
    batch: &Batch<'_>,
    scores: &mut [f32],
) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let temperature = params.temperature;
    let (logits, images) = (check::logits(batch.logits()?)?, batch.images()?);
    let mut cotangent = Vec::with_capacity(logits.values().len());
    for row in logits.rows() {
        let (p, predicted) = (softmax(row, temperature), argmax(row));
        cotangent.extend(p.iter().enumerate().map(|(class, p)| {
            let target = if class == predicted { 1.0 } else { 0.0 };
            ((p - target) / temperature) as f32
        }));
    }
    let shape = [logits.n_rows(), logits.n_cols()];
    let gradient = host.vjp(images, "logits", &cotangent, &shape)?;
    let [_, channels, height, width] = images.shape();
    let pixels = channels * height * width;
    let mut moved = images.values().to_vec();
    for (image, gradient) in moved.chunks_exact_mut(pixels).zip(gradient.chunks_exact(pixels)) {
        step(image, gradient);
    }
    let outputs = host.forward(ImageBatch::new(&moved, height, width)?)?;
    let moved = check::finite(outputs.logits(), "logits of perturbed images")?;
    for (score, row) in scores.iter_mut().zip(moved.rows()) {
        *score = -max_probability(row, temperature) as f32;
    }
    Ok(())
}
