//! Soft distance to the class means: a whole detector in one file, to begin your own from.
//!
//! The formula, with `h` the features of an image, `z = h / |h|`, `m_c` the mean of `z` over the
//! training images of class `c`, and `T` the temperature:
//!
//! ```text
//! d_c   = |z - m_c|^2
//! score = -T log mean_c exp(-d_c / T)
//! ```
//!
//! A small `T` gives the distance to the nearest mean, a great one the average over all of them.
//! Higher means more out-of-distribution, as everywhere. Sums are in `f64`, and what is handed out
//! is rounded to `f32` once.

use oodbench_sdk::prelude::*;

// 1. The letters of the formula that a user may choose. `--set class-means.temperature=0.5` sets
//    this one; a name that is not a field is refused.

/// Parameters of [`ClassMeans`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    temperature: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 0.1 }
    }
}

// 2. The detector: its parameters, and what it has learned.

/// Soft distance to the class means.
pub struct ClassMeans {
    params: Params,
    /// Empty until `fit`.
    means: Vec<Vec<f64>>,
}

impl Detector for ClassMeans {
    type Params = Params;

    // 3. What is known of it without running it. `needs` is what the host hands over, and nothing
    //    else: a detector that reads logits alone says `Needs::LOGITS`, and has no `fit`.
    fn info() -> Info {
        Info {
            id: "class-means",
            title: "Soft distance to the class means",
            family: "distance",
            summary: "soft minimum of the distances to the means of the classes, all of length 1",
            // Yours: "Authors, Title", the year, and a link.
            paper: "",
            year: 0,
            url: "",
            needs: Needs::FEATURES.and(Needs::TRAIN).and(Needs::LABELS),
            params: vec![
                // Its meaning, where the default comes from, and what `--aps` tries.
                Param::new("temperature", "small: the nearest mean; great: all of them", "a guess")
                    .sweep([0.01, 0.1, 1.0]),
            ],
            // Worked out by hand, and run by `plugin check`. The means are (1, 0) and (0, 1).
            // (3, 0) is at 0 and 2 from them: -0.1 log((1 + exp(-20)) / 2) = 0.1 log 2.
            // (1, 1) is at 2 - sqrt 2 from both.
            example: Example::of_features(&[&[3.0, 0.0], &[1.0, 1.0]], &[0.069_315, 0.585_786])
                .train(&[&[1.0, 0.0], &[0.0, 2.0]], &[0, 1]),
            ..Info::default()
        }
    }

    // 4. Parameters come once and do not change. What is out of range is refused here.
    fn new(params: Params, _host: Host) -> Result<Self> {
        if !params.temperature.is_finite() || params.temperature <= 0.0 {
            return Err(Error::parameter("temperature", "a positive number", params.temperature));
        }
        Ok(Self { params, means: Vec::new() })
    }

    // 5. What is learned from in-distribution images. `data.val()` has those for validation.
    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let train = data.train();
        self.means = class_means(train.features()?, train.labels()?)?;
        Ok(())
    }

    // 6. One finite number for each image, which depends on that image alone.
    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let features = batch.features()?;
        let Some(first) = self.means.first() else {
            return Err(Error::new("`score` was called before `fit`"));
        };
        let (expected, got) = (first.len(), features.n_cols());
        if got != expected {
            return Err(Error::input(format!("features expected {expected} columns, got {got}")));
        }
        for (score, h) in scores.iter_mut().zip(features.rows()) {
            let z = direction(h);
            let distances: Vec<f64> =
                self.means.iter().map(|mean| squared_distance(&z, mean)).collect();
            *score = soft_minimum(&distances, self.params.temperature) as f32;
        }
        Ok(())
    }
}

// 7. The line that makes the crate a pack; it may name several detectors.
oodbench_sdk::export_pack!(ClassMeans);

// The formula in pieces that a test can call.

/// `h / |h|`; a vector of zeros stays one.
fn direction(h: &[f32]) -> Vec<f64> {
    let norm = h.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let scale = if norm == 0.0 { 0.0 } else { norm.recip() };
    h.iter().map(|&x| f64::from(x) * scale).collect()
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// The mean direction of each class that has images.
fn class_means(features: Matrix<'_>, labels: &[i64]) -> Result<Vec<Vec<f64>>> {
    // In the order of the classes, so that sums do not depend on anything else.
    let mut classes = std::collections::BTreeMap::<i64, (usize, Vec<f64>)>::new();
    for (h, &label) in features.rows().zip(labels) {
        let (n, sum) = classes.entry(label).or_insert_with(|| (0, vec![0.0; h.len()]));
        *n += 1;
        sum.iter_mut().zip(direction(h)).for_each(|(sum, z)| *sum += z);
    }
    if classes.is_empty() {
        return Err(Error::input("there are no training images"));
    }
    let mean = |(n, sum): (usize, Vec<f64>)| sum.into_iter().map(|x| x / n as f64).collect();
    Ok(classes.into_values().map(mean).collect())
}

/// `-T log mean exp(-d / T)`, with the smallest `d` taken out of the sum, so that it cannot
/// underflow to a logarithm of 0.
fn soft_minimum(distances: &[f64], temperature: f64) -> f64 {
    let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
    let sum: f64 = distances.iter().map(|d| (-(d - least) / temperature).exp()).sum();
    least - temperature * (sum / distances.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_goes_from_the_nearest_mean_to_the_average() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} and {b}");
        close(soft_minimum(&[0.5, 2.0, 3.5], 1e-4), 0.5);
        close(soft_minimum(&[0.5, 2.0, 3.5], 1e4), 2.0);
        close(soft_minimum(&[0.7, 0.7], 0.1), 0.7);
    }

    #[test]
    fn a_mean_is_one_of_directions_and_lengths_do_not_count() {
        let features = [3.0, 0.0, 0.0, 5.0, 0.0, 0.5];
        let means = class_means(Matrix::new(&features, 3, 2).unwrap(), &[4, 4, 1]).unwrap();
        assert_eq!(means, [[0.0, 1.0], [0.5, 0.5]]);
    }

    #[test]
    fn no_images_are_an_error() {
        assert!(class_means(Matrix::new(&[], 0, 2).unwrap(), &[]).is_err());
    }
}
