//! Mahalanobis distances at several layers, after a step towards the nearest class.
//!
//! Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
//! Adversarial Attacks", 2018. Each layer's activation is read off as one vector `f`, the spatial
//! means of its channels (`mean`), or these and the channels' unbiased variances (`stat`), where
//! asked for on the greatest principal components alone (`pca_K`). With class means `mu_c` and the
//! pseudo-inverse `P` of the covariance that all classes share (divided by N), an image's distance
//! is `M(x) = min_c (f - mu_c)' P (f - mu_c)`. Each layer has its own image `x'`, one step from `x`
//! along the signs that lower `M`, of size `noise / 0.5` on normalised pixels. Score:
//! `sum_i alpha_i M_i(x'_i) / 2`.
//!
//! The default is OpenOOD's: the output of the stem alone, with weight 1. That is the first entry
//! of the reference's list of maps, and explains its low place in the leaderboard; late layers tell
//! more. `layers=[]` stands for every stage of the classifier. With `alpha=[]` the weights are
//! those of a logistic regression of ID against OOD validation images, as in the paper, so that
//! this detector has then seen OOD images. They may be negative. A list of one entry stands for
//! every layer.
//!
//! The reference collects the vectors of all images in lists; here means and covariances are summed
//! up batch by batch, in `f64` around the mean of the first. It computes the pseudo-inverse in
//! `f64` with scipy's `pinvh` and then rounds it to `f32`; the cutoff is the same here, and nothing
//! is rounded. Its `stat` is NaN for maps of one pixel; here their variance is 0, and as with every
//! vector's part that never varies it does not count. A class without training images is left out,
//! with a warning. `flat`, `lda` and `capca` are not here.
mod gaussians;
mod reading;
mod settings;

use oodbench_sdk::prelude::*;
use oodbench_sdk::{ImageBatch, Layer};

use crate::numeric::check;
use crate::numeric::class_sums::ClassSums;
use crate::numeric::logistic::Cases;
use crate::numeric::moments::single;
use crate::numeric::state;
use gaussians::{Gaussians, Nearest};
pub use reading::Reading;
use reading::{Vectors, channels};
use settings::spread;
pub use settings::{Params, Reduction};

/// Images whose activations are held at a time.
const IMAGES: usize = 32;
/// What the reference divides the step by, where the data's standard deviation is meant.
const STEP_DIVISOR: f32 = 0.5;

