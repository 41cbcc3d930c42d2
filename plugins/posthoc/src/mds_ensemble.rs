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

use faer::{Mat, MatRef};
use oodbench_sdk::prelude::*;
use oodbench_sdk::{ImageBatch, Layer};

use crate::numeric::check;
use crate::numeric::linalg::{Stored, eigen};
use crate::numeric::logistic::Cases;
use crate::numeric::state;

/// Images whose activations are held at a time.
const IMAGES: usize = 32;
/// What the reference divides the step by, where the data's standard deviation is meant.
const STEP_DIVISOR: f32 = 0.5;

/// How an activation is read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", rename_all = "lowercase")]
pub enum Reading {
    /// Spatial means.
    Mean,
    /// Spatial means, then variances.
    Stat,
}

/// What is left of what was read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", try_from = "String", into = "String")]
pub enum Reduction {
    /// All of it.
    None,
    /// So many principal components, at least 1.
    Pca(usize),
}

impl TryFrom<String> for Reduction {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let components = |text: &str| text.parse().ok().filter(|k| *k > 0);
        match text.strip_prefix("pca_").map(components) {
            None if text == "none" => Ok(Self::None),
            Some(Some(k)) => Ok(Self::Pca(k)),
            _ => Err(format!("`reduce` expected `none` or `pca_K` with K from 1, got `{text}`")),
        }
    }
}

impl From<Reduction> for String {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => "none".to_owned(),
            Reduction::Pca(k) => format!("pca_{k}"),
        }
    }
}

/// Parameters of [`MdsEnsemble`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    noise: f64,
    layers: Vec<String>,
    types: Vec<Reading>,
    reduce: Vec<Reduction>,
    alpha: Vec<f64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            noise: 0.0014,
            layers: vec!["stem".to_owned()],
            types: vec![Reading::Mean],
            reduce: vec![Reduction::None],
            alpha: vec![1.0],
        }
    }
}

/// The entry of each of `n` layers in a list with one for each or one for all.
fn spread<T: Clone>(list: &[T], n: usize, name: &str) -> Result<Vec<T>> {
    match list {
        [one] => Ok(vec![one.clone(); n]),
        list if list.len() == n => Ok(list.to_vec()),
        list => {
            let expected = format!("a list of one entry, or of one for each of {n} layers");
            Err(Error::parameter(name, &expected, format!("{} entries", list.len())))
        }
    }
}

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
            let (whitening, means) = (layer.whitening.view()?, layer.means.view()?);
            if means.nrows() == 0 || means.ncols() != whitening.ncols() {
                return Ok(false);
            }
        }
        Ok(!self.layers.is_empty() && self.alpha.len() == self.layers.len())
    }
}

