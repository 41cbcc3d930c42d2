//! Logistic regression with an L2 penalty, its strength chosen by cross-validation, for a few
//! columns of any scale.
//!
//! The minimum of `|w|^2 / 2 + C sum_i log(1 + exp(-y_i (w . x_i + b)))` for `y` of 1 and -1, by
//! Newton's method. Scikit-learn's `LogisticRegressionCV` looks for the same one by L-BFGS and
//! chooses `C` by the same folds, values and measure.

use faer::Mat;
use faer::prelude::Solve;
use oodbench_sdk::{Error, Result};

/// Parts of the rows that are left out in turn.
const FOLDS: usize = 5;
/// Newton's method converges in far fewer.
const ROUNDS: usize = 100;
/// Where it ends: a step that promises less than this part of the objective.
const TOLERANCE: f64 = 1e-14;

/// A row for each case, and whether it is one.
pub struct Cases<'a> {
    /// `[n, n_columns]`, row-major.
    pub rows: &'a [f64],
    /// Number of columns.
    pub n_columns: usize,
    /// `[n]`
    pub is_positive: &'a [bool],
}

/// A plane that separates positive rows from the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// One for each column.
    pub weights: Vec<f64>,
    /// Added to the weighted sum, whose sign is the answer.
    pub intercept: f64,
}

impl Plane {
    fn is_positive(&self, row: &[f64]) -> bool {
        let sum: f64 = self.weights.iter().zip(row).map(|(w, x)| w * x).sum();
        sum + self.intercept > 0.0
    }
}

impl Cases<'_> {
    fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * self.n_columns..(i + 1) * self.n_columns]
    }

    /// The plane for the first of the strengths `C` from 1e-4 to 1e4, ten of them evenly spaced in
    /// their logarithms, by which most left-out rows are told apart, fitted to all rows. Folds are
    /// contiguous within each kind, so that nothing depends on random numbers.
    ///
    /// # Errors
    /// Fewer than two rows of a kind, values that are not finite.
    pub fn cross_validated(&self) -> Result<Plane> {
        let n = self.is_positive.len();
        let of_kind = |kind: bool| (0..n).filter(move |&i| self.is_positive[i] == kind);
        let fewest = of_kind(true).count().min(of_kind(false).count());
        if fewest < 2 {
            return Err(Error::input(format!(
                "a logistic regression expected at least 2 images of each kind, got {fewest}"
            )));
        }
        if self.rows.iter().any(|x| !x.is_finite()) {
            return Err(Error::input("a logistic regression expected finite values"));
        }
        let n_folds = FOLDS.min(fewest);
        let mut fold = vec![0; n];
        for kind in [true, false] {
            // The first folds get one more, where it does not come out even.
            let count = of_kind(kind).count();
            let sizes = (0..n_folds).map(|f| count / n_folds + usize::from(f < count % n_folds));
            let folds = sizes.enumerate().flat_map(|(f, size)| std::iter::repeat_n(f, size));
            of_kind(kind).zip(folds).for_each(|(i, f)| fold[i] = f);
        }
        let mut best = (f64::NEG_INFINITY, 0.0);
        for step in 0..10 {
            let strength = 10f64.powf(-4.0 + 8.0 * f64::from(step) / 9.0);
            let mut accuracy = 0.0;
            for left_out in 0..n_folds {
                let within: Vec<usize> = (0..n).filter(|&i| fold[i] != left_out).collect();
                let plane = self.fit(&within, strength)?;
                let tested: Vec<usize> = (0..n).filter(|&i| fold[i] == left_out).collect();
                let is_right = |&&i: &&usize| plane.is_positive(self.row(i)) == self.is_positive[i];
                let n_right = tested.iter().filter(is_right).count();
                accuracy += n_right as f64 / tested.len() as f64;
            }
            if accuracy > best.0 {
                best = (accuracy, strength);
            }
        }
        self.fit(&(0..n).collect::<Vec<_>>(), best.1)
    }

    /// The plane for some of the rows.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn fit(&self, within: &[usize], strength: f64) -> Result<Plane> {
        let d = self.n_columns;
        // Centred columns leave the weights as they are and the equations well conditioned.
        let mean = |j: usize| {
            within.iter().map(|&i| self.row(i)[j]).sum::<f64>() / within.len().max(1) as f64
        };
        let centre: Vec<f64> = (0..d).map(mean).collect();
        // The intercept is the last.
        let mut at = vec![0.0; d + 1];
        let mut objective = self.objective(within, strength, &centre, &at);
        for _ in 0..ROUNDS {
            let (gradient, hessian) = self.slopes(within, strength, &centre, &at);
            let right = Mat::from_fn(d + 1, 1, |j, _| gradient[j]);
            let step = hessian.partial_piv_lu().solve(&right);
            let promised: f64 = (0..=d).map(|j| step[(j, 0)] * gradient[j]).sum();
            if !promised.is_finite() {
                return Err(Error::input("a logistic regression does not converge"));
            }
            if promised <= TOLERANCE * objective.abs().max(f64::MIN_POSITIVE) {
                break;
            }
            let mut size = 1.0;
            loop {
                let next: Vec<f64> = (0..=d).map(|j| at[j] - size * step[(j, 0)]).collect();
                let there = self.objective(within, strength, &centre, &next);
                if there < objective {
                    (at, objective) = (next, there);
                    break;
                }
                size /= 2.0;
                if size < 1e-9 {
                    // As low as rounding lets it come.
                    return Ok(plane(&at, &centre));
                }
            }
        }
        Ok(plane(&at, &centre))
    }

    fn margin(&self, i: usize, centre: &[f64], at: &[f64]) -> f64 {
        let (weights, intercept) = at.split_at(self.n_columns);
        let sum: f64 =
            self.row(i).iter().zip(centre).zip(weights).map(|((x, m), w)| w * (x - m)).sum();
        let margin = sum + intercept[0];
        if self.is_positive[i] { margin } else { -margin }
    }

    fn objective(&self, within: &[usize], strength: f64, centre: &[f64], at: &[f64]) -> f64 {
        let penalty: f64 = at[..self.n_columns].iter().map(|w| w * w).sum();
        let loss = |&i: &usize| {
            let margin = self.margin(i, centre, at);
            // `log(1 + exp(-m))` without overflow.
            (-margin.abs()).exp().ln_1p() + (-margin).max(0.0)
        };
        0.5 * penalty + strength * within.iter().map(loss).sum::<f64>()
    }

    fn slopes(
        &self,
        within: &[usize],
        strength: f64,
        centre: &[f64],
        at: &[f64],
    ) -> (Vec<f64>, Mat<f64>) {
        let d = self.n_columns;
        let mut gradient: Vec<f64> = at.to_vec();
        gradient[d] = 0.0;
        let mut hessian =
            Mat::from_fn(d + 1, d + 1, |i, j| if i == j && i < d { 1.0 } else { 0.0 });
        for &i in within {
            let sign = if self.is_positive[i] { 1.0 } else { -1.0 };
            let wrong = 1.0 / (1.0 + self.margin(i, centre, at).exp());
            let curvature = strength * wrong * (1.0 - wrong);
            let x: Vec<f64> =
                self.row(i).iter().zip(centre).map(|(x, m)| x - m).chain([1.0]).collect();
            for a in 0..=d {
                gradient[a] -= strength * sign * wrong * x[a];
                for b in 0..=d {
                    hessian[(a, b)] += curvature * x[a] * x[b];
                }
            }
        }
        // Where all rows are far on their sides nothing else holds the intercept.
        hessian[(d, d)] += f64::EPSILON * strength;
        (gradient, hessian)
    }
}

