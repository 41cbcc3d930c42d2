//! SCALE: features scaled by how much of them is in the greatest ones.
//!
//! Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement",
//! 2024. Score: the energy of the head's logits for features `h exp(s1 / s2)`, where `s1` is the
//! sum of an image's features and `s2` that of the greatest of them, `100 - percentile` of 100.
//!
//! How many are left is rounded as in OpenOOD, halves to the even neighbour, but never to none. The
//! ratio of features that sum up to nothing is 1. Logits are exponential in the ratio: scores
//! beyond what `f32` holds are its greatest number, and not infinite.

use oodbench_sdk::prelude::*;

use crate::numeric::greatest::{Greatest, n_left};
use crate::numeric::head::{EnergyHead, unchanged};

/// Parameters of [`Scale`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    percentile: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { percentile: 85.0 }
    }
}

/// Scaled features.
pub struct Scale {
    params: Params,
    host: Host,
}

/// `exp(s1 / s2)` for features that sum up to `s1`, the greatest of them to `s2`.
pub(crate) fn factor(all: f64, greatest: f64) -> f64 {
    /// Beyond it every score is out of the range of `f32` anyway.
    const GREATEST_RATIO: f64 = 300.0;
    let ratio = if all == 0.0 && greatest == 0.0 { 1.0 } else { all / greatest };
    ratio.clamp(-GREATEST_RATIO, GREATEST_RATIO).exp()
}

impl Detector for Scale {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "scale",
            title: "SCALE",
            family: "shaping",
            summary: "the energy after features are scaled by the weight of the greatest ones",
            paper: "Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement",
            year: 2024,
            url: "https://arxiv.org/abs/2310.00227",
            needs: Needs::FEATURES.and(Needs::HEAD),
            params: vec![
                Param::new(
                    "percentile",
                    "how many of 100 features are not among the greatest",
                    "OpenOOD v1.5",
                )
                .sweep([65, 70, 75, 80, 85, 90, 95])
                .readout(),
            ],
            // Half of the features are among the greatest: 4 of 4 + 2, so that the factor is
            // exp(1.5), and the logits are 4 exp(1.5) and 2 exp(1.5) + 1.
            example: Example::of_features(&[&[4.0, 2.0, 0.0, 0.0]], &[-17.927_104])
                .head(&[&[1.0, 0.0, 0.0, 0.0], &[0.0, 1.0, 1.0, 0.0]], &[0.0, 1.0])
                .param("percentile", 75.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(0.0..=100.0).contains(&params.percentile) {
            return Err(Error::parameter("percentile", "0 to 100", params.percentile));
        }
        Ok(Self { params, host })
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = [self.params.clone()];
        self.score_variants(batch, &own, scores)
    }

    /// A factor moves out of the product with the head, so that one product serves all.
    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let features = batch.features()?;
        let head = EnergyHead::new(&self.host.head()?)?;
        let products = head.products(features, unchanged)?;
        let sums: Vec<f64> =
            features.rows().map(|row| row.iter().map(|&h| f64::from(h)).sum()).collect();
        for (nth, params) in variants.iter().enumerate() {
            let k = n_left(features.n_cols(), params.percentile);
            let factor = |i: usize| factor(sums[i], Greatest::of(features.row(i), k).sum);
            let scores = &mut scores[nth * features.n_rows()..][..features.n_rows()];
            head.energies(&products, factor, scores);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_sums_has_a_finite_factor() {
        for (all, greatest) in [(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (1.0, 1e-300), (5.0, -1e-9)] {
            let factor = factor(all, greatest);
            assert!(factor.is_finite() && factor > 0.0, "{all} of {greatest}: {factor}");
        }
        assert!((factor(6.0, 4.0) - 4.481_689_070_338_065).abs() < 1e-12);
    }
}