/// The classes as Gaussians with one covariance, at one layer.
#[derive(Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
struct Gaussians {
    layer: String,
    reading: Reading,
    /// Takes vectors to where the covariance is the identity, `[columns, rank]`.
    whitening: Stored,
    /// Class means there, `[n_classes, rank]`, of classes that have images.
    means: Stored,
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
        let mut moments: Vec<Moments> = Vec::new();
        self.each_part(train, |first, images| {
            let taken = self.host.layers(images, &names)?;
            let labels = &classes[first..first + images.len()];
            for (i, (layer, settings)) in taken.iter().zip(&layers).enumerate() {
                let vectors = settings.reading.of(layer)?;
                if moments.len() == i {
                    moments.push(Moments::around(&vectors, data.n_classes()));
                }
                moments[i].add(&vectors, labels)?;
            }
            Ok(())
        })?;
        if let Some(class) = moments.iter().find_map(|moments| moments.empty_class()) {
            self.host.warn(&format!("class {class} has no training image and is left out"));
        }
        let gaussians = moments.iter().zip(&layers).map(|(moments, layer)| {
            moments
                .gaussians(layer)
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
                let sum: f64 = alpha.iter().zip(distances).map(|(a, d)| a * 0.5 * d).sum();
                *score = sum.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
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

/// What is asked of one layer.
struct Settings {
    name: String,
    reading: Reading,
    reduction: Reduction,
}

impl Params {
    /// The settings of each of these layers.
    fn by_layer(&self, names: Vec<String>) -> Result<Vec<Settings>> {
        let n = names.len();
        if !self.alpha.is_empty() {
            spread(&self.alpha, n, "alpha")?;
        }
        let readings = spread(&self.types, n, "types")?;
        let reductions = spread(&self.reduce, n, "reduce")?;
        let layers = names.into_iter().zip(readings).zip(reductions);
        Ok(layers
            .map(|((name, reading), reduction)| Settings { name, reading, reduction })
            .collect())
    }
}

/// Channels of an activation `[n, channels, …]`.
fn channels(layer: &Layer) -> Result<usize> {
    match layer.shape.as_slice() {
        [_, channels, ..] if *channels > 0 => Ok(*channels),
        shape => {
            let name = &layer.name;
            Err(Error::input(format!("layer `{name}` expected [n, channels, …], got {shape:?}")))
        }
    }
}

/// Vectors, one for each image, row-major.
struct Vectors {
    values: Vec<f64>,
    n_columns: usize,
}

impl Vectors {
    fn view(&self) -> MatRef<'_, f64> {
        let n = self.values.len() / self.n_columns;
        MatRef::from_row_major_slice(&self.values, n, self.n_columns)
    }
}

fn mean_of(map: &[f32]) -> f64 {
    map.iter().map(|&x| f64::from(x)).sum::<f64>() / map.len() as f64
}

impl Reading {
    /// Reads an activation off.
    ///
    /// # Errors
    /// Activations that are not finite, or have no channels.
    fn of(self, layer: &Layer) -> Result<Vectors> {
        let channels = channels(layer)?;
        let n = layer.shape[0];
        let per_image = layer.data.len().checked_div(n).unwrap_or(0);
        let pixels = per_image / channels;
        if pixels == 0 && n > 0 {
            return Err(Error::input(format!("layer `{}` has no values", layer.name)));
        }
        let columns = channels * if self == Self::Stat { 2 } else { 1 };
        let mut values = Vec::with_capacity(n * columns);
        for activation in layer.data.chunks_exact(per_image.max(1)) {
            let means: Vec<f64> = activation.chunks_exact(pixels).map(mean_of).collect();
            if means.iter().any(|mean| !mean.is_finite()) {
                let name = &layer.name;
                return Err(Error::input(format!("layer `{name}` expected finite values")));
            }
            values.extend(&means);
            if self == Self::Stat {
                let variance = |(map, mean): (&[f32], &f64)| {
                    let squares = map.iter().map(|&x| (f64::from(x) - mean).powi(2));
                    // Of one pixel there is no variance.
                    squares.sum::<f64>() / (pixels - 1).max(1) as f64
                };
                values.extend(activation.chunks_exact(pixels).zip(&means).map(variance));
            }
        }
        Ok(Vectors { values, n_columns: columns })
    }

    /// Appends the gradient with respect to an activation of something whose gradient with respect
    /// to the vector is `slope`.
    fn pull_back(self, activation: &[f32], channels: usize, slope: &[f64], out: &mut Vec<f32>) {
        let pixels = activation.len() / channels;
        for (c, map) in activation.chunks_exact(pixels).enumerate() {
            let of_mean = slope[c] / pixels as f64;
            match self {
                Self::Mean => out.extend(std::iter::repeat_n(of_mean as f32, pixels)),
                Self::Stat => {
                    let mean = mean_of(map);
                    let of_variance = 2.0 * slope[channels + c] / (pixels - 1).max(1) as f64;
                    let at = |&x: &f32| (of_mean + of_variance * (f64::from(x) - mean)) as f32;
                    out.extend(map.iter().map(at));
                }
            }
        }
    }
}

/// Sums over vectors, as they come, relative to an origin near them.
struct Moments {
    origin: Vec<f64>,
    counts: Vec<usize>,
    /// Of each class.
    sums: Mat<f64>,
    /// Of `x x'` over all.
    squares: Mat<f64>,
}

impl Moments {
    /// None so far, around the mean of these.
    fn around(vectors: &Vectors, n_classes: usize) -> Self {
        let (d, view) = (vectors.n_columns, vectors.view());
        let n = view.nrows().max(1) as f64;
        Self {
            origin: (0..d).map(|j| view.col(j).sum() / n).collect(),
            counts: vec![0; n_classes],
            sums: Mat::zeros(n_classes, d),
            squares: Mat::zeros(d, d),
        }
    }

    fn add(&mut self, vectors: &Vectors, classes: &[usize]) -> Result<()> {
        let (view, d) = (vectors.view(), self.origin.len());
        if (view.nrows(), view.ncols()) != (classes.len(), d) {
            let (expected, got) = (d, view.ncols());
            return Err(Error::input(format!(
                "activations expected {expected} columns, got {got}"
            )));
        }
        let centred = Mat::from_fn(view.nrows(), d, |i, j| view[(i, j)] - self.origin[j]);
        for (i, &class) in classes.iter().enumerate() {
            self.counts[class] += 1;
            (0..d).for_each(|j| self.sums[(class, j)] += centred[(i, j)]);
        }
        self.squares += centred.transpose() * &centred;
        Ok(())
    }

    fn empty_class(&self) -> Option<usize> {
        self.counts.iter().position(|count| *count == 0)
    }

    fn gaussians(&self, settings: &Settings) -> Result<Gaussians> {
        let (d, n) = (self.origin.len(), self.counts.iter().sum::<usize>() as f64);
        let present: Vec<usize> = (0..self.counts.len()).filter(|&c| self.counts[c] > 0).collect();
        let means = Mat::from_fn(present.len(), d, |row, j| {
            self.sums[(present[row], j)] / self.counts[present[row]] as f64
        });
        // The second moment, less what the means explain.
        let second = Mat::from_fn(d, d, |i, j| self.squares[(i, j)] / n);
        let share = |row: usize| self.counts[present[row]] as f64 / n;
        let weighted = Mat::from_fn(present.len(), d, |row, j| means[(row, j)] * share(row));
        let within = &second - weighted.transpose() * &means;
        let basis = match settings.reduction {
            Reduction::None => Mat::identity(d, d),
            Reduction::Pca(k) if k > d => {
                let expected = format!("at most {d} principal components");
                return Err(Error::parameter("reduce", &expected, k));
            }
            Reduction::Pca(k) => {
                let mean = Mat::from_fn(1, d, |_, j| {
                    (0..present.len()).map(|row| weighted[(row, j)]).sum::<f64>()
                });
                let total = &second - mean.transpose() * &mean;
                // Eigenvalues ascend.
                let (_, vectors) = eigen(total.as_ref())?;
                Mat::from_fn(d, k, |i, j| vectors[(i, d - 1 - j)])
            }
        };
        let whitening = whitening((basis.transpose() * &within * &basis).as_ref())?;
        let whitening = basis * whitening;
        let means = Mat::from_fn(present.len(), d, |row, j| means[(row, j)] + self.origin[j]);
        Ok(Gaussians {
            layer: settings.name.clone(),
            reading: settings.reading,
            means: (&(means * &whitening)).into(),
            whitening: (&whitening).into(),
        })
    }
}

/// A matrix `T` with `T T' = pinv(covariance)`, `[d, rank]`.
///
/// Eigenvalues below `d * epsilon(f64)` times the greatest are dropped, as scipy's `pinvh` does.
/// That is about the variance that the rounding of `f32` activations has by itself. Channel means
/// depend on one another strongly, and many eigenvalues lie below the cutoff that suits features.
fn whitening(covariance: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let d = covariance.nrows();
    let (values, vectors) = eigen(covariance)?;
    let greatest = values.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    let kept: Vec<usize> =
        (0..d).filter(|&i| values[i] > d as f64 * f64::EPSILON * greatest).collect();
    Ok(Mat::from_fn(d, kept.len(), |i, j| vectors[(i, kept[j])] / values[kept[j]].sqrt()))
}

/// The class that an image is nearest to.
struct Nearest {
    /// Squared.
    distance: f64,
    /// From its mean, where the covariance is the identity.
    offset: Vec<f64>,
}

impl Gaussians {
    /// The nearest class of each image; the first of equally near ones.
    fn nearest(&self, layer: &Layer) -> Result<Vec<Nearest>> {
        let vectors = self.reading.of(layer)?;
        let (whitening, means) = (self.whitening.view()?, self.means.view()?);
        if vectors.n_columns != whitening.nrows() {
            let (expected, got, name) = (whitening.nrows(), vectors.n_columns, &self.layer);
            return Err(Error::input(format!(
                "layer `{name}` expected {expected} values, got {got}"
            )));
        }
        let zs = vectors.view() * whitening;
        let of_image = |i: usize| {
            let part = |c: usize, j: usize| zs[(i, j)] - means[(c, j)];
            let distance = |c: usize| (0..zs.ncols()).map(|j| part(c, j).powi(2)).sum::<f64>();
            let first = (0, distance(0));
            let (nearest, distance) = (1..means.nrows()).fold(first, |best, c| {
                let distance = distance(c);
                if distance < best.1 { (c, distance) } else { best }
            });
            Nearest { distance, offset: (0..zs.ncols()).map(|j| part(nearest, j)).collect() }
        };
        Ok((0..zs.nrows()).map(of_image).collect())
    }

    /// The direction in which the distance grows with the vector; its greatest part is 1, as only
    /// signs matter and `f32` could not hold some lengths.
    fn slope(&self, nearest: &Nearest) -> Result<Vec<f64>> {
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
    use super::*;

    fn layer(data: &[f32], shape: &[usize]) -> Layer {
        Layer { name: "a".to_owned(), data: data.to_vec(), shape: shape.to_vec() }
    }

    fn settings(reading: Reading, reduction: Reduction) -> Settings {
        Settings { name: "a".to_owned(), reading, reduction }
    }

    #[test]
    fn maps_are_read_off_as_means_and_unbiased_variances() {
        let layer = layer(&[1.0, 3.0, 5.0, 5.0, 0.0, 0.0, -1.0, 1.0], &[2, 2, 2]);
        assert_eq!(Reading::Mean.of(&layer).unwrap().values, [2.0, 5.0, 0.0, 0.0]);
        let stat = Reading::Stat.of(&layer).unwrap();
        assert_eq!(stat.values, [2.0, 5.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn one_pixel_has_no_variance() {
        let layer = layer(&[1.0, 3.0], &[1, 2]);
        assert_eq!(Reading::Stat.of(&layer).unwrap().values, [1.0, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn activations_that_are_not_finite_are_an_error() {
        let error = Reading::Mean.of(&layer(&[1.0, f32::NAN], &[1, 2])).err().unwrap();
        assert_eq!(error.to_string(), "layer `a` expected finite values");
    }

    #[test]
    fn the_pulled_back_slope_agrees_with_finite_differences() {
        let activation = [0.5, 1.0, -0.25, 0.0, 2.0, 0.75];
        let slope = [1.0, -2.0, 0.5, 3.0];
        for reading in [Reading::Mean, Reading::Stat] {
            let mut gradient = Vec::new();
            reading.pull_back(&activation, 2, &slope, &mut gradient);
            let value = |activation: &[f32]| -> f64 {
                let vector = reading.of(&layer(activation, &[1, 2, 3])).unwrap().values;
                vector.iter().zip(slope).map(|(x, s)| x * s).sum()
            };
            for i in 0..activation.len() {
                let (mut up, mut down) = (activation, activation);
                up[i] += 0.125;
                down[i] -= 0.125;
                let expected = 4.0 * (value(&up) - value(&down));
                assert!((f64::from(gradient[i]) - expected).abs() < 1e-5, "{reading:?} {i}");
            }
        }
    }

    #[test]
    fn moments_do_not_depend_on_the_batches() {
        let value = |i: usize| 7.0 + (i * 7919 % 101) as f64 / 101.0;
        let all: Vec<f64> = (0..60).map(value).collect();
        let classes: Vec<usize> = (0..20).map(|i| i % 2 * 2).collect();
        let distances = |ends: &[usize]| -> Vec<f64> {
            let part = |first: usize, end: usize| Vectors {
                values: all[3 * first..3 * end].to_vec(),
                n_columns: 3,
            };
            let mut moments = Moments::around(&part(0, ends[0]), 3);
            let mut first = 0;
            for &end in ends {
                moments.add(&part(first, end), &classes[first..end]).unwrap();
                first = end;
            }
            assert_eq!(moments.empty_class(), Some(1));
            let gaussians = moments.gaussians(&settings(Reading::Mean, Reduction::None)).unwrap();
            let values: Vec<f32> = all.iter().map(|&x| x as f32).collect();
            let nearest = gaussians.nearest(&layer(&values, &[20, 3])).unwrap();
            nearest.iter().map(|nearest| nearest.distance).collect()
        };
        let at_once = distances(&[20]);
        for (got, expected) in distances(&[3, 4, 20]).iter().zip(&at_once) {
            assert!((got - expected).abs() < 1e-9 * expected.max(1.0), "{got} {expected}");
        }
        // The mean squared distance to the own class is the number of columns.
        assert!(at_once.iter().sum::<f64>() <= 20.0 * 3.0 + 1e-9);
    }

    #[test]
    fn reductions_have_names() {
        let parse = |text: &str| Reduction::try_from(text.to_owned());
        assert_eq!(parse("none"), Ok(Reduction::None));
        assert_eq!(parse("pca_50"), Ok(Reduction::Pca(50)));
        for text in ["pca_0", "pca_", "pca", "lda", "pca_-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_entry_stands_for_every_layer() {
        assert_eq!(spread(&[1.0], 3, "alpha").unwrap(), [1.0; 3]);
        assert_eq!(spread(&[1.0, 2.0], 2, "alpha").unwrap(), [1.0, 2.0]);
        assert!(spread(&[1.0, 2.0], 3, "alpha").is_err());
        assert!(spread::<f64>(&[], 2, "alpha").is_err());
    }
}
