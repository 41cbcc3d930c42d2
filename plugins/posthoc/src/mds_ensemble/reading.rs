//! What is read off an activation: one vector for each image, and the way back.

use oodbench_sdk::Layer;
use oodbench_sdk::prelude::*;

/// How an activation is read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Reading {
    /// Spatial means.
    Mean,
    /// Spatial means, then variances.
    Stat,
}

/// Channels of an activation `[n, channels, …]`.
pub(super) fn channels(layer: &Layer) -> Result<usize> {
    match layer.shape.as_slice() {
        [_, channels, ..] if *channels > 0 => Ok(*channels),
        shape => {
            let name = &layer.name;
            Err(Error::input(format!("layer `{name}` expected [n, channels, …], got {shape:?}")))
        }
    }
}

/// Vectors, one for each image, row-major.
pub(super) struct Vectors {
    pub(super) values: Vec<f64>,
    pub(super) n_columns: usize,
}

fn mean_of(map: &[f32]) -> f64 {
    map.iter().map(|&x| f64::from(x)).sum::<f64>() / map.len() as f64
}

impl Reading {
    /// Reads an activation off.
    ///
    /// # Errors
    /// Activations that are not finite, or have no channels.
    pub(super) fn of(self, layer: &Layer) -> Result<Vectors> {
        let channels = channels(layer)?;
        let n = layer.shape[0];
        let per_image = layer.data.len().checked_div(n).unwrap_or(0);
        let pixels = per_image / channels;
        if pixels == 0 && n > 0 {
            return Err(Error::input(format!("layer `{}` has no values", layer.name)));
        }
        let columns = channels * if self == Self::Stat { 2 } else { 1 };
        let mut values = Vec::with_capacity(n * columns);
        for activation in layer.data.chunks_exact(per_image.max(1)) {
            let means: Vec<f64> = activation.chunks_exact(pixels).map(mean_of).collect();
            if means.iter().any(|mean| !mean.is_finite()) {
                let name = &layer.name;
                return Err(Error::input(format!("layer `{name}` expected finite values")));
            }
            values.extend(&means);
            if self == Self::Stat {
                let variance = |(map, mean): (&[f32], &f64)| {
                    let squares = map.iter().map(|&x| (f64::from(x) - mean).powi(2));
                    // Of one pixel there is no variance.
                    squares.sum::<f64>() / (pixels - 1).max(1) as f64
                };
                values.extend(activation.chunks_exact(pixels).zip(&means).map(variance));
            }
        }
        Ok(Vectors { values, n_columns: columns })
    }

    /// Appends the gradient with respect to an activation of something whose gradient with respect
    /// to the vector is `slope`.
    pub(super) fn pull_back(
        self,
        activation: &[f32],
        channels: usize,
        slope: &[f64],
        out: &mut Vec<f32>,
    ) {
        let pixels = activation.len() / channels;
        for (c, map) in activation.chunks_exact(pixels).enumerate() {
            let of_mean = slope[c] / pixels as f64;
            match self {
                Self::Mean => out.extend(std::iter::repeat_n(of_mean as f32, pixels)),
                Self::Stat => {
                    let mean = mean_of(map);
                    let of_variance = 2.0 * slope[channels + c] / (pixels - 1).max(1) as f64;
                    let at = |&x: &f32| (of_mean + of_variance * (f64::from(x) - mean)) as f32;
                    out.extend(map.iter().map(at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::layer;
    use super::*;

    #[test]
    fn maps_are_read_off_as_means_and_unbiased_variances() {
        let layer = layer(&[1.0, 3.0, 5.0, 5.0, 0.0, 0.0, -1.0, 1.0], &[2, 2, 2]);
        assert_eq!(Reading::Mean.of(&layer).unwrap().values, [2.0, 5.0, 0.0, 0.0]);
        let stat = Reading::Stat.of(&layer).unwrap();
        assert_eq!(stat.values, [2.0, 5.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn one_pixel_has_no_variance() {
        let layer = layer(&[1.0, 3.0], &[1, 2]);
        assert_eq!(Reading::Stat.of(&layer).unwrap().values, [1.0, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn activations_that_are_not_finite_are_an_error() {
        let error = Reading::Mean.of(&layer(&[1.0, f32::NAN], &[1, 2])).err().unwrap();
        assert_eq!(error.to_string(), "layer `a` expected finite values");
    }

    #[test]
    fn the_pulled_back_slope_agrees_with_finite_differences() {
        let activation = [0.5, 1.0, -0.25, 0.0, 2.0, 0.75];
        let slope = [1.0, -2.0, 0.5, 3.0];
        for reading in [Reading::Mean, Reading::Stat] {
            let mut gradient = Vec::new();
            reading.pull_back(&activation, 2, &slope, &mut gradient);
            let value = |activation: &[f32]| -> f64 {
                let vector = reading.of(&layer(activation, &[1, 2, 3])).unwrap().values;
                vector.iter().zip(slope).map(|(x, s)| x * s).sum()
            };
            for i in 0..activation.len() {
                let (mut up, mut down) = (activation, activation);
                up[i] += 0.125;
                down[i] -= 0.125;
                let expected = 4.0 * (value(&up) - value(&down));
                assert!((f64::from(gradient[i]) - expected).abs() < 1e-5, "{reading:?} {i}");
            }
        }
    }
}