/// Mahalanobis distances at several layers.
pub struct MdsEnsemble {
    params: Params,
    host: Host,
    fitted: Option<Fitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Fitted {
    layers: Vec<Gaussians>,
    alpha: Vec<f64>,
}

impl Fitted {
    fn is_sound(&self) -> Result<bool> {
        for layer in &self.layers {
            if !layer.is_sound()? {
                return Ok(false);
            }
        }
        Ok(!self.layers.is_empty() && self.alpha.len() == self.layers.len())
    }
}

impl Detector for MdsEnsemble {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "mds_ensemble",
            title: "Mahalanobis distance at several layers",
            family: "gradient",
            summary: "weighted Mahalanobis distances at several layers, each after a step towards the nearest class",
            paper: "Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
            year: 2018,
            url: "https://arxiv.org/abs/1807.03888",
            needs: Needs::IMAGES
                .and(Needs::LABELS)
                .and(Needs::LAYERS)
                .and(Needs::GRADIENT)
                .and(Needs::TRAIN)
                .and(Needs::VAL)
                .and(Needs::VAL_OOD),
            params: vec![
                Param::new("noise", "half the step on normalised pixels", "OpenOOD v1.5"),
                Param::new(
                    "layers",
                    "whose activations count; all stages if empty",
                    "OpenOOD v1.5",
                ),
                Param::new("types", "what is read off each: `mean` or `stat`", "OpenOOD v1.5"),
                Param::new(
                    "reduce",
                    "`none`, or `pca_K` for K principal components",
                    "OpenOOD v1.5",
                ),
                Param::new(
                    "alpha",
                    "weight of each layer; fitted to OOD validation images if empty",
                    "OpenOOD v1.5",
                ),
            ],
            // Means of the channels are (0.2, 0, 0) and (0, 0.2, 0) for the classes, and only the
            // third varies within them, by 0.1 on either side: P is 100 there. The step of 0.1
            // takes the first image's third channel from 0.5 to 0.4, the second's from -0.3 to -0.2.
            example: Example::of_images(&[&[0.1, 0.1, 0.5], &[0.2, 0.0, -0.3]], &[8.0, 2.0])
                .head(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]], &[0.0, 0.0])
                .train_images(
                    &[&[0.2, 0.0, 0.1], &[0.2, 0.0, -0.1], &[0.0, 0.2, 0.1], &[0.0, 0.2, -0.1]],
                    &[0, 0, 1, 1],
                )
                .val_images(&[&[0.2, 0.0, 0.1]])
                .val_ood_images(&[&[0.2, 0.0, 0.9]])
                .param("noise", 0.05)
                .param("layers", vec!["input"]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        if !(params.noise >= 0.0 && params.noise.is_finite()) {
            return Err(Error::parameter("noise", "a number from 0", params.noise));
        }
        if let Some(alpha) = params.alpha.iter().find(|alpha| !alpha.is_finite()) {
            return Err(Error::parameter("alpha", "finite numbers", alpha));
        }
        if let Some(twice) =
            (1..params.layers.len()).find(|&i| params.layers[..i].contains(&params.layers[i]))
        {
            return Err(Error::parameter("layers", "each once", &params.layers[twice]));
        }
        // How many stages there are is known when there is a classifier.
        if !params.layers.is_empty() {
            params.by_layer(params.layers.clone())?;
        }
        Ok(Self { params, host, fitted: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let layers = match self.params.layers.as_slice() {
            [] => self.host.layer_groups()?.stages,
            layers => layers.to_vec(),
        };
        let layers = self.params.by_layer(layers)?;
        let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
        let train = data.train();
        if train.is_empty() {
            return Err(Error::input("there are no training images"));
        }
        let classes = check::classes(train.labels()?, data.n_classes())?;
        let mut sums: Vec<ClassSums> = Vec::new();
        self.each_part(train, |first, images| {
            let taken = self.host.layers(images, &names)?;
            let labels = &classes[first..first + images.len()];
            for (i, (layer, settings)) in taken.iter().zip(&layers).enumerate() {
                let vectors = settings.reading.of(layer)?;
                if sums.len() == i {
                    let Vectors { values, n_columns } = &vectors;
                    sums.push(ClassSums::around(values, *n_columns, data.n_classes()));
                }
                sums[i].add(&vectors.values, labels)?;
            }
            Ok(())
        })?;
        if let Some(class) = sums.iter().find_map(ClassSums::empty_class) {
            self.host.warn(&format!("class {class} has no training image and is left out"));
        }
        let gaussians = sums.iter().zip(&layers).map(|(sums, layer)| {
            Gaussians::new(sums, layer)
                .map_err(|err| Error::input(format!("layer `{}`: {err}", layer.name)))
        });
        let mut fitted = Fitted { layers: gaussians.collect::<Result<_>>()?, alpha: Vec::new() };
        fitted.alpha = match self.params.alpha.as_slice() {
            [] => self.fit_alpha(&fitted.layers, data)?,
            alpha => spread(alpha, layers.len(), "alpha")?,
        };
        self.fitted = Some(fitted);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let Fitted { layers, alpha } = state::fitted(self.fitted.as_ref())?;
        let images = batch.images()?;
        let [_, _, height, width] = images.shape();
        let of_image = 3 * height * width;
        let parts = images.values().chunks(IMAGES * of_image);
        for (part, scores) in parts.zip(scores.chunks_mut(IMAGES)) {
            let part = ImageBatch::new(part, height, width)?;
            let distances = self.distances(layers, part)?;
            for (score, distances) in scores.iter_mut().zip(distances.chunks_exact(alpha.len())) {
                *score = single(alpha.iter().zip(distances).map(|(a, d)| a * 0.5 * d).sum());
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.fitted.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let fitted: Option<Fitted> = state::load(bytes)?;
        let sound = fitted.as_ref().map(Fitted::is_sound).transpose()?;
        if sound != Some(true) {
            return Err(Error::input("the saved state holds layers of another size"));
        }
        self.fitted = fitted;
        Ok(())
    }
}

impl MdsEnsemble {
    /// Calls `f` with each part of a split's images and the place of its first.
    fn each_part(
        &self,
        split: Split<'_>,
        mut f: impl FnMut(usize, ImageBatch<'_>) -> Result<()>,
    ) -> Result<()> {
        let (height, width) = self.host.image_size()?;
        for first in (0..split.len()).step_by(IMAGES) {
            self.host.progress(first, split.len())?;
            let images = self.host.images(split.id(), first, IMAGES.min(split.len() - first))?;
            f(first, ImageBatch::new(&images, height, width)?)?;
        }
        Ok(())
    }

    /// Weights of the layers by which ID and OOD validation images are told apart.
    fn fit_alpha(&self, layers: &[Gaussians], data: &FitData<'_>) -> Result<Vec<f64>> {
        let (mut rows, mut is_positive) = (Vec::new(), Vec::new());
        for (split, positive) in [(data.val(), true), (data.val_ood()?, false)] {
            self.each_part(split, |_, images| {
                rows.extend(self.distances(layers, images)?.iter().map(|d| -0.5 * d));
                is_positive.extend(std::iter::repeat_n(positive, images.len()));
                Ok(())
            })?;
        }
        let cases = Cases { rows: &rows, n_columns: layers.len(), is_positive: &is_positive };
        Ok(cases.cross_validated()?.weights)
    }

    /// `M_i(x'_i)` for each image and layer, `[n, n_layers]`.
    fn distances(&self, layers: &[Gaussians], images: ImageBatch<'_>) -> Result<Vec<f64>> {
        let names: Vec<&str> = layers.iter().map(|layer| layer.layer.as_str()).collect();
        let taken = self.host.layers(images, &names)?;
        let mut distances = vec![0.0; images.len() * layers.len()];
        for (i, (gaussians, layer)) in layers.iter().zip(&taken).enumerate() {
            let mut nearest = gaussians.nearest(layer)?;
            if self.params.noise > 0.0 {
                let moved = self.moved(images, layer, gaussians, &nearest)?;
                let [_, _, height, width] = images.shape();
                let moved = ImageBatch::new(&moved, height, width)?;
                let taken = self.host.layers(moved, &names[i..=i])?;
                let layer = taken.first().ok_or_else(|| Error::input("no layer was given"))?;
                nearest = gaussians.nearest(layer)?;
            }
            let column = distances.iter_mut().skip(i).step_by(layers.len());
            column.zip(nearest).for_each(|(out, nearest)| *out = nearest.distance);
        }
        Ok(distances)
    }

    /// The images after a step towards their nearest class at a layer.
    fn moved(
        &self,
        images: ImageBatch<'_>,
        layer: &Layer,
        gaussians: &Gaussians,
        nearest: &[Nearest],
    ) -> Result<Vec<f32>> {
        let mut cotangent = Vec::with_capacity(layer.data.len());
        let per_image = layer.data.len().checked_div(nearest.len()).unwrap_or(0);
        let activations = layer.data.chunks_exact(per_image.max(1));
        for (activation, nearest) in activations.zip(nearest) {
            let slope = gaussians.slope(nearest)?;
            gaussians.reading.pull_back(activation, channels(layer)?, &slope, &mut cotangent);
        }
        let gradient = self.host.vjp(images, &layer.name, &cotangent, &layer.shape)?;
        let std = self.host.normalisation()?.std;
        let [_, n_channels, height, width] = images.shape();
        let (pixels, noise) = (height * width, self.params.noise as f32);
        let step = |(i, (&x, g)): (usize, (&f32, f32))| {
            let size = noise / STEP_DIVISOR * std[i / pixels % n_channels];
            if g >= 0.0 { x - size } else { x + size }
        };
        Ok(images.values().iter().zip(gradient).enumerate().map(step).collect())
    }
}

#[cfg(test)]
mod testing {
    use oodbench_sdk::Layer;

    pub(super) fn layer(data: &[f32], shape: &[usize]) -> Layer {
        Layer { name: "a".to_owned(), data: data.to_vec(), shape: shape.to_vec() }
    }
}
