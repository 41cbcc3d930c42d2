//! Generalised ODIN: logits that are a quotient, of which the numerator is scored.
//!
//! Hsu et al., "Generalized ODIN: Detecting Out-of-distribution Image without Learning from
//! Out-of-distribution Data", 2020. The classifier's logits are `h_c(x) / g(x)`, where training finds
//! what belongs to the class and what to confidence. Score: `-max_c softmax(h(x'))_c`, or `-g(x')`,
//! where `x'` is the image after one step of size `noise` along the signs that raise `max_c h_c(x)`.
//!
//! The softmax of `h` is OpenOOD's; the paper takes the greatest `h` itself. OpenOOD's score by `g`
//! is the softmax of a single number, which is 1 for every image; here it is `g`. The step is taken
//! in units of pixels in `[0, 1]`, which is the same where the classifier's own normalisation is that
//! of the data set, and a gradient of 0 counts as positive, as there.
//!
//! The classifier must have the layers `numerators`, `[n, n_classes]`, and `denominator`, `[n, 1]`,
//! as checkpoints of OpenOOD's `godin_net` give them.

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::further::HeadRows;
use crate::numeric::reduce::{argmax, max_probability};

/// What the score is read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum ScoreFunc {
    /// The numerators.
    H,
    /// The denominator.
    G,
}

/// Parameters of [`Godin`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    score_func: ScoreFunc,
    noise: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { score_func: ScoreFunc::H, noise: 0.0025 }
    }
}

/// Generalised ODIN.
pub struct Godin {
    params: Params,
    host: Host,
}

impl Detector for Godin {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "godin",
            title: "Generalised ODIN",
            family: "gradient",
            summary: "the greatest probability of the logits' numerators after a step towards it, negated",
            paper: "Hsu et al., Generalized ODIN: Detecting Out-of-distribution Image without Learning from Out-of-distribution Data",
            year: 2020,
            url: "https://arxiv.org/abs/2002.11297",
            needs: Needs::IMAGES.and(Needs::LAYERS).and(Needs::GRADIENT),
            params: vec![
                Param::new(
                    "score_func",
                    "`h` scores the numerators, `g` the denominator",
                    "OpenOOD v1.5",
                ),
                Param::new(
                    "noise",
                    "size of the step, in units of pixels in [0, 1]",
                    "OpenOOD v1.5",
                ),
            ],
            // The step of 0.1 moves the first channel up, and the others too, whose gradient is 0.
            example: Example::of_images(&[&[0.6, 0.4, 0.5]], &[-0.549_834])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .further_head("numerators", &[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .further_head("denominator", &[&[0.0, 0.0, 1.0]], &[0.0])
                .param("noise", 0.1),
            companion_of: "G-ODIN",
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(params.noise >= 0.0 && params.noise.is_finite()) {
            return Err(Error::parameter("noise", "a number from 0", params.noise));
        }
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let images = batch.images()?;
        let moved = self.moved(images)?;
        let [_, _, height, width] = images.shape();
        let moved = ImageBatch::new(&moved, height, width)?;
        match self.params.score_func {
            ScoreFunc::H => {
                let numerators = HeadRows::of(&self.host, moved, "numerators")?;
                for (score, row) in scores.iter_mut().zip(numerators.rows()) {
                    *score = -max_probability(row, 1.0) as f32;
                }
            }
            ScoreFunc::G => {
                let denominators = HeadRows::of_columns(&self.host, moved, "denominator", 1)?;
                for (score, row) in scores.iter_mut().zip(denominators.rows()) {
                    *score = -row[0];
                }
            }
        }
        Ok(())
    }
}

impl Godin {
    /// The images after the step.
    fn moved(&self, images: ImageBatch<'_>) -> Result<Vec<f32>> {
        let noise = self.params.noise as f32;
        if noise == 0.0 {
            return Ok(images.values().to_vec());
        }
        let numerators = HeadRows::of(&self.host, images, "numerators")?;
        let n_classes = numerators.n_cols();
        let mut cotangent = vec![0.0; images.len() * n_classes];
        for (i, row) in numerators.rows().enumerate() {
            cotangent[i * n_classes + argmax(row)] = 1.0;
        }
        let shape = [images.len(), n_classes];
        let gradient = self.host.vjp(images, "numerators", &cotangent, &shape)?;
        let step = |(&x, g): (&f32, f32)| if g >= 0.0 { x + noise } else { x - noise };
        Ok(images.values().iter().zip(gradient).map(step).collect())
    }
}
