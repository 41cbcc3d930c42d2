//! The services of the host, as a detector sees them.

use std::path::PathBuf;
use std::sync::Arc;

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::message::{
    self, ForwardFrom, ForwardSizes, ForwardWith, LayerGroups, Normalisation,
};
use oodbench_abi::{ErrorCode, HostBox, LogLevel, RawError, SplitId, TensorView, extension};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::data::Matrix;
use crate::error::{Error, Result};

/// The host: services that a detector has asked for in its needs. May be cloned and used from any
/// thread, but only during `new`, `fit` and `score`.
#[derive(Clone)]
pub struct Host {
    raw: Arc<HostBox>,
}

fn plain<T>(result: RResult<T, RawError>) -> Result<T> {
    match result {
        RResult::ROk(value) => Ok(value),
        RResult::RErr(err) => Err(err.into()),
    }
}

impl Host {
    pub(crate) fn new(raw: HostBox) -> Self {
        Self { raw: Arc::new(raw) }
    }

    /// A message that is shown with `-v`.
    pub fn info(&self, message: &str) {
        self.raw.log(LogLevel::INFO, RStr::from(message));
    }

    /// A message that is shown, and kept in the record.
    pub fn warn(&self, message: &str) {
        self.raw.log(LogLevel::WARN, RStr::from(message));
    }

    /// Says that `done` of `total` units of the present call are finished, and stops it with an
    /// error when the host wants it to end. Call it now and then in long work.
    ///
    /// # Errors
    /// The host wants the call to end; return the error.
    pub fn progress(&self, done: usize, total: usize) -> Result<()> {
        self.raw.progress(done as u64, total as u64);
        if self.raw.cancelled() {
            return Err(Error::with_code(ErrorCode::CANCELLED, "cancelled"));
        }
        Ok(())
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.raw.seed()
    }

    /// How many threads the detector may use.
    pub fn threads(&self) -> usize {
        self.raw.threads()
    }

    /// `cpu`, or `cuda:0` and so on.
    pub fn device(&self) -> String {
        self.raw.device().into()
    }

    /// The file that the parameter `name` stands for; needs `ASSETS`.
    ///
    /// # Errors
    /// A file that nobody gave.
    pub fn asset(&self, name: &str) -> Result<PathBuf> {
        plain(self.raw.asset(RStr::from(name))).map(|path| PathBuf::from(path.into_string()))
    }

    /// The classifier's last linear layer; needs `HEAD`.
    ///
    /// # Errors
    /// A head that was not asked for, or features without a classifier.
    pub fn head(&self) -> Result<Head> {
        let raw = plain(self.raw.head())?;
        Matrix::new(&raw.weight, raw.n_classes, raw.n_features)?;
        if raw.bias.len() != raw.n_classes {
            return Err(Error::input(format!(
                "bias expected {} values, got {}",
                raw.n_classes,
                raw.bias.len()
            )));
        }
        Ok(Head {
            weight: raw.weight.into(),
            bias: raw.bias.into(),
            n_classes: raw.n_classes,
            n_features: raw.n_features,
        })
    }

    /// Height and width of the images; needs `IMAGES`.
    ///
    /// # Errors
    /// Images that were not asked for.
    pub fn image_size(&self) -> Result<(usize, usize)> {
        match plain(self.raw.image_shape())?.as_slice() {
            [3, height, width] => Ok((*height, *width)),
            shape => Err(Error::input(format!("image expected [3, height, width], got {shape:?}"))),
        }
    }

    /// Images `first .. first + n` of a split, in `[0, 1]`; needs `IMAGES`.
    ///
    /// # Errors
    /// Images that were not asked for, or that are not there.
    pub fn images(&self, split: SplitId, first: usize, n: usize) -> Result<Vec<f32>> {
        let (height, width) = self.image_size()?;
        let mut out = vec![0.0; n * 3 * height * width];
        plain(self.raw.images(split, first, RSliceMut::from_mut_slice(&mut out)))?;
        Ok(out)
    }

    /// Logits and features of images that the detector made; needs `FORWARD`.
    ///
    /// # Errors
    /// What the classifier says.
    pub fn forward(&self, images: ImageBatch<'_>) -> Result<Forward> {
        let shape = images.shape();
        let raw = plain(self.raw.forward(TensorView::new(images.data, &shape)))?;
        let n = images.len();
        let columns = |len: usize, what: &str| match len.checked_div(n) {
            Some(columns) if columns * n == len => Ok(columns),
            None if len == 0 => Ok(0),
            _ => Err(Error::input(format!("{what} of {n} images got {len} values"))),
        };
        Ok(Forward {
            n_classes: columns(raw.logits.len(), "logits")?,
            n_features: columns(raw.features.len(), "features")?,
            logits: raw.logits.into(),
            features: raw.features.into(),
            len: n,
        })
    }