fn plane(at: &[f64], centre: &[f64]) -> Plane {
    let (weights, intercept) = at.split_at(centre.len());
    let shift: f64 = weights.iter().zip(centre).map(|(w, m)| w * m).sum();
    Plane { weights: weights.to_vec(), intercept: intercept[0] - shift }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two kinds that overlap, in columns of different scales.
    fn cases() -> (Vec<f64>, Vec<bool>) {
        let mut rows = Vec::new();
        for i in 0..40 {
            let (t, kind) = (f64::from(i * 7 % 40) / 10.0, f64::from(u8::from(i < 25)));
            rows.extend([t + 2.0 * kind, -30.0 * t + 20.0 * kind * (1.0 + f64::from(i % 3))]);
        }
        (rows, (0..40).map(|i| i < 25).collect())
    }

    /// `C`, `LogisticRegression(C=C, tol=1e-12, max_iter=100000).fit(rows, is_positive)` of
    /// scikit-learn 1.9.1: `coef_` and `intercept_`.
    const EXPECTED: [(f64, [f64; 2], f64); 3] = [
        (1e-4, [0.001_849_864, 0.018_770_516], 1.211_981_15),
        (1.0, [1.965_067_091, 0.091_413_930], -1.678_967_61),
        (100.0, [4.689_407_279, 0.181_218_279], -5.470_316_78),
    ];
    /// `LogisticRegressionCV().fit(rows, is_positive).coef_`
    const CROSS_VALIDATED: [f64; 2] = [1.443_823_60, 0.075_248_52];

    #[test]
    fn the_minimum_is_scikit_learns() {
        let (rows, is_positive) = cases();
        let cases = Cases { rows: &rows, n_columns: 2, is_positive: &is_positive };
        let all: Vec<usize> = (0..40).collect();
        for (strength, weights, intercept) in EXPECTED {
            let plane = cases.fit(&all, strength).unwrap();
            for (got, expected) in plane.weights.iter().zip(weights) {
                assert!((got - expected).abs() < 1e-6, "{strength}: {plane:?}");
            }
            assert!((plane.intercept - intercept).abs() < 1e-5, "{strength}: {plane:?}");
        }
        let plane = cases.cross_validated().unwrap();
        for (got, expected) in plane.weights.iter().zip(CROSS_VALIDATED) {
            assert!((got - expected).abs() < 1e-4, "{plane:?}");
        }
    }

    #[test]
    fn kinds_that_are_apart_have_a_finite_plane() {
        for scale in [1e-9, 1.0, 1e12] {
            let rows: Vec<f64> = (0..12).map(|i| scale * f64::from(i)).collect();
            let is_positive: Vec<bool> = (0..12).map(|i| i >= 6).collect();
            let cases = Cases { rows: &rows, n_columns: 1, is_positive: &is_positive };
            let plane = cases.cross_validated().unwrap();
            assert!(plane.weights[0].is_finite() && plane.weights[0] > 0.0, "{scale}: {plane:?}");
        }
    }

    #[test]
    fn what_is_no_regression_is_an_error() {
        let check = |rows: &[f64], is_positive: &[bool], expected: &str| {
            let cases = Cases { rows, n_columns: 1, is_positive };
            let error = cases.cross_validated().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[1.0, 2.0, 3.0], &[true, false, false], "at least 2 images of each kind, got 1");
        check(&[], &[], "got 0");
        check(&[1.0, f64::NAN, 3.0, 4.0], &[true, true, false, false], "finite values");
    }
}
