//! Mahalanobis distance to the nearest class in several layers.
//!
//! Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
//! Attacks", 2018, as pytorch-ood's `MultiMahalanobis`: without a step on the image. For each layer
//! `i`, `z` is the mean over positions of its activation, `mu_c` the mean of class `c`, and `S` the
//! covariance that all classes share, divided by N - 1, plus 1e-6 on its diagonal. Score:
//! `sum_i alpha_i min_c (z - mu_c)' S^(-1) (z - mu_c) / 2`.
//!
//! Layers are by default the stages that the network consists of, and all count 1, as there; the
//! paper weights them by a logistic regression on OOD images. OpenOOD's `mds_ensemble` with a step
//! of 0 differs in the covariance: divided by N, its small eigenvalues dropped. Training images go
//! through the network once, batch by batch, and leave sums of the size of a covariance. A class
//! without training images is an error.

use faer::Mat;
use oodbench_sdk::prelude::*;
use oodbench_sdk::{ImageBatch, Layer};

use crate::numeric::check;
use crate::numeric::class_sums::ClassSums;
use crate::numeric::linalg::eigen;
use crate::numeric::moments::{Whitened, plain, single};
use crate::numeric::state;

/// Images that go through the network at a time.
const IMAGES: usize = 64;

/// Added to the diagonal of each covariance.
const RIDGE: f64 = 1e-6;

/// Parameters of [`MdsMulti`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    layers: Vec<String>,
    alpha: Vec<f64>,
}

/// Mahalanobis distance in several layers.
pub struct MdsMulti {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    layers: Vec<String>,
    /// For each layer.
    classes: Vec<Whitened>,
}

/// The classes of one layer, where distances to them are Euclidean.
///
/// # Errors
/// A class without training images, values that are not finite.
fn whitened(sums: &ClassSums) -> Result<Whitened> {
    if let Some(class) = sums.empty_class() {
        return Err(Error::input(format!("class {class} has no training image")));
    }
    let (n, d) = (sums.len() as f64, sums.origin().len());
    let unbiased = n / (n - 1.0).max(1.0);
    let (variances, vectors) = eigen(sums.within().as_ref())?;
    let root = Mat::from_fn(d, d, |i, j| {
        vectors[(i, j)] / ((variances[j] * unbiased).max(0.0) + RIDGE).sqrt()
    });
    let means = sums.means();
    let point = |row: usize| {
        let parts = sums.origin().iter().enumerate();
        parts.map(|(j, origin)| means[(row, j)] + origin).collect()
    };
    let points: Vec<Vec<f64>> = (0..means.nrows()).map(point).collect();
    Ok(Whitened::new(sums.origin().to_vec(), root.as_ref(), &points))
}

/// The mean over positions of each channel, `[n, channels]`.
///
/// # Errors
/// Activations without channels, or that are not finite.
fn pooled(layer: &Layer) -> Result<(Vec<f32>, usize)> {
    let [n, channels, ref positions @ ..] = layer.shape[..] else {
        let (name, shape) = (&layer.name, &layer.shape);
        return Err(Error::input(format!(
            "layer `{name}` expected [n, channels, …], got {shape:?}"
        )));
    };
    let size: usize = positions.iter().product();
    if channels == 0 || size == 0 || layer.data.len() != n * channels * size {
        let (name, shape) = (&layer.name, &layer.shape);
        return Err(Error::input(format!("layer `{name}` expected activations, got {shape:?}")));
    }
    let mean = |xs: &[f32]| (xs.iter().map(|&x| f64::from(x)).sum::<f64>() / size as f64) as f32;
    let means: Vec<f32> = layer.data.chunks_exact(size).map(mean).collect();
    check::finite(Matrix::new(&means, n, channels)?, &format!("activations of `{}`", layer.name))?;
    Ok((means, channels))
}

impl MdsMulti {
    /// The layers that are asked for, each of them once.
    fn layers(&self) -> Result<Vec<String>> {
        let layers = match self.params.layers.is_empty() {
            true => self.host.layer_groups()?.stages,
            false => self.params.layers.clone(),
        };
        if layers.is_empty() {
            return Err(Error::input(
                "the classifier has no stages\n\nhint: name layers in `layers`",
            ));
        }
        let (n, n_alpha) = (layers.len(), self.params.alpha.len());
        if n_alpha != 0 && n_alpha != n {
            return Err(Error::parameter("alpha", &format!("one for each of {n} layers"), n_alpha));
        }
        Ok(layers)
    }

    fn alpha(&self, layer: usize) -> f64 {
        self.params.alpha.get(layer).copied().unwrap_or(1.0)
    }

    fn activations(&self, images: ImageBatch<'_>, layers: &[String]) -> Result<Vec<Layer>> {
        let names: Vec<&str> = layers.iter().map(String::as_str).collect();
        self.host.layers(images, &names)
    }
}