    /// Logits and features of activations put in place of those of the stage `at`, one of
    /// [`LayerGroups::stages`]: the classifier goes on from there. Needs `FORWARD` and `LAYERS`.
    ///
    /// # Shapes
    /// `activation` has `shape`, `[n, channels, height, width]` as [`Host::layers`] gives it.
    ///
    /// # Errors
    /// A layer that is no stage, activations of another shape or that are not finite.
    pub fn forward_from(&self, at: &str, activation: &[f32], shape: &[usize]) -> Result<Forward> {
        if shape.iter().product::<usize>() != activation.len() {
            let got = activation.len();
            return Err(Error::input(format!("activation expected {shape:?}, got {got} values")));
        }
        let header = ForwardFrom { at: at.to_owned(), shape: shape.to_vec() };
        self.forward_by(extension::FORWARD_FROM, &header, activation, shape.first().copied())
    }

    /// Logits and features that another classifier gives for images in `[0, 1]`. Its weights are
    /// the file that the parameter `asset` stands for, or file `I` of a list, as `"NAME.I"`; its
    /// architecture is read off them, and it has the run's number of classes. It stays loaded.
    /// Needs `FORWARD` and `ASSETS`.
    ///
    /// # Errors
    /// A file that nobody gave or that holds no such weights, and what the classifier says.
    pub fn forward_with(&self, asset: &str, images: ImageBatch<'_>) -> Result<Forward> {
        let header = ForwardWith { asset: asset.to_owned(), shape: images.shape().to_vec() };
        self.forward_by(extension::FORWARD_WITH, &header, images.values(), Some(images.len()))
    }

    /// Mean and standard deviation by which the classifier normalises images in `[0, 1]`; needs
    /// `FORWARD`, `GRADIENT` or `LAYERS`.
    ///
    /// # Errors
    /// A need that was not declared, or no classifier at all.
    pub fn normalisation(&self) -> Result<Normalisation> {
        self.ask(extension::NORMALISATION)
    }

    /// The gradient of `sum(cotangent * at)` with respect to the images, where `at` is
    /// `"logits"`, `"features"` or the name of a layer; needs `GRADIENT`.
    ///
    /// # Shapes
    /// `cotangent` has `cotangent_shape`, which is the shape of `at`; the result has that of the
    /// images.
    ///
    /// # Errors
    /// What the classifier says.
    pub fn vjp(
        &self,
        images: ImageBatch<'_>,
        at: &str,
        cotangent: &[f32],
        cotangent_shape: &[usize],
    ) -> Result<Vec<f32>> {
        let shape = images.shape();
        if cotangent_shape.iter().product::<usize>() != cotangent.len() {
            return Err(Error::input(format!(
                "cotangent expected {cotangent_shape:?}, got {} values",
                cotangent.len()
            )));
        }
        let grad = plain(self.raw.vjp(
            TensorView::new(images.data, &shape),
            RStr::from(at),
            TensorView::new(cotangent, cotangent_shape),
        ))?;
        if grad.len() != images.data.len() {
            return Err(Error::input(format!(
                "gradient expected {} values, got {}",
                images.data.len(),
                grad.len()
            )));
        }
        Ok(grad.into())
    }

    /// The activations that [`Host::layers`] can give, in order of execution; needs `LAYERS`.
    ///
    /// # Errors
    /// Layers that were not asked for.
    pub fn layer_names(&self) -> Result<Vec<String>> {
        Ok(plain(self.raw.layer_names())?.into_iter().map(RString::into_string).collect())
    }

    /// Which of the layers are stages, outputs of convolutions and ReLU modules, or further heads;
    /// needs `LAYERS`.
    ///
    /// # Errors
    /// Layers that were not asked for.
    pub fn layer_groups(&self) -> Result<LayerGroups> {
        self.ask(extension::LAYER_GROUPS)
    }

