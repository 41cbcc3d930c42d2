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

/// The `percent`-th percentile with linear interpolation, as numpy's default.
///
/// # Panics
///
/// When there are no values.
pub fn percentile(values: &[f32], percent: f64) -> f32 {
    let last = values.len() - 1;
    let position = percent / 100.0 * last as f64;
    let below = (position.floor() as usize).min(last);
    let [low, high] = order_statistics(values, [below, (below + 1).min(last)]);
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

/// The values at these places of the sorted list, which is not made: values are counted by the upper
/// half of their bits, and those that share it with the one looked for by the lower half.
fn order_statistics<const N: usize>(values: &[f32], places: [usize; N]) -> [f32; N] {
    /// In the order of `f32::total_cmp`.
    fn key(x: f32) -> u32 {
        let bits = x.to_bits();
        if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
    }
    /// The first count at which so many are passed, and how many of it are to be passed then.
    fn reached(counts: &[usize], mut place: usize) -> (usize, usize) {
        for (at, &count) in counts.iter().enumerate() {
            if place < count {
                return (at, place);
            }
            place -= count;
        }
        (counts.len() - 1, place)
    }
    let mut upper = vec![0; 1 << 16];
    values.iter().for_each(|&x| upper[(key(x) >> 16) as usize] += 1);
    places.map(|place| {
        let (of_upper, place) = reached(&upper, place);
        let mut lower = vec![0; 1 << 16];
        let keys = values.iter().map(|&x| key(x) as usize);
        keys.filter(|key| key >> 16 == of_upper).for_each(|key| lower[key & 0xffff] += 1);
        let key = (of_upper << 16 | reached(&lower, place).0) as u32;
        f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
    })
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
    fn order_statistics_are_those_of_the_sorted_list() {
        let mut values = vec![0.0, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::MIN, -1e-45, 1.0, 1.0];
        // Close together, so that many share half of their bits.
        values.extend((0..200u32).map(|i| f32::from_bits(0x3f80_0000 + i * 7919 % 997)));
        values.extend((0..100u16).map(|i| -f32::from(i * 31 % 97) * 1e30));
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        for (place, expected) in sorted.iter().enumerate() {
            let [got] = order_statistics(&values, [place]);
            assert_eq!(got.to_bits(), expected.to_bits(), "{place}");
        }
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // np.percentile([4, 1, 3, 2, 9], [0, 10, 50, 90, 100])
        for (percent, expected) in [(0.0, 1.0), (10.0, 1.4), (50.0, 3.0), (90.0, 7.0), (100.0, 9.0)]
        {
            assert!((percentile(&[4.0, 1.0, 3.0, 2.0, 9.0], percent) - expected).abs() < 1e-6);
        }
        assert_eq!(percentile(&[2.0], 90.0), 2.0);
    }
}
