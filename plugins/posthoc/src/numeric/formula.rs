//! Data by formula, for tests whose expected scores another program computed from the formula.

use oodbench_sdk::Matrix;

/// Classes.
pub(crate) const N_CLASSES: usize = 3;
/// Features.
pub(crate) const N_FEATURES: usize = 8;

/// Rows of features and logits.
pub(crate) struct Rows {
    features: Vec<f32>,
    logits: Vec<f32>,
    n: usize,
}

impl Rows {
    fn new(n: usize, split: usize) -> Self {
        let feature = |i: usize, d: usize| {
            let noise = ((i * 131 + d * 37 + i * d * 17 + split * 59) % 101) as f64 / 101.0;
            let of_class = if d % N_CLASSES == i % N_CLASSES { 1.0 } else { 0.0 };
            (noise + of_class - 0.3).max(0.0) as f32
        };
        let all = |i: usize| (0..N_FEATURES).map(move |d| feature(i, d));
        let features: Vec<f32> = (0..n).flat_map(all).collect();
        let (weight, bias) = (weight(), bias());
        let logit = |h: &[f32], class: usize| {
            let row = &weight[class * N_FEATURES..(class + 1) * N_FEATURES];
            let sum: f64 = row.iter().zip(h).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum();
            (sum + f64::from(bias[class])) as f32
        };
        let logits_of = |h| (0..N_CLASSES).map(move |class| logit(h, class));
        let logits = features.chunks_exact(N_FEATURES).flat_map(logits_of).collect();
        Self { features, logits, n }
    }

    /// 60 training images, of class `i % 3`.
    pub(crate) fn train() -> Self {
        Self::new(60, 0)
    }

    /// Six images to score.
    pub(crate) fn test() -> Self {
        Self::new(6, 1)
    }

    /// `[n, 8]`
    pub(crate) fn features(&self) -> Matrix<'_> {
        Matrix::new(&self.features, self.n, N_FEATURES).unwrap()
    }

    /// `[n, 3]`
    pub(crate) fn logits(&self) -> Matrix<'_> {
        Matrix::new(&self.logits, self.n, N_CLASSES).unwrap()
    }

    /// The class of each image.
    pub(crate) fn classes(&self) -> Vec<usize> {
        (0..self.n).map(|i| i % N_CLASSES).collect()
    }
}

/// The head's weight, `[3, 8]`.
pub(crate) fn weight() -> Vec<f32> {
    let weight = |i: usize| {
        let (class, d) = (i / N_FEATURES, i % N_FEATURES);
        let of_class = if d % N_CLASSES == class { 1.0 } else { -0.25 };
        (of_class + (i % 5) as f64 / 10.0) as f32
    };
    (0..N_CLASSES * N_FEATURES).map(weight).collect()
}

/// The head's bias, `[3]`.
pub(crate) fn bias() -> Vec<f32> {
    (0..N_CLASSES).map(|class| 0.1 * class as f32).collect()
}

/// Scores equal expected ones, but for rounding to `f32` and what sums in another order make.
#[track_caller]
pub(crate) fn assert_scores(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() < 1e-6 * size, "{got}, expected {expected}");
    }
}
