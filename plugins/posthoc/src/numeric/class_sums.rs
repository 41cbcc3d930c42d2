//! Sums over vectors of classes, batch by batch: class means and covariances without keeping a vector.

use faer::Mat;
use oodbench_sdk::{Error, Result};

use super::moments::add_products;

/// Sums over vectors, as they come, about an origin near them, so that little is lost to rounding.
pub struct ClassSums {
    origin: Vec<f64>,
    counts: Vec<usize>,
    /// Of each class, less the origin.
    sums: Vec<Vec<f64>>,
    /// Of `x x'` over all, in the lower half.
    squares: Mat<f64>,
}

impl ClassSums {
    /// None so far, about the mean of these vectors.
    ///
    /// # Shapes
    /// `vectors`: `[n, n_columns]`
    pub fn around(vectors: &[f64], n_columns: usize, n_classes: usize) -> Self {
        let mut origin = vec![0.0; n_columns];
        let rows = vectors.chunks_exact(n_columns.max(1));
        let n = rows.len().max(1) as f64;
        for row in rows {
            origin.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        origin.iter_mut().for_each(|sum| *sum /= n);
        Self {
            origin,
            counts: vec![0; n_classes],
            sums: vec![vec![0.0; n_columns]; n_classes],
            squares: Mat::zeros(n_columns, n_columns),
        }
    }

    /// Adds vectors, whose classes are numbers below `n_classes`.
    ///
    /// # Shapes
    /// `vectors`: `[n, n_columns]`, `classes`: `[n]`
    ///
    /// # Errors
    /// Vectors of another size, or another number of them than of classes.
    pub fn add(&mut self, vectors: &[f64], classes: &[usize]) -> Result<()> {
        let d = self.origin.len();
        if vectors.len() != classes.len() * d {
            let (n, got) = (classes.len(), vectors.len());
            return Err(Error::input(format!(
                "activations expected {d} values for each of {n} images, got {got}"
            )));
        }
        let mut centred = vectors.to_vec();
        for (row, &class) in centred.chunks_exact_mut(d.max(1)).zip(classes) {
            self.counts[class] += 1;
            for ((x, origin), sum) in row.iter_mut().zip(&self.origin).zip(&mut self.sums[class]) {
                *x -= origin;
                *sum += *x;
            }
        }
        add_products(&mut self.squares, &centred);
        Ok(())
    }

    /// What sums, and means, are relative to.
    pub fn origin(&self) -> &[f64] {
        &self.origin
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first class without vectors.
    pub fn empty_class(&self) -> Option<usize> {
        self.counts.iter().position(|count| *count == 0)
    }

    /// The classes that have vectors.
    fn present(&self) -> Vec<usize> {
        (0..self.counts.len()).filter(|&class| self.counts[class] > 0).collect()
    }

    /// The means of the classes that have vectors, less the origin, `[n_present, n_columns]`.
    pub fn means(&self) -> Mat<f64> {
        let present = self.present();
        Mat::from_fn(present.len(), self.origin.len(), |row, j| {
            self.sums[present[row]][j] / self.counts[present[row]] as f64
        })
    }

    /// The means, each times the part of the vectors that are of its class.
    fn shares(&self, means: &Mat<f64>) -> Mat<f64> {
        let (present, n) = (self.present(), self.len().max(1) as f64);
        Mat::from_fn(means.nrows(), means.ncols(), |row, j| {
            means[(row, j)] * (self.counts[present[row]] as f64 / n)
        })
    }

    /// The mean of `x x'` less the origin.
    fn second_moment(&self) -> Mat<f64> {
        let (d, n) = (self.origin.len(), self.len().max(1) as f64);
        Mat::from_fn(d, d, |i, j| self.squares[(i.max(j), i.min(j))] / n)
    }

    /// The covariance about the means of the classes, divided by the number of vectors.
    pub fn within(&self) -> Mat<f64> {
        let means = self.means();
        self.second_moment() - self.shares(&means).transpose() * &means
    }

    /// The covariance about the mean of all, divided by the number of vectors.
    pub fn total(&self) -> Mat<f64> {
        let shares = self.shares(&self.means());
        let mean = Mat::from_fn(1, shares.ncols(), |_, j| {
            (0..shares.nrows()).map(|row| shares[(row, j)]).sum::<f64>()
        });
        self.second_moment() - mean.transpose() * &mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covariances_are_those_of_all_vectors_whatever_the_batches() {
        let (n, d) = (20, 3);
        let vectors: Vec<f64> = (0..n * d).map(|i| 7.0 + (i * 7919 % 101) as f64 / 101.0).collect();
        let classes: Vec<usize> = (0..n).map(|i| i % 2 * 2).collect();
        let mut sums = ClassSums::around(&vectors[..3 * d], d, 3);
        for (first, end) in [(0, 3), (3, 4), (4, n)] {
            sums.add(&vectors[d * first..d * end], &classes[first..end]).unwrap();
        }
        assert_eq!((sums.len(), sums.empty_class()), (n, Some(1)));
        let mean = |of: &dyn Fn(usize) -> bool, j: usize| {
            let rows: Vec<usize> = (0..n).filter(|&i| of(i)).collect();
            rows.iter().map(|&i| vectors[i * d + j]).sum::<f64>() / rows.len() as f64
        };
        for (row, class) in [0, 2].into_iter().enumerate() {
            for j in 0..d {
                let expected = mean(&|i| classes[i] == class, j);
                assert!((sums.means()[(row, j)] + sums.origin()[j] - expected).abs() < 1e-12);
            }
        }
        let (within, total) = (sums.within(), sums.total());
        for i in 0..d {
            for j in 0..d {
                let product = |row: usize, about: &dyn Fn(usize) -> f64| {
                    (vectors[row * d + i] - about(i)) * (vectors[row * d + j] - about(j))
                };
                let all = (0..n).map(|row| product(row, &|j| mean(&|_| true, j))).sum::<f64>();
                assert!((total[(i, j)] - all / n as f64).abs() < 1e-12, "{i} {j}");
                let own = |row: usize| move |j: usize| mean(&|i| i % 2 == row % 2, j);
                let own = (0..n).map(|row| product(row, &own(row))).sum::<f64>();
                assert!((within[(i, j)] - own / n as f64).abs() < 1e-12, "{i} {j}");
            }
        }
    }

    #[test]
    fn vectors_of_another_size_are_refused() {
        let mut sums = ClassSums::around(&[1.0, 2.0], 2, 1);
        let error = sums.add(&[1.0, 2.0, 3.0], &[0]).unwrap_err().to_string();
        assert_eq!(error, "activations expected 2 values for each of 1 images, got 3");
    }
}