    /// Named activations of images, in the order of `names`, from one pass of the classifier;
    /// needs `LAYERS`.
    ///
    /// All of them are held in memory: ask for few images at a time where there are many layers.
    ///
    /// # Errors
    /// A name that the classifier does not have, or that is there twice.
    pub fn layers(&self, images: ImageBatch<'_>, names: &[&str]) -> Result<Vec<Layer>> {
        let shape = images.shape();
        let names: RVec<RString> = names.iter().map(|&name| RString::from(name)).collect();
        let raw = plain(self.raw.layers(TensorView::new(images.data, &shape), names))?;
        Ok(raw
            .into_iter()
            .map(|layer| Layer {
                name: layer.name.into(),
                data: layer.data.into(),
                shape: layer.shape.into(),
            })
            .collect())
    }

    /// What an extension of the host answers to nothing.
    fn ask<T: DeserializeOwned>(&self, id: &str) -> Result<T> {
        let answer = plain(self.raw.extension(RStr::from(id), RSlice::EMPTY))?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// What an extension that runs a classifier answers to `n` images or activations.
    fn forward_by(
        &self,
        id: &str,
        header: &impl Serialize,
        values: &[f32],
        n: Option<usize>,
    ) -> Result<Forward> {
        let input = message::encode(header, &[values]);
        let answer = plain(self.raw.extension(RStr::from(id), RSlice::from_slice(&input)))?;
        let (sizes, mut logits) = message::decode::<ForwardSizes>(&answer).map_err(Error::input)?;
        let ForwardSizes { n: len, n_classes, n_features } = sizes;
        let elements = |columns: usize| len.checked_mul(columns);
        let both = elements(n_classes).and_then(|n| n.checked_add(elements(n_features)?));
        if n != Some(len) || both != Some(logits.len()) {
            return Err(Error::input(format!(
                "outputs of {} images got {} values for {len} images",
                n.unwrap_or(0),
                logits.len()
            )));
        }
        let features = logits.split_off(len * n_classes);
        Ok(Forward { logits, features, len, n_classes, n_features })
    }
}

/// Images in `[0, 1]`, `[len, 3, height, width]`.
#[derive(Clone, Copy, Debug)]
pub struct ImageBatch<'a> {
    data: &'a [f32],
    height: usize,
    width: usize,
}

impl<'a> ImageBatch<'a> {
    /// A view of images.
    ///
    /// # Errors
    /// Data that is no whole number of images.
    pub fn new(data: &'a [f32], height: usize, width: usize) -> Result<Self> {
        let image = 3 * height * width;
        if image == 0 || !data.len().is_multiple_of(image) {
            return Err(Error::input(format!(
                "images of {height}x{width} expected a multiple of {image} values, got {}",
                data.len()
            )));
        }
        Ok(Self { data, height, width })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.data.len() / (3 * self.height * self.width)
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// `[len, 3, height, width]`
    pub fn shape(&self) -> [usize; 4] {
        [self.len(), 3, self.height, self.width]
    }

    /// The values, image by image, channel by channel.
    pub fn values(&self) -> &'a [f32] {
        self.data
    }
}

/// The classifier's last linear layer: `logits = weight * features + bias`.
#[derive(Clone, Debug)]
pub struct Head {
    weight: Vec<f32>,
    bias: Vec<f32>,
    n_classes: usize,
    n_features: usize,
}

impl Head {
    /// `[n_classes, n_features]`
    pub fn weight(&self) -> Matrix<'_> {
        Matrix::new(&self.weight, self.n_classes, self.n_features)
            .expect("sizes were checked when the head came from the host")
    }

    /// `[n_classes]`
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Logits of one feature vector, summed in `f64`.
    pub fn logits(&self, features: &[f32], logits: &mut [f32]) {
        for ((logit, weight), bias) in logits.iter_mut().zip(self.weight().rows()).zip(&self.bias) {
            let dot: f64 = weight.iter().zip(features).map(|(w, h)| f64::from(w * h)).sum();
            *logit = (dot + f64::from(*bias)) as f32;
        }
    }
}

/// What the classifier gives for a batch.
#[derive(Clone, Debug)]
pub struct Forward {
    logits: Vec<f32>,
    features: Vec<f32>,
    len: usize,
    n_classes: usize,
    n_features: usize,
}

impl Forward {
    /// `[len, n_classes]`
    pub fn logits(&self) -> Matrix<'_> {
        Matrix::new(&self.logits, self.len, self.n_classes).expect("sizes were checked")
    }

    /// `[len, n_features]`
    pub fn features(&self) -> Matrix<'_> {
        Matrix::new(&self.features, self.len, self.n_features).expect("sizes were checked")
    }
}

/// A named activation.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The name.
    pub name: String,
    /// The elements, row-major.
    pub data: Vec<f32>,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}
