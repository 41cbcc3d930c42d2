//! AdaSCALE: scaling whose percentile depends on how features shift under a perturbation.
//!
//! Regmi, "AdaSCALE: Adaptive Scaling for OOD Detection", 2025. The predicted class's logit is
//! raised by moving the part `o` of an image's values that it depends on least, each by half a
//! unit of the normalised image. With features `h` before and `h'` after, the shift is
//! `Q = sum_(top k1) max(h', 0) + lambda sum_(top k2) |h - h'|` over the greatest `k1` and `k2`
//! per cent of `h`. Its place `F(Q)` among the shifts of validation images, from 0 to 1, gives the
//! image its own percentile `p = lo + (1 - F(Q)) (hi - lo)`, and that the ratio
//! `r = sum max(h, 0) / sum_(top 100 - p) max(h, 0)`. Score: the energy of the head's logits, for
//! variant `a` of the features `h exp(r)`, for variant `l` of the logits themselves times `r^2`.
//!
//! As OpenOOD's `adascale_a` and `adascale_l`. Values are ranked by the gradient with respect to
//! the normalised image, and moved images may leave `[0, 1]`. A value without a gradient counts
//! among those that matter least but does not move, as there. Where there are more than
//! `num_samples` validation images OpenOOD computes all shifts and keeps those of a random subset,
//! drawn without a seed; here the subset follows from the run's seed, and only its shifts are
//! computed. How many features `k1` and `k2` per cent are is rounded down as there, but never to
//! none, where OpenOOD's `Q` loses its second term for fewer than 100 features; and one feature is
//! always left above `p`, where it divides by 0. Of equal features and gradients the first are
//! taken; there the choice is open. OpenOOD's scores of variant `a` overflow for a great `r`, here
//! they end at the greatest number.

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::check;
use crate::numeric::greatest::{Greatest, n_left};
use crate::numeric::head::{EnergyHead, unchanged};
use crate::numeric::random::Random;
use crate::numeric::reduce::argmax;
use crate::numeric::state;
use crate::scale::factor;

/// How far a value of the normalised image moves.
const STEP: f32 = 0.5;
/// Validation images that are perturbed at a time.
const IMAGES: usize = 64;
/// Ends of the percentiles that a search tries.
const ENDS: [f64; 9] = [60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 99.0];

/// What is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Variant {
    /// Features.
    A,
    /// Logits.
    L,
}

/// Parameters of [`AdaScale`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    percentile: [f64; 2],
    k1: f64,
    k2: f64,
    lambda: f64,
    o: f64,
    num_samples: usize,
    variant: Variant,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            percentile: [75.0, 85.0],
            k1: 5.0,
            k2: 1.0,
            lambda: 10.0,
            o: 0.05,
            num_samples: 5000,
            variant: Variant::A,
        }
    }
}

/// Adaptive scaling.
pub struct AdaScale {
    params: Params,
    host: Host,
    /// Shifts of validation images, ascending.
    shifts: Option<Vec<f32>>,
}

impl Detector for AdaScale {
    type Params = Params;

