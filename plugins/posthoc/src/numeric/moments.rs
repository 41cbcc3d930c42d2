//! Means, covariances, subspaces and Mahalanobis distances of rows that are changed on the way:
//! scaled, standardised, or mapped into another space. Nothing of the size of all rows is kept.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par};
use oodbench_sdk::serde::{Deserialize, Serialize};
use oodbench_sdk::{Error, Matrix, Result};
use rayon::prelude::*;

pub use super::head::unchanged;
use super::linalg::eigen;
use super::products::multiply;

/// Rows of a block. Blocks are filled up with zeros, so that what comes of a row does not depend on
/// how many others there are.
const ROWS: usize = 64;

/// Components of one product. Its shape is always the same, hence its rounding too.
const GROUP: usize = 64;

/// Rows that are made as they are needed.
pub trait Source: Sync {
    /// Number of rows.
    fn n_rows(&self) -> usize;
    /// Numbers of a row.
    fn n_cols(&self) -> usize;
    /// Writes `n` rows from `first` on to the start of `out`, `[64, n_cols]`, which is zeros.
    fn fill(&self, first: usize, n: usize, out: &mut [f64]);
}

/// Rows of a matrix, each changed by a function of its number, the row, and room for the result.
pub struct Changed<'a, F> {
    /// The rows as they are.
    pub rows: Matrix<'a>,
    /// What is done to each.
    pub change: F,
}

impl<F: Fn(usize, &[f32], &mut [f64]) + Sync> Source for Changed<'_, F> {
    fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.rows.n_cols()
    }

    fn fill(&self, first: usize, n: usize, out: &mut [f64]) {
        for (i, out) in (first..first + n).zip(out.chunks_exact_mut(self.n_cols().max(1))) {
            (self.change)(i, self.rows.row(i), out);
        }
    }
}

/// The row scaled to length 1; a row of zeros stays one.
pub fn unit(row: &[f32], out: &mut [f64]) {
    unchanged(row, out);
    let length = out.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        out.iter_mut().for_each(|x| *x /= length);
    }
}

/// Rows as they are.
pub fn plain(rows: Matrix<'_>) -> impl Source {
    Changed { rows, change: |_, row: &[f32], out: &mut [f64]| unchanged(row, out) }
}

/// Rows scaled to length 1.
pub fn units(rows: Matrix<'_>) -> impl Source {
    Changed { rows, change: |_, row: &[f32], out: &mut [f64]| unit(row, out) }
}

/// `row -= centre`
pub fn subtract(row: &mut [f64], centre: &[f64]) {
    for (x, centre) in row.iter_mut().zip(centre) {
        *x -= centre;
    }
}