impl Detector for MdsMulti {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "mds_multi",
            title: "Mahalanobis distance in several layers",
            family: "distance",
            summary: "the sum over layers of half the Mahalanobis distance to the nearest class mean",
            paper: "Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
            year: 2018,
            url: "https://arxiv.org/abs/1807.03888",
            needs: Needs::IMAGES.and(Needs::LAYERS).and(Needs::LABELS).and(Needs::TRAIN),
            params: vec![
                Param::new(
                    "layers",
                    "names of layers; by default the stages",
                    "pytorch-ood is told",
                ),
                Param::new("alpha", "how much each layer counts; by default 1", "pytorch-ood"),
            ],
            // The only layer's channels are single pixels. Within classes the first varies by 1/12
            // and the others not at all: (1/4)^2 / (1/12 + 1e-6) / 2 and 2^-20 / 1e-6 / 2.
            example: Example::of_images(
                &[&[0.5, 0.5, 0.5], &[0.25, 0.5, 0.5], &[0.5, 0.5, 0.500_976_56]],
                &[0.0, 0.3749955, 0.47683716],
            )
            .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
            .train_images(
                &[&[0.25, 0.5, 0.5], &[0.75, 0.5, 0.5], &[0.25, 1.0, 0.5], &[0.75, 1.0, 0.5]],
                &[0, 0, 1, 1],
            ),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if let Some(alpha) = params.alpha.iter().find(|alpha| !alpha.is_finite()) {
            return Err(Error::parameter("alpha", "finite numbers", alpha));
        }
        let twice = |(i, name): &(usize, &String)| params.layers[..*i].contains(name);
        if let Some((_, name)) = params.layers.iter().enumerate().find(twice) {
            return Err(Error::parameter("layers", "each layer once", name));
        }
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let (train, n_classes) = (data.train(), data.n_classes());
        if train.is_empty() {
            return Err(Error::input("there are no training images"));
        }
        let classes = check::classes(train.labels()?, n_classes)?;
        let layers = self.layers()?;
        let (height, width) = self.host.image_size()?;
        let mut sums: Vec<ClassSums> = Vec::new();
        for first in (0..train.len()).step_by(IMAGES) {
            let n = IMAGES.min(train.len() - first);
            let images = self.host.images(train.id(), first, n)?;
            let images = ImageBatch::new(&images, height, width)?;
            for (i, layer) in self.activations(images, &layers)?.iter().enumerate() {
                let (means, channels) = pooled(layer)?;
                let means: Vec<f64> = means.into_iter().map(f64::from).collect();
                if sums.len() <= i {
                    sums.push(ClassSums::around(&means, channels, n_classes));
                }
                sums[i].add(&means, &classes[first..first + n])?;
            }
            self.host.progress(first + n, train.len())?;
        }
        let classes: Result<Vec<Whitened>> = sums.iter().map(whitened).collect();
        self.fitted = Some(Fitted { layers, classes: classes? });
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let fitted = state::fitted(self.fitted.as_ref())?;
        if batch.is_empty() {
            return Ok(());
        }
        let images = batch.images()?;
        let [_, channels, height, width] = images.shape();
        let parts = images.values().chunks(IMAGES * channels * height * width);
        for (scores, part) in scores.chunks_mut(IMAGES).zip(parts) {
            let images = ImageBatch::new(part, height, width)?;
            let mut totals = vec![0.0; scores.len()];
            let layers = self.activations(images, &fitted.layers)?;
            for (i, (layer, classes)) in layers.iter().zip(&fitted.classes).enumerate() {
                let (means, channels) = pooled(layer)?;
                let rows = check::features(
                    Matrix::new(&means, scores.len(), channels)?,
                    classes.n_cols(),
                )?;
                let nearest = classes.nearest(&plain(rows));
                for (total, distance) in totals.iter_mut().zip(nearest) {
                    *total += self.alpha(i) * distance / 2.0;
                }
            }
            for (score, total) in scores.iter_mut().zip(totals) {
                *score = single(total);
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = |fitted: &Fitted| {
            fitted.layers.len() == fitted.classes.len()
                && fitted.classes.iter().all(Whitened::is_whole)
        };
        self.fitted = state::load(bytes)?.filter(whole);
        state::fitted(self.fitted.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::formula::{N_CLASSES, Rows, assert_scores};

    /// Expected scores: pytorch-ood's formula in numpy, from the same data as the activations of a
    /// layer.
    #[test]
    fn scores_are_those_of_pytorch_ood() {
        let (train, test) = (Rows::train(), Rows::test());
        let (features, classes) = (train.features(), train.classes());
        let (d, values) = (features.n_cols(), features.values().iter().map(|&x| f64::from(x)));
        let values: Vec<f64> = values.collect();
        let mut sums = ClassSums::around(&values[..7 * d], d, N_CLASSES);
        for rows in [0..7, 7..50, 50..60] {
            sums.add(&values[rows.start * d..rows.end * d], &classes[rows]).unwrap();
        }
        let nearest = whitened(&sums).unwrap().nearest(&plain(test.features()));
        let got: Vec<f32> = nearest.into_iter().map(|distance| single(distance / 2.0)).collect();
        assert_scores(
            &got,
            &[3.890863783, 3.565007985, 4.337391277, 4.029404937, 5.753129702, 3.239411809],
        );
    }

    #[test]
    fn channels_are_pooled_over_all_positions() {
        let layer = Layer {
            name: "input".to_owned(),
            data: vec![1.0, 3.0, 0.0, 1.0, 5.0, 5.0, -1.0, 0.0],
            shape: vec![2, 2, 1, 2],
        };
        assert_eq!(pooled(&layer).unwrap(), (vec![2.0, 0.5, 5.0, -0.5], 2));
        let flat = Layer { shape: vec![8], ..layer.clone() };
        assert!(pooled(&flat).is_err());
        let nan = Layer { data: vec![f32::NAN; 8], ..layer };
        let message = pooled(&nan).unwrap_err().to_string();
        assert!(message.starts_with("activations of `input` expected finite values"), "{message}");
    }
}
