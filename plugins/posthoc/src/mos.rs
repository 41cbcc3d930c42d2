//! Minimum others score: the classifier tells, for each group of classes, that it is none of these.
//!
//! Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", 2021.
//! Classes are split into groups, and in each group one more logit stands for all images of other
//! groups. Score: `min_g p_g(none of these)`, where the softmax runs over group `g`.
//!
//! The classifier must have the layer `others`, `[n, n_groups]`, the logarithms of these
//! probabilities: any ordinary network with a logit more for each group, whose TOML file says which
//! classes are in a group. In OpenOOD the groups follow from the training images, and its detector
//! never reads them, so that only its evaluator of that name works.

use oodbench_sdk::prelude::*;

use crate::numeric::further::HeadRows;

/// Minimum others score.
pub struct Mos {
    host: Host,
}

impl Detector for Mos {
    type Params = NoParams;

    fn info() -> Info {
        Info {
            id: "mos",
            title: "Minimum others score",
            family: "heads",
            summary: "the least probability, among groups of classes, of being none of the group's",
            paper: "Huang and Li, MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space",
            year: 2021,
            url: "https://arxiv.org/abs/2105.01879",
            needs: Needs::IMAGES.and(Needs::LAYERS),
            // Logarithms of -1 and -0.5: the first group's probability is the lesser one.
            example: Example::of_images(&[&[1.0, 0.5, 0.0]], &[0.367_879]).further_head(
                "others",
                &[&[-1.0, 0.0, 0.0], &[0.0, -1.0, 0.0]],
                &[0.0, 0.0],
            ),
            companion_of: "MOS",
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
        let others = HeadRows::of(&self.host, batch.images()?, "others")?;
        for (score, row) in scores.iter_mut().zip(others.rows()) {
            let least = row.iter().copied().fold(f32::INFINITY, f32::min);
            // A probability, whatever rounding has done to its logarithm.
            *score = f64::from(least).exp().min(1.0) as f32;
        }
        Ok(())
    }
}