/// A score in single precision; what that cannot hold becomes the greatest or least that it can.
pub fn single(score: f64) -> f32 {
    score.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

/// The mean of each group's rows, none where it has no row. Rows without a group do not count.
pub fn group_means(
    source: &impl Source,
    n_groups: usize,
    group_of: impl Fn(usize) -> Option<usize>,
) -> Vec<Option<Vec<f64>>> {
    let d = source.n_cols();
    let mut sums = vec![vec![0.0; d]; n_groups];
    let mut counts = vec![0usize; n_groups];
    let mut block = vec![0.0; ROWS * d];
    for first in (0..source.n_rows()).step_by(ROWS) {
        let n = ROWS.min(source.n_rows() - first);
        block.fill(0.0);
        source.fill(first, n, &mut block);
        for i in 0..n {
            let Some(group) = group_of(first + i) else { continue };
            counts[group] += 1;
            for (sum, x) in sums[group].iter_mut().zip(&block[i * d..(i + 1) * d]) {
                *sum += x;
            }
        }
    }
    let mean = |(mut sum, n): (Vec<f64>, usize)| {
        sum.iter_mut().for_each(|sum| *sum /= n.max(1) as f64);
        (n > 0).then_some(sum)
    };
    sums.into_iter().zip(counts).map(mean).collect()
}

/// The mean of all rows; zeros where there is none.
pub fn mean(source: &impl Source) -> Vec<f64> {
    let mean = group_means(source, 1, |_| Some(0)).swap_remove(0);
    mean.unwrap_or_else(|| vec![0.0; source.n_cols()])
}

/// The mean of each class's rows, where each class must have one.
///
/// # Errors
/// A class without rows.
pub fn class_means(
    source: &impl Source,
    n_classes: usize,
    classes: &[usize],
) -> Result<Vec<Vec<f64>>> {
    let means = group_means(source, n_classes, |i| Some(classes[i])).into_iter().enumerate();
    let named = means.map(|(class, mean)| {
        mean.ok_or_else(|| Error::input(format!("class {class} has no training image")))
    });
    named.collect()
}

/// Adds the sum of `x x'` over rows to the lower half of a square matrix.
pub fn add_products(total: &mut Mat<f64>, rows: &[f64]) {
    let d = total.ncols();
    let rows = MatRef::from_row_major_slice(rows, rows.len() / d.max(1), d);
    matmul(
        total.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        rows.transpose(),
        BlockStructure::Rectangular,
        rows,
        BlockStructure::Rectangular,
        1.0,
        Par::rayon(0),
    );
}

/// The mean of `(x - about) (x - about)'` over the rows, and the mean of `x - about`.
fn second_moment(source: &impl Source, about: &[f64]) -> (Mat<f64>, Vec<f64>) {
    /// Blocks of one product: enough for it to be quick, little enough memory.
    const BLOCKS: usize = 8;
    let (n_rows, d) = (source.n_rows(), source.n_cols());
    let mut total = Mat::<f64>::zeros(d, d);
    let mut sum = vec![0.0; d];
    let mut part = vec![0.0; BLOCKS * ROWS * d];
    for first in (0..n_rows).step_by(BLOCKS * ROWS) {
        let n = (BLOCKS * ROWS).min(n_rows - first);
        part.fill(0.0);
        part.par_chunks_mut((ROWS * d).max(1)).enumerate().for_each(|(block, out)| {
            let start = block * ROWS;
            if start < n {
                let rows = ROWS.min(n - start);
                source.fill(first + start, rows, out);
                for row in out[..rows * d].chunks_exact_mut(d.max(1)) {
                    subtract(row, about);
                }
            }
        });
        for row in part[..n * d].chunks_exact(d.max(1)) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
        add_products(&mut total, &part[..n * d]);
    }
    let n = n_rows.max(1) as f64;
    sum.iter_mut().for_each(|sum| *sum /= n);
    (Mat::from_fn(d, d, |i, j| total[(i.max(j), i.min(j))] / n), sum)
}

/// The mean of `x x'` over the rows.
pub fn scatter(source: &impl Source) -> Mat<f64> {
    second_moment(source, &vec![0.0; source.n_cols()]).0
}

/// Mean and covariance (divided by the number) of the rows, from one pass over them.
pub fn moments(source: &impl Source) -> (Vec<f64>, Mat<f64>) {
    // Sums are taken about a mean of few rows, which is near enough to the mean of all for nothing
    // to be lost when they are moved there.
    let (n, d) = (ROWS.min(source.n_rows()), source.n_cols());
    let mut first = vec![0.0; ROWS * d];
    source.fill(0, n, &mut first);
    let mut near = vec![0.0; d];
    for row in first[..n * d].chunks_exact(d.max(1)) {
        near.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / n as f64);
    }
    let (moment, off) = second_moment(source, &near);
    let covariance = Mat::from_fn(d, d, |i, j| moment[(i, j)] - off[i] * off[j]);
    near.iter_mut().zip(off).for_each(|(mean, off)| *mean += off);
    (near, covariance)
}

/// Rows of numbers as they are saved, row-major.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub struct Table {
    n_rows: usize,
    n_cols: usize,
    values: Vec<f64>,
}

impl Table {
    /// The columns of a matrix, each as a row.
    pub fn of_columns(matrix: MatRef<'_, f64>) -> Self {
        let (n_cols, n_rows) = (matrix.nrows(), matrix.ncols());
        let values = (0..n_rows).flat_map(|j| (0..n_cols).map(move |i| matrix[(i, j)])).collect();
        Self { n_rows, n_cols, values }
    }

    /// Whether there are so many columns, and as many values as the sizes say.
    fn has_columns(&self, n_cols: usize) -> bool {
        self.n_cols == n_cols && self.n_rows.checked_mul(n_cols) == Some(self.values.len())
    }
}

/// Directions in which rows vary, those of most variance first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub struct Principal {
    /// Filled up with zeros to whole groups.
    components: Table,
    /// The variance along each.
    variances: Vec<f64>,
}

impl Principal {
    /// The principal components of a covariance.
    ///
    /// # Errors
    /// A covariance with values that are not finite.
    pub fn of(covariance: MatRef<'_, f64>) -> Result<Self> {
        let (variances, vectors) = eigen(covariance)?;
        let mut components = Table::of_columns(vectors.as_ref().reverse_cols());
        components.n_rows = components.n_rows.next_multiple_of(GROUP);
        components.values.resize(components.n_rows * components.n_cols, 0.0);
        let variances = variances.into_iter().rev().map(|variance| variance.max(0.0)).collect();
        Ok(Self { components, variances })
    }

