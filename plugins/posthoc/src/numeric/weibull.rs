//! Weibull distributions, fitted to the greatest of some distances.

use serde::{Deserialize, Serialize};

/// A Weibull distribution of what exceeds the least of the values that it was fitted on, less one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weibull {
    /// Infinite for values that are all equal, whose distribution is a step.
    pub shape: f64,
    /// The scale.
    pub scale: f64,
    /// The least value that it was fitted on, which stands at 1.
    least: f64,
}

impl Weibull {
    /// The distribution of greatest likelihood of a tail, whose least value is moved to 1 first as
    /// libmr's `fit_high` does.
    ///
    /// None for no values, or values that are not finite.
    pub fn of_tail(tail: &[f64]) -> Option<Self> {
        let least = tail.iter().copied().fold(f64::INFINITY, f64::min);
        if tail.is_empty() || tail.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let moved: Vec<f64> = tail.iter().map(|x| x - least + 1.0).collect();
        let (shape, scale) = most_likely(&moved);
        Some(Self { shape, scale, least })
    }

    /// The probability of a value below this one.
    pub fn cdf(&self, x: f64) -> f64 {
        let x = x - self.least + 1.0;
        if x <= 0.0 {
            return 0.0;
        }
        -(-(x / self.scale).powf(self.shape)).exp_m1()
    }
}

/// Shape and scale of greatest likelihood for positive values.
///
/// The shape `k` solves `sum x^k ln x / sum x^k - 1 / k = mean ln x`, whose left side grows with
/// `k`; Newton's steps are kept in an interval that is known to hold the solution.
fn most_likely(xs: &[f64]) -> (f64, f64) {
    /// A shape above it is a step for all that `f32` can tell.
    const STEEPEST: f64 = 1e9;
    let n = xs.len() as f64;
    let greatest = xs.iter().copied().fold(0.0, f64::max);
    // Relative to the greatest value no power overflows.
    let logs: Vec<f64> = xs.iter().map(|x| (x / greatest).ln()).collect();
    let mean = logs.iter().sum::<f64>() / n;
    let equation = |k: f64| {
        let [mut sum, mut first, mut second] = [0.0; 3];
        for log in &logs {
            let power = (k * log).exp();
            sum += power;
            first += power * log;
            second += power * log * log;
        }
        let (first, second) = (first / sum, second / sum);
        (first - 1.0 / k - mean, second - first * first + 1.0 / (k * k))
    };
    let mut low = 1.0;
    while equation(low).0 > 0.0 {
        low /= 2.0;
    }
    let mut high = 2.0 * low;
    while equation(high).0 < 0.0 {
        high *= 2.0;
        if high > STEEPEST {
            return (f64::INFINITY, greatest);
        }
    }
    let mut k = 0.5 * (low + high);
    for _ in 0..200 {
        let (value, slope) = equation(k);
        if value < 0.0 {
            low = k;
        } else {
            high = k;
        }
        let newton = k - value / slope;
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        let step = (next - k).abs();
        k = next;
        if step <= 1e-14 * k {
            break;
        }
    }
    let power = logs.iter().map(|log| (k * log).exp()).sum::<f64>() / n;
    (k, greatest * power.powf(1.0 / k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tail: &[f64], shape: f64, scale: f64) {
        let fitted = Weibull::of_tail(tail).unwrap();
        assert!((fitted.shape / shape - 1.0).abs() < 1e-8, "shape {}", fitted.shape);
        assert!((fitted.scale / scale - 1.0).abs() < 1e-8, "scale {}", fitted.scale);
    }

    /// The solutions of scipy's `brentq`; `weibull_min.fit(.., floc=0)` agrees to the five digits
    /// that its own search has.
    #[test]
    fn the_fit_is_that_of_greatest_likelihood() {
        check(&[5.0, 6.0, 9.0], 1.664_092_904_151_226_5, 3.005_877_501_325_264);
        check(&[0.1, 0.2, 0.4, 0.8, 1.6], 2.955_946_707_598_662, 1.707_304_629_618_065_4);
        check(&[10.0, 10.01, 10.03, 10.06], 45.535_883_125_864_31, 1.036_667_186_736_662_1);
        check(&[1.0, 2.0, 3.0, 100.0], 0.519_971_854_924_640_4, 12.979_426_357_868_693);
    }

    #[test]
    fn equal_values_are_a_step() {
        for tail in [vec![3.0; 5], vec![0.0]] {
            let fitted = Weibull::of_tail(&tail).unwrap();
            assert!(fitted.shape.is_infinite());
            assert_eq!(fitted.cdf(tail[0] - 1e-6), 0.0);
            assert_eq!(fitted.cdf(tail[0] + 1e-6), 1.0);
            assert!((fitted.cdf(tail[0]) - 0.632_120_558_828_557_7).abs() < 1e-12);
        }
    }

    #[test]
    fn nothing_and_nan_have_no_distribution() {
        assert_eq!(Weibull::of_tail(&[]), None);
        assert_eq!(Weibull::of_tail(&[1.0, f64::NAN]), None);
        assert_eq!(Weibull::of_tail(&[1.0, f64::INFINITY]), None);
    }

    #[test]
    fn far_below_the_tail_nothing_is_expected() {
        let fitted = Weibull::of_tail(&[5.0, 6.0, 9.0]).unwrap();
        assert_eq!(fitted.cdf(4.0), 0.0);
        assert_eq!(fitted.cdf(-1.0), 0.0);
        assert_eq!(fitted.cdf(1e300), 1.0);
    }
}
