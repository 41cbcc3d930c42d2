//! Rows times a small matrix, and what is read off the classifier's head for features that were
//! changed.

use oodbench_sdk::{Error, Head, Matrix, Result};
use rayon::prelude::*;

use super::check::{self, finite};
use super::wide::{row_products, vectorised};

/// For each row, `weight` times what `change` makes of the row, in `f64`, row-major `[n, outputs]`.
/// `change` gets a row and room for as many numbers.
///
/// # Shapes
/// `weight`: `[outputs, columns of rows]`, row-major.
pub fn products(
    rows: Matrix<'_>,
    weight: &[f64],
    outputs: usize,
    change: impl Fn(&[f32], &mut [f64]) + Sync,
) -> Vec<f64> {
    /// Rows of one product: 64 x 512 numbers stay in the cache.
    const ROWS: usize = 64;
    let d = rows.n_cols();
    let mut out = vec![0.0; rows.n_rows() * outputs];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(ROWS * outputs).enumerate().for_each_init(
        || vec![0.0; ROWS * d],
        |changed, (block, out)| {
            let n = out.len() / outputs;
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..n {
                        change(rows.row(block * ROWS + i), &mut changed[i * d..(i + 1) * d]);
                    }
                },
            );
            row_products(&changed[..n * d], weight, d, out);
        },
    );
    out
}

/// Features as they are, for [`products`].
pub fn unchanged(row: &[f32], same: &mut [f64]) {
    for (same, &x) in same.iter_mut().zip(row) {
        *same = f64::from(x);
    }
}

/// The classifier's head in `f64`, for features that were changed on their way to it.
pub struct EnergyHead {
    /// `[n_classes, n_features]`
    weight: Vec<f64>,
    bias: Vec<f64>,
    n_features: usize,
}

impl EnergyHead {
    /// The head as it is.
    ///
    /// # Errors
    /// Weights that are not finite, or a head without classes.
    pub fn new(head: &Head) -> Result<Self> {
        Self::masked(head, |_, _| true)
    }

    /// The head with the weights for which `keeps` says no, by class and feature, set to 0.
    ///
    /// # Errors
    /// Weights that are not finite, or a head without classes.
    pub fn masked(head: &Head, keeps: impl Fn(usize, usize) -> bool) -> Result<Self> {
        let (weight, bias) = (head.weight(), head.bias());
        finite(weight, "weights of the head")?;
        finite(Matrix::new(bias, bias.len(), 1)?, "biases of the head")?;
        if bias.is_empty() {
            return Err(Error::input("the head has no classes"));
        }
        let mut kept = Vec::with_capacity(weight.values().len());
        for (class, row) in weight.rows().enumerate() {
            let row = row.iter().enumerate();
            kept.extend(row.map(|(d, &w)| if keeps(class, d) { f64::from(w) } else { 0.0 }));
        }
        let bias = bias.iter().map(|&b| f64::from(b)).collect();
        Ok(Self { weight: kept, bias, n_features: weight.n_cols() })
    }

    /// The products of the weights with each row as changed, without the bias, `[n, n_classes]`.
    ///
    /// # Errors
    /// Features that are not finite, or are not as many as the head takes.
    pub fn products(
        &self,
        features: Matrix<'_>,
        change: impl Fn(&[f32], &mut [f64]) + Sync,
    ) -> Result<Vec<f64>> {
        let features = check::features(features, self.n_features)?;
        Ok(products(features, &self.weight, self.bias.len(), change))
    }

    /// The logits that an image's products come to.
    pub fn logits<'a>(&'a self, products: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        products.iter().zip(&self.bias).map(|(product, bias)| product + bias)
    }

    /// For each image the free energy `-log sum exp(factor * products + bias)`, where the factor
    /// is that of the image. What `f32` cannot hold becomes the greatest or least that it can.
    pub fn energies(
        &self,
        products: &[f64],
        factor: impl Fn(usize) -> f64 + Sync,
        scores: &mut [f32],
    ) {
        let n_classes = self.bias.len();
        let products = products.par_chunks_exact(n_classes);
        scores.par_iter_mut().zip(products).enumerate().for_each_init(
            || vec![0.0; n_classes],
            |logits, (i, (score, products))| {
                let factor = factor(i);
                for ((logit, product), bias) in logits.iter_mut().zip(products).zip(&self.bias) {
                    *logit = factor * product + bias;
                }
                let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
                let energy = -(greatest + sum.ln());
                *score = energy.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_every_block_is_multiplied() {
        let n = 131;
        let values: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
        let weight = [1.0, 10.0, 0.0, -1.0, 2.0, 2.0];
        let change = |row: &[f32], out: &mut [f64]| {
            for (out, &x) in out.iter_mut().zip(row) {
                *out = f64::from(x) + 1.0;
            }
        };
        let got = products(Matrix::new(&values, n, 2).unwrap(), &weight, 3, change);
        for i in 0..n {
            let (a, b) = (2.0 * i as f64 + 1.0, 2.0 * i as f64 + 2.0);
            assert_eq!(got[3 * i..3 * i + 3], [a + 10.0 * b, -b, 2.0 * (a + b)]);
        }
        assert!(products(Matrix::new(&[], 0, 2).unwrap(), &weight, 3, change).is_empty());
        // Without features there is nothing but the bias.
        assert_eq!(products(Matrix::new(&[], 2, 0).unwrap(), &[], 1, change), [0.0; 2]);
    }

    #[test]
    fn energies_that_overflow_are_the_greatest_numbers() {
        let head = EnergyHead { weight: vec![1.0, -1.0], bias: vec![0.0, 1.0], n_features: 1 };
        let features = [2.0, -3.0];
        let products = head.products(Matrix::new(&features, 2, 1).unwrap(), unchanged).unwrap();
        let mut scores = [0.0; 2];
        head.energies(&products, |_| 1e100, &mut scores);
        assert_eq!(scores, [f32::MIN, f32::MIN]);
        head.energies(&products, |_| 0.0, &mut scores);
        // -ln(1 + e)
        assert!(scores.iter().all(|score| (score + 1.313_261_7).abs() < 1e-6));
    }

    #[test]
    fn features_that_are_not_finite_are_an_error() {
        let head = EnergyHead { weight: vec![1.0], bias: vec![0.0], n_features: 1 };
        let features = [0.0, f32::NAN];
        let result = head.products(Matrix::new(&features, 2, 1).unwrap(), unchanged);
        let message = result.unwrap_err().to_string();
        assert_eq!(message, "features expected finite values, got NaN or infinity in row 1");
    }
}