    /// Whether a saved one is whole and for rows of `n_cols` numbers.
    pub fn fits(&self, n_cols: usize) -> bool {
        let n_rows = self.len().checked_next_multiple_of(GROUP);
        self.components.has_columns(n_cols) && n_rows == Some(self.components.n_rows)
    }

    /// Number of components.
    pub fn len(&self) -> usize {
        self.variances.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.variances.is_empty()
    }

    /// How many components explain at least this part of the variance; 0 where nothing varies.
    pub fn explaining(&self, part: f64) -> usize {
        let total: f64 = self.variances.iter().sum();
        if total <= 0.0 {
            return 0;
        }
        let mut so_far = 0.0;
        let enough = |variance: &f64| {
            so_far += variance;
            so_far / total >= part
        };
        self.variances.iter().position(enough).map_or(self.len(), |last| last + 1)
    }

    /// For each row, its squared length and the squared length of its part along the first `q`
    /// components for each `q`; what is found for one does not depend on the others.
    ///
    /// # Shapes
    /// Returns `[row, 1 + number of qs]`.
    pub fn energies(&self, source: &impl Source, qs: &[usize]) -> Vec<f64> {
        let (d, width) = (source.n_cols(), 1 + qs.len());
        let most = qs.iter().copied().max().unwrap_or(0).min(self.len());
        let mut out = vec![0.0; source.n_rows() * width];
        out.par_chunks_mut(ROWS * width).enumerate().for_each_init(
            || (vec![0.0; ROWS * d], vec![0.0; ROWS * GROUP]),
            |(rows, along), (block, out)| {
                let n = out.len() / width;
                rows.fill(0.0);
                source.fill(block * ROWS, n, rows);
                for (row, out) in rows.chunks_exact(d.max(1)).zip(out.chunks_exact_mut(width)) {
                    out[0] = row.iter().map(|x| x * x).sum();
                }
                let mut so_far = [0.0; ROWS];
                for first in (0..most).step_by(GROUP) {
                    let group = &self.components.values[first * d..(first + GROUP) * d];
                    multiply(rows, group, d, along);
                    let along = along.chunks_exact(GROUP).zip(out.chunks_exact_mut(width));
                    for ((along, out), so_far) in along.zip(&mut so_far) {
                        for (component, z) in (first..most).zip(along) {
                            *so_far += z * z;
                            for (out, &q) in out[1..].iter_mut().zip(qs) {
                                if q == component + 1 {
                                    *out = *so_far;
                                }
                            }
                        }
                    }
                }
            },
        );
        out
    }
}

/// The variance that rounding makes of `n` equal rows with this mean.
pub fn rounding_noise(n: usize, mean: &[f64]) -> f64 {
    mean.iter().map(|x| (n as f64 * f64::EPSILON * x).powi(2)).sum()
}

/// Points in a space in which Euclidean distances are the Mahalanobis distances of rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub struct Whitened {
    centre: Vec<f64>,
    /// `[rank, n_cols]`
    basis: Table,
    /// Whitened about the centre, `[n_points, rank]`.
    points: Table,
    /// The squared length of each point.
    squares: Vec<f64>,
}

impl Whitened {
    /// Of points, with a matrix as [`whitening`](super::linalg::whitening) gives it.
    pub fn new(centre: Vec<f64>, root: MatRef<'_, f64>, points: &[Vec<f64>]) -> Self {
        let (d, rank) = (root.nrows(), root.ncols());
        let along = |point: &[f64], j: usize| -> f64 {
            (0..d).map(|i| (point[i] - centre[i]) * root[(i, j)]).sum()
        };
        let values: Vec<f64> =
            points.iter().flat_map(|point| (0..rank).map(move |j| along(point, j))).collect();
        let square = |i: usize| values[i * rank..(i + 1) * rank].iter().map(|z| z * z).sum();
        let squares = (0..points.len()).map(square).collect();
        let points = Table { n_rows: points.len(), n_cols: rank, values };
        Self { centre, basis: Table::of_columns(root), points, squares }
    }

    /// Numbers of a row.
    pub fn n_cols(&self) -> usize {
        self.centre.len()
    }

    /// Whether a saved one is whole.
    pub fn is_whole(&self) -> bool {
        self.basis.has_columns(self.centre.len())
            && self.points.has_columns(self.basis.n_rows)
            && self.squares.len() == self.points.n_rows
    }