    fn info() -> Info {
        let pairs = ENDS.iter().enumerate().flat_map(|(i, lo)| {
            ENDS[i + 1..]
                .iter()
                .map(move |hi| oodbench_sdk::serde_json::Value::from(vec![*lo, *hi]))
        });
        Info {
            id: "adascale",
            title: "AdaSCALE",
            family: "shaping",
            summary: "the energy after scaling by a ratio whose percentile follows from how features shift",
            paper: "Regmi, AdaSCALE: Adaptive Scaling for OOD Detection",
            year: 2025,
            url: "https://arxiv.org/abs/2503.08023",
            needs: Needs::LOGITS
                .and(Needs::FEATURES)
                .and(Needs::HEAD)
                .and(Needs::IMAGES)
                .and(Needs::GRADIENT)
                .and(Needs::FORWARD)
                .and(Needs::VAL),
            params: vec![
                Param::new(
                    "percentile",
                    "of the image that shifts most and of the one that shifts least",
                    "OpenOOD v1.5",
                )
                .sweep(pairs)
                .readout(),
                Param::new("k1", "per cent of the features whose values count", "OpenOOD v1.5"),
                Param::new("k2", "per cent of the features whose shifts count", "OpenOOD v1.5"),
                Param::new("lambda", "weight of the shifts", "OpenOOD v1.5"),
                Param::new("o", "part of an image's values that move", "OpenOOD v1.5"),
                Param::new("num_samples", "validation images to compare with", "OpenOOD v1.5"),
                Param::new("variant", "`a` scales features, `l` logits", "OpenOOD v1.5").readout(),
            ],
            // Every value may move, but only the first channel of each image has a gradient, and
            // moves by 0.5. Shifts are 1.1 + 10 * 0.5 for the image and 6 and 6.3 for the other
            // two, so that p = 40 and two features are left: r = 0.9 / 0.8.
            example: Example::of_images(&[&[0.6, 0.2, 0.1]], &[-2.104_076])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .val_images(&[&[0.5, 0.0, 0.1], &[0.8, 0.2, 0.1]])
                .param("percentile", vec![20.0, 60.0])
                .param("o", 1.0),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        let [lo, hi] = params.percentile;
        if !(lo > 0.0 && lo <= hi && hi < 100.0) {
            let expected = "two numbers between 0 and 100, the smaller first";
            return Err(Error::parameter("percentile", expected, format!("[{lo}, {hi}]")));
        }
        for (name, percent) in [("k1", params.k1), ("k2", params.k2)] {
            if !(percent > 0.0 && percent <= 100.0) {
                return Err(Error::parameter(name, "above 0 and at most 100", percent));
            }
        }
        if !(params.lambda >= 0.0 && params.lambda.is_finite()) {
            return Err(Error::parameter("lambda", "a number from 0", params.lambda));
        }
        if !(0.0..=1.0).contains(&params.o) {
            return Err(Error::parameter("o", "0 to 1", params.o));
        }
        if params.num_samples == 0 {
            return Err(Error::parameter("num_samples", "at least 1", params.num_samples));
        }
        Ok(Self { params, host, shifts: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let val = data.val();
        let logits = check::logits(val.logits()?)?;
        let features = check::fit_features(val.features()?, "validation")?;
        let (height, width) = self.host.image_size()?;
        let mut chosen: Vec<usize> = (0..val.len()).collect();
        if val.len() > self.params.num_samples {
            chosen = Random::new(self.host.seed()).choose(self.params.num_samples, val.len());
            chosen.sort_unstable();
        }
        let mut shifts = Vec::with_capacity(chosen.len());
        for places in chosen.chunks(IMAGES) {
            self.host.progress(shifts.len(), chosen.len())?;
            let mut images = Vec::new();
            for &i in places {
                images.extend(self.host.images(val.id(), i, 1)?);
            }
            let images = ImageBatch::new(&images, height, width)?;
            let [logits, features] = [logits, features].map(|all| {
                let rows: Vec<f32> = places.iter().flat_map(|&i| all.row(i)).copied().collect();
                (rows, all.n_cols())
            });
            let logits = Matrix::new(&logits.0, places.len(), logits.1)?;
            let features = Matrix::new(&features.0, places.len(), features.1)?;
            shifts.extend(self.shifts(images, logits, features)?);
        }
        shifts.sort_unstable_by(f32::total_cmp);
        self.shifts = Some(shifts);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let own = self.params.clone();
        self.score_variants(batch, &[own], scores)
    }

    fn score_variants(
        &mut self,
        batch: &Batch<'_>,
        variants: &[Params],
        scores: &mut [f32],
    ) -> Result<()> {
        let known = state::fitted(self.shifts.as_ref())?;
        if batch.is_empty() {
            return Ok(());
        }
        let (logits, features) = (check::logits(batch.logits()?)?, batch.features()?);
        let head = EnergyHead::new(&self.host.head()?)?;
        let products = head.products(features, unchanged)?;
        let shifts = self.shifts(batch.images()?, logits, features)?;
        let places: Vec<f64> = shifts.iter().map(|&shift| place(known, shift)).collect();
        let sums: Vec<Vec<f64>> = features.rows().map(sums_of_greatest).collect();
        let per_image = products.len() / features.n_rows();
        for (params, scores) in variants.iter().zip(scores.chunks_exact_mut(features.n_rows())) {
            let [lo, hi] = params.percentile;
            let sums = |i: usize| {
                let percentile = lo + (1.0 - places[i]) * (hi - lo);
                let sums = &sums[i];
                let last = sums.len() - 1;
                (sums[last], sums[n_left(last, percentile).min(last)])
            };
            match params.variant {
                Variant::A => {
                    let factor = |i: usize| {
                        let (all, greatest) = sums(i);
                        factor(all, greatest)
                    };
                    head.energies(&products, factor, scores);
                }
                Variant::L => {
                    let products = products.chunks_exact(per_image);
                    for ((i, score), products) in scores.iter_mut().enumerate().zip(products) {
                        let (all, greatest) = sums(i);
                        let ratio = if greatest > 0.0 { all / greatest } else { 1.0 };
                        *score = energy(head.logits(products).map(|logit| logit * ratio * ratio));
                    }
                }
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.shifts.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        self.shifts = state::load(bytes)?.filter(|shifts: &Vec<f32>| !shifts.is_empty());
        if self.shifts.is_none() {
            return Err(Error::input("the saved state holds no shifts"));
        }
        Ok(())
    }
}

impl AdaScale {
    /// The shift of each image.
    fn shifts(
        &self,
        images: ImageBatch<'_>,
        logits: Matrix<'_>,
        features: Matrix<'_>,
    ) -> Result<Vec<f32>> {
        let mut cotangent = vec![0.0; logits.values().len()];
        for (row, logits) in cotangent.chunks_exact_mut(logits.n_cols()).zip(logits.rows()) {
            row[argmax(logits)] = 1.0;
        }
        let shape = [logits.n_rows(), logits.n_cols()];
        let gradient = self.host.vjp(images, "logits", &cotangent, &shape)?;
        let std = self.host.normalisation()?.std;
        let [_, channels, height, width] = images.shape();
        let per_image = channels * height * width;
        let mut moved = images.values().to_vec();
        let with_gradient = moved.chunks_exact_mut(per_image).zip(gradient.chunks_exact(per_image));
        with_gradient.for_each(|(image, gradient)| perturb(image, gradient, &std, self.params.o));
        let outputs = self.host.forward(ImageBatch::new(&moved, height, width)?)?;
        let after = check::finite(outputs.features(), "features of perturbed images")?;
        let d = features.n_cols();
        let n_features = |percent: f64| ((d as f64 * percent / 100.0) as usize).max(1);
        let (k1, k2) = (n_features(self.params.k1), n_features(self.params.k2));
        let shift = |(h, after): (&[f32], &[f32])| {
            let value = |(d, _): (usize, f32)| f64::from(after[d].max(0.0));
            let values: f64 = Greatest::of(h, k1).iter(h).map(value).sum();
            let shift = |(d, h): (usize, f32)| (f64::from(h) - f64::from(after[d])).abs();
            let shifts: f64 = Greatest::of(h, k2).iter(h).map(shift).sum();
            (values + self.params.lambda * shifts) as f32
        };
        Ok(features.rows().zip(check::features(after, d)?.rows()).map(shift).collect())
    }
}

/// Moves the part `o` of an image's values that have the least gradient in units of the normalised
/// image, each by half such a unit to where the gradient points.
///
/// # Shapes
/// `image`, `gradient`: `[3, height, width]`
fn perturb(image: &mut [f32], gradient: &[f32], std: &[f32; 3], o: f64) {
    let pixels = gradient.len() / std.len();
    let n = ((gradient.len() as f64 * o) as usize).min(gradient.len());
    let size = |i: usize| (gradient[i] * std[i / pixels]).abs();
    let mut places: Vec<usize> = (0..gradient.len()).collect();
    if n < places.len() {
        places.select_nth_unstable_by(n, |&a, &b| size(a).total_cmp(&size(b)).then(a.cmp(&b)));
    }
    for &i in &places[..n] {
        if gradient[i] != 0.0 {
            image[i] += STEP * std[i / pixels] * gradient[i].signum();
        }
    }
}

/// The part of ascending values that are not above this one.
fn place(ascending: &[f32], value: f32) -> f64 {
    ascending.partition_point(|&other| other <= value) as f64 / ascending.len() as f64
}

/// The sum of the `k` greatest positive parts, for each `k` from 0.
fn sums_of_greatest(row: &[f32]) -> Vec<f64> {
    let mut values: Vec<f32> = row.iter().map(|h| h.max(0.0)).collect();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let sums = values.iter().map(|&h| {
        sum += f64::from(h);
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}

/// `-log sum exp`, at most what `f32` can hold.
fn energy(logits: impl Iterator<Item = f64>) -> f32 {
    let logits: Vec<f64> = logits.collect();
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
    (-(greatest + sum.ln())).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_with_the_least_normalised_gradient_move_along_it() {
        let gradient = [0.1, -0.2, 0.0, 0.3, -0.05, 0.0];
        let check = |o: f64, std: [f32; 3], expected: [f32; 6]| {
            let mut image = [0.0; 6];
            perturb(&mut image, &gradient, &std, o);
            assert_eq!(image, expected, "o {o}");
        };
        // Half of six values, two of which have no gradient.
        check(0.5, [1.0; 3], [0.0, 0.0, 0.0, 0.0, -0.5, 0.0]);
        check(0.7, [1.0; 3], [0.5, 0.0, 0.0, 0.0, -0.5, 0.0]);
        // In units of a channel that varies little, the first gradient is the least.
        check(0.5, [0.1, 1.0, 1.0], [0.05, 0.0, 0.0, 0.0, 0.0, 0.0]);
        check(1.0, [1.0; 3], [0.5, -0.5, 0.0, 0.5, -0.5, 0.0]);
        check(0.0, [1.0; 3], [0.0; 6]);
    }

    #[test]
    fn equal_values_are_not_above_one_another() {
        let known = [1.0, 2.0, 2.0, 3.0];
        for (value, expected) in [(0.5, 0.0), (1.0, 0.25), (2.0, 0.75), (2.5, 0.75), (9.0, 1.0)] {
            assert_eq!(place(&known, value), expected);
        }
    }

    #[test]
    fn the_greatest_are_summed_from_the_top() {
        assert_eq!(sums_of_greatest(&[1.0, -4.0, 3.0]), [0.0, 3.0, 4.0, 4.0]);
        assert_eq!(sums_of_greatest(&[]), [0.0]);
    }
}
