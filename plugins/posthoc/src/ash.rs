//! ASH: activation shaping.
//!
//! Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", 2023.
//! Of an image's features the greatest are kept, `100 - percentile` of 100, and all others set to
//! 0. Score: the energy of the head's logits for what is left. Variant `p` leaves it at that, `b`
//! replaces the `k` kept features by the mean `s1 / k` of what all features sum up to, and `s`
//! scales them by `exp(s1 / s2)`, where `s2` is the sum of the kept ones.
//!
//! OpenOOD's `ash` is variant `b`. How many features are kept is rounded as there, halves to the
//! even neighbour, but never to none, where OpenOOD divides by 0. Of equal features the first are
//! kept; there the choice is open, and seen where fewer than `k` features are above 0. OpenOOD
//! writes the result over the network's own features.

use oodbench_sdk::prelude::*;

use crate::numeric::greatest::{Greatest, n_left};
use crate::numeric::head::EnergyHead;
use crate::scale::factor;

/// What becomes of the features that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Variant {
    /// All become equal.
    B,
    /// They stay.
    P,
    /// They are scaled.
    S,
}

/// Parameters of [`Ash`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    percentile: f64,
    variant: Variant,
}

impl Default for Params {
    fn default() -> Self {
        Self { percentile: 90.0, variant: Variant::B }
    }
}

/// Activation shaping.
pub struct Ash {
    params: Params,
    host: Host,
}

impl Detector for Ash {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "ash",
            title: "Activation shaping",
            family: "shaping",
            summary: "the energy after all but the greatest features are removed",
            paper: "Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection",
            year: 2023,
            url: "https://arxiv.org/abs/2209.09858",
            needs: Needs::FEATURES.and(Needs::HEAD),
            params: vec![
                Param::new("percentile", "how many of 100 features are removed", "OpenOOD v1.5")
                    .sweep([65, 70, 75, 80, 85, 90, 95]),
                Param::new(
                    "variant",
                    "what becomes of the others: `b` makes them equal, `p` leaves and `s` scales them",
                    "OpenOOD v1.5",
                ),
            ],
            // 4 and 2 are kept and become 3.5 each, half of the sum 7.
            example: Example::of_features(&[&[4.0, 1.0, 2.0, 0.0]], &[-7.018_15])
                .head(&[&[1.0, 5.0, 1.0, 0.0], &[0.0, 0.0, 0.0, 5.0]], &[0.0, 3.0])
                .param("percentile", 50.0),
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
        let features = batch.features()?;
        let k = n_left(features.n_cols(), self.params.percentile);
        let head = EnergyHead::new(&self.host.head()?)?;
        let variant = self.params.variant;
        let products = head.products(features, |row, shaped| shape(row, k, variant, shaped))?;
        head.energies(&products, |_| 1.0, scores);
        Ok(())
    }
}

fn shape(row: &[f32], k: usize, variant: Variant, shaped: &mut [f64]) {
    let all = row.iter().map(|&h| f64::from(h)).sum::<f64>();
    let greatest = Greatest::of(row, k);
    let factor = match variant {
        Variant::S => factor(all, greatest.sum),
        Variant::B | Variant::P => 1.0,
    };
    shaped.fill(0.0);
    for (d, h) in greatest.iter(row) {
        shaped[d] = match variant {
            Variant::B => all / k as f64,
            Variant::P | Variant::S => factor * f64::from(h),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variant: Variant, row: &[f32], k: usize, expected: &[f64]) {
        let mut shaped = vec![f64::NAN; row.len()];
        shape(row, k, variant, &mut shaped);
        for (got, expected) in shaped.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{shaped:?}");
        }
    }

    #[test]
    fn the_variants_differ_in_what_becomes_of_the_greatest() {
        let row = [4.0, 1.0, 2.0, 0.0];
        check(Variant::B, &row, 2, &[3.5, 0.0, 3.5, 0.0]);
        check(Variant::P, &row, 2, &[4.0, 0.0, 2.0, 0.0]);
        // exp(7 / 6)
        check(Variant::S, &row, 2, &[12.845_082_172_6, 0.0, 6.422_541_086_31, 0.0]);
    }

    #[test]
    fn features_of_zero_stay_zero() {
        for variant in [Variant::B, Variant::P, Variant::S] {
            check(variant, &[0.0; 3], 2, &[0.0; 3]);
        }
        check(Variant::S, &[-1.0, 0.0, 0.0], 2, &[0.0; 3]);
    }

    #[test]
    fn equal_features_are_kept_from_the_first() {
        check(Variant::P, &[2.0, 2.0, 2.0], 2, &[2.0, 2.0, 0.0]);
    }
}