    /// The squared Mahalanobis distance of each row to the nearest point.
    pub fn nearest(&self, source: &impl Source) -> Vec<f64> {
        let (d, rank, n_points) = (self.n_cols(), self.basis.n_rows, self.points.n_rows);
        let mut nearest = vec![0.0; source.n_rows()];
        nearest.par_chunks_mut(ROWS).enumerate().for_each_init(
            || (vec![0.0; ROWS * d], vec![0.0; ROWS * rank], vec![0.0; ROWS * n_points]),
            |(rows, along, products), (block, nearest)| {
                rows.fill(0.0);
                source.fill(block * ROWS, nearest.len(), rows);
                for row in rows.chunks_exact_mut(d.max(1)) {
                    subtract(row, &self.centre);
                }
                multiply(rows, &self.basis.values, d, along);
                multiply(along, &self.points.values, rank, products);
                for (i, nearest) in nearest.iter_mut().enumerate() {
                    let own: f64 = along[i * rank..(i + 1) * rank].iter().map(|z| z * z).sum();
                    let products = &products[i * n_points..(i + 1) * n_points];
                    let squared = |(square, product): (&f64, &f64)| own + square - 2.0 * product;
                    let least = self.squares.iter().zip(products).map(squared);
                    *nearest = least.fold(f64::INFINITY, f64::min).max(0.0);
                }
            },
        );
        nearest
    }
}

#[cfg(test)]
mod tests {
    use super::super::linalg::whitening;
    use super::*;

    fn value(i: usize) -> f32 {
        (i * 7919 % 1013) as f32 / 1013.0 + 3.0
    }

    #[test]
    fn moments_are_those_of_all_rows() {
        let (n, d) = (1100, 5);
        let values: Vec<f32> = (0..n * d).map(|i| value(i) * (1 + i / 3000) as f32).collect();
        let rows = Matrix::new(&values, n, d).unwrap();
        let source = plain(rows);
        let (mean, covariance) = moments(&source);
        let column = |j: usize| rows.rows().map(move |row| f64::from(row[j]));
        for i in 0..d {
            let expected = column(i).sum::<f64>() / n as f64;
            assert!((mean[i] - expected).abs() < 1e-12);
            for j in 0..d {
                let product = |(x, y): (f64, f64)| (x - mean[i]) * (y - mean[j]);
                let expected = column(i).zip(column(j)).map(product).sum::<f64>() / n as f64;
                assert!((covariance[(i, j)] - expected).abs() < 1e-12);
                let of_squares = column(i).zip(column(j)).map(|(x, y)| x * y).sum::<f64>();
                let got = scatter(&source)[(i, j)];
                assert!((got - of_squares / n as f64).abs() < 1e-11);
            }
        }
    }

    #[test]
    fn components_explain_variance_in_order() {
        let covariance = Mat::from_fn(3, 3, |i, j| if i == j { [1.0, 6.0, 3.0][i] } else { 0.0 });
        let principal = Principal::of(covariance.as_ref()).unwrap();
        for (part, expected) in [(0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3), (1.0, 3)] {
            assert_eq!(principal.explaining(part), expected, "{part}");
        }
        let values = [1.0, 2.0, 3.0, 0.0, 0.0, 0.0];
        let rows = Matrix::new(&values, 2, 3).unwrap();
        let source = plain(rows);
        let expected = [14.0, 0.0, 13.0, 4.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(principal.energies(&source, &[0, 2, 1]), expected);
        let nothing = Mat::<f64>::zeros(2, 2);
        assert_eq!(Principal::of(nothing.as_ref()).unwrap().explaining(0.5), 0);
    }

    #[test]
    fn distances_are_to_the_nearest_point() {
        let root = Mat::from_fn(2, 1, |i, _| if i == 0 { 2.0 } else { 0.0 });
        let points = [vec![1.0, 5.0], vec![4.0, 0.0]];
        let whitened = Whitened::new(vec![1.0, 1.0], root.as_ref(), &points);
        let values: Vec<f32> = (0..70).flat_map(|i| [i as f32, -7.0]).collect();
        let rows = Matrix::new(&values, 70, 2).unwrap();
        let source = plain(rows);
        for (i, got) in whitened.nearest(&source).into_iter().enumerate() {
            let expected = (i as f64 - 1.0).powi(2).min((i as f64 - 4.0).powi(2)) * 4.0;
            assert!((got - expected).abs() < 1e-9, "{i}: {got}, expected {expected}");
        }
    }

    #[test]
    fn without_variance_every_distance_is_zero() {
        let root = whitening(Mat::<f64>::zeros(2, 2).as_ref(), 0.0).unwrap();
        let whitened = Whitened::new(vec![0.0; 2], root.as_ref(), &[vec![1.0, 1.0]]);
        let values = [3.0, 4.0];
        let rows = Matrix::new(&values, 1, 2).unwrap();
        let source = units(rows);
        assert_eq!(whitened.nearest(&source), [0.0]);
    }
}
