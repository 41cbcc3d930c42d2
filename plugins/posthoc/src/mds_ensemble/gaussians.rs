//! The classes as Gaussians with one covariance at one layer: fitted batch by batch, and asked for
//! the nearest.

use faer::Mat;
use oodbench_sdk::Layer;
use oodbench_sdk::prelude::*;

use super::reading::Reading;
use super::settings::{Reduction, Settings};
use crate::numeric::class_sums::ClassSums;
use crate::numeric::linalg::{Stored, eigen, whitening};

/// The classes as Gaussians with one covariance, at one layer.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub(super) struct Gaussians {
    pub(super) layer: String,
    pub(super) reading: Reading,
    /// Takes vectors to where the covariance is the identity, `[columns, rank]`.
    whitening: Stored,
    /// Class means there, `[n_classes, rank]`, of classes that have images.
    means: Stored,
}

/// The class that an image is nearest to.
pub(super) struct Nearest {
    /// Squared.
    pub(super) distance: f64,
    /// From its mean, where the covariance is the identity.
    offset: Vec<f64>,
}

impl Gaussians {
    /// Of vectors that were summed up.
    ///
    /// # Errors
    /// More principal components than columns, values that are not finite.
    pub(super) fn new(sums: &ClassSums, settings: &Settings) -> Result<Self> {
        let d = sums.origin().len();
        let basis = match settings.reduction {
            Reduction::None => Mat::identity(d, d),
            Reduction::Pca(k) if k > d => {
                let expected = format!("at most {d} principal components");
                return Err(Error::parameter("reduce", &expected, k));
            }
            Reduction::Pca(k) => {
                // Eigenvalues ascend.
                let (_, vectors) = eigen(sums.total().as_ref())?;
                Mat::from_fn(d, k, |i, j| vectors[(i, d - 1 - j)])
            }
        };
        let within = basis.transpose() * sums.within() * &basis;
        let whitening = basis * whitening(within.as_ref(), 0.0)?;
        let mut means = sums.means();
        for (j, origin) in sums.origin().iter().enumerate() {
            means.col_as_slice_mut(j).iter_mut().for_each(|mean| *mean += origin);
        }
        Ok(Self {
            layer: settings.name.clone(),
            reading: settings.reading,
            means: (&(means * &whitening)).into(),
            whitening: (&whitening).into(),
        })
    }

    /// Whether a saved one is whole.
    pub(super) fn is_sound(&self) -> Result<bool> {
        let (whitening, means) = (self.whitening.view()?, self.means.view()?);
        Ok(means.nrows() > 0 && means.ncols() == whitening.ncols())
    }

    /// The nearest class of each image; the first of equally near ones.
    pub(super) fn nearest(&self, layer: &Layer) -> Result<Vec<Nearest>> {
        let vectors = self.reading.of(layer)?;
        let (whitening, means) = (self.whitening.view()?, self.means.view()?);
        if vectors.n_columns != whitening.nrows() {
            let (expected, got, name) = (whitening.nrows(), vectors.n_columns, &self.layer);
            return Err(Error::input(format!(
                "layer `{name}` expected {expected} values, got {got}"
            )));
        }
        let (zs, rank) = (self.whitening.products(&vectors.values)?, whitening.ncols());
        let of_image = |i: usize| {
            let part = |c: usize, j: usize| zs[i * rank + j] - means[(c, j)];
            let distance = |c: usize| (0..rank).map(|j| part(c, j).powi(2)).sum::<f64>();
            let first = (0, distance(0));
            let (nearest, distance) = (1..means.nrows()).fold(first, |best, c| {
                let distance = distance(c);
                if distance < best.1 { (c, distance) } else { best }
            });
            Nearest { distance, offset: (0..rank).map(|j| part(nearest, j)).collect() }
        };
        Ok((0..vectors.values.len() / vectors.n_columns).map(of_image).collect())
    }

    /// The direction in which the distance grows with the vector; its greatest part is 1, as only
    /// signs matter and `f32` could not hold some lengths.
    pub(super) fn slope(&self, nearest: &Nearest) -> Result<Vec<f64>> {
        let whitening = self.whitening.view()?;
        let part = |i: usize| -> f64 {
            nearest.offset.iter().enumerate().map(|(j, z)| whitening[(i, j)] * z).sum()
        };
        let slope: Vec<f64> = (0..whitening.nrows()).map(part).collect();
        let greatest = slope.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let scale = if greatest > 0.0 { 1.0 / greatest } else { 0.0 };
        Ok(slope.into_iter().map(|x| x * scale).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::layer;
    use super::*;

    fn settings(reading: Reading, reduction: Reduction) -> Settings {
        Settings { name: "a".to_owned(), reading, reduction }
    }

    #[test]
    fn distances_depend_neither_on_the_batches_of_the_fit_nor_on_those_of_the_score() {
        let value = |i: usize| 7.0 + (i * 7919 % 101) as f64 / 101.0;
        let all: Vec<f64> = (0..60).map(value).collect();
        let classes: Vec<usize> = (0..20).map(|i| i % 2 * 2).collect();
        let values: Vec<f32> = all.iter().map(|&x| x as f32).collect();
        let distances = |gaussians: &Gaussians, values: &[f32]| -> Vec<f64> {
            let nearest = gaussians.nearest(&layer(values, &[values.len() / 3, 3])).unwrap();
            nearest.iter().map(|nearest| nearest.distance).collect()
        };
        let fitted = |ends: &[usize]| {
            let mut sums = ClassSums::around(&all[..3 * ends[0]], 3, 3);
            let mut first = 0;
            for &end in ends {
                sums.add(&all[3 * first..3 * end], &classes[first..end]).unwrap();
                first = end;
            }
            assert_eq!(sums.empty_class(), Some(1));
            Gaussians::new(&sums, &settings(Reading::Mean, Reduction::None)).unwrap()
        };
        let gaussians = fitted(&[20]);
        let at_once = distances(&gaussians, &values);
        for (got, expected) in distances(&fitted(&[3, 4, 20]), &values).iter().zip(&at_once) {
            assert!((got - expected).abs() < 1e-9 * expected.max(1.0), "{got} {expected}");
        }
        // The mean squared distance to the own class is the number of columns.
        assert!(at_once.iter().sum::<f64>() <= 20.0 * 3.0 + 1e-9);
        for (row, expected) in values.chunks_exact(3).zip(at_once) {
            assert_eq!(distances(&gaussians, row), [expected]);
        }
    }
}
