//! Reductions over a row of logits or features.

/// `log(sum(exp(xs / temperature))) * temperature`, without overflow.
pub fn log_sum_exp(xs: &[f32], temperature: f64) -> f64 {
    let max = f64::from(maximum(xs));
    let sum: f64 = xs.iter().map(|&x| ((f64::from(x) - max) / temperature).exp()).sum();
    max + temperature * sum.ln()
}

/// The greatest value; minus infinity of nothing, and NaN if there is one.
pub fn maximum(xs: &[f32]) -> f32 {
    xs.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max || x.is_nan() { x } else { max })
}

/// The index of the greatest value; the first of equals, as in PyTorch.
pub fn argmax(xs: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in xs.iter().enumerate() {
        if x > xs[best] {
            best = i;
        }
    }
    best
}

/// `softmax(xs / temperature)`.
pub fn softmax(xs: &[f32], temperature: f64) -> Vec<f64> {
    let max = f64::from(maximum(xs));
    let exps: Vec<f64> = xs.iter().map(|&x| ((f64::from(x) - max) / temperature).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// The greatest probability of `softmax(xs / temperature)`.
pub fn max_probability(xs: &[f32], temperature: f64) -> f64 {
    let max = f64::from(maximum(xs));
    1.0 / xs.iter().map(|&x| ((f64::from(x) - max) / temperature).exp()).sum::<f64>()
}

/// The same in single precision, where the probability of a confident image is exactly 1.
pub fn max_probability_single(xs: &[f32], temperature: f32) -> f32 {
    let max = maximum(xs) / temperature;
    1.0 / xs.iter().map(|&x| (x / temperature - max).exp()).sum::<f32>()
}

/// The `percent`-th percentile with linear interpolation, as numpy's default. Reorders `values`.
///
/// # Panics
///
/// When there are no values.
pub fn percentile(values: &mut [f32], percent: f64) -> f32 {
    let position = percent / 100.0 * (values.len() - 1) as f64;
    let below = position.floor() as usize;
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(low);
    let fraction = position - below as f64;
    // numpy interpolates from the nearer end.
    let (low, high) = (f64::from(low), f64::from(high));
    let value = if fraction < 0.5 {
        low + (high - low) * fraction
    } else {
        high - (high - low) * (1.0 - fraction)
    };
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_logits_do_not_overflow() {
        assert!((log_sum_exp(&[1e4, 1e4], 1.0) - (1e4 + 2f64.ln())).abs() < 1e-9);
        assert_eq!(max_probability(&[1e4, -1e4], 1.0), 1.0);
    }

    #[test]
    fn nan_is_not_hidden() {
        assert!(maximum(&[1.0, f32::NAN, 2.0]).is_nan());
        assert!(log_sum_exp(&[1.0, f32::NAN], 1.0).is_nan());
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // np.percentile([4, 1, 3, 2, 9], [0, 10, 50, 90, 100])
        for (percent, expected) in [(0.0, 1.0), (10.0, 1.4), (50.0, 3.0), (90.0, 7.0), (100.0, 9.0)]
        {
            assert!((percentile(&mut [4.0, 1.0, 3.0, 2.0, 9.0], percent) - expected).abs() < 1e-6);
        }
        assert_eq!(percentile(&mut [2.0], 90.0), 2.0);
    }
}
