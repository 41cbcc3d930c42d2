//! The services that a worker offers to its detector, as far as the descriptor asks for them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::{
    ErrorCode, ForwardOutputs, Head, Host, LogLevel, NamedTensor, Needs, RawError, RawResult,
    SplitId, TensorView,
};
use oodbench_datasets::Pack;
use oodbench_nn::classifier::Classifier;

use crate::bank::HeadFile;
use crate::classifier::ClassifierRef;
use crate::image::write_images;
use crate::job::Event;

/// Images that the classifier takes at once when a detector hands it more.
const FORWARD_BATCH: usize = 128;

/// Where events go. `[any-thread]`
pub type Say = Arc<dyn Fn(Event) + Send + Sync>;

/// The host of one detector.
pub struct WorkerHost {
    pub(crate) needs: Needs,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    pub(crate) device: String,
    pub(crate) assets: BTreeMap<String, PathBuf>,
    pub(crate) head: PathBuf,
    pub(crate) classifier: ClassifierRef,
    pub(crate) loaded: Mutex<Option<Arc<Classifier>>>,
    pub(crate) train: Option<Arc<Pack>>,
    pub(crate) val: Option<Arc<Pack>>,
    pub(crate) val_ood: Option<Arc<Pack>>,
    /// Height and width of all images.
    pub(crate) size: (usize, usize),
    pub(crate) say: Say,
}

type Outcome<T> = Result<T, RawError>;

fn raw<T>(result: Outcome<T>) -> RawResult<T> {
    match result {
        Ok(value) => RResult::ROk(value),
        Err(error) => RResult::RErr(error),
    }
}

fn failed(error: impl std::error::Error) -> RawError {
    RawError::new(ErrorCode::FAILED, crate::text::chain(&error))
}

fn bad_input(message: String) -> RawError {
    RawError::new(ErrorCode::BAD_INPUT, message)
}

impl WorkerHost {
    fn offers(&self, need: Needs, service: &str) -> Outcome<()> {
        if self.needs.contains(need) {
            return Ok(());
        }
        let name = need.names().join(", ");
        let message = format!("service `{service}` was not asked for: add `{name}` to the needs");
        Err(RawError::new(ErrorCode::UNAVAILABLE, message))
    }

    fn classifier(&self) -> Outcome<Arc<Classifier>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(classifier) = &*loaded {
            return Ok(Arc::clone(classifier));
        }
        let classifier = Arc::new(self.classifier.load(&self.device).map_err(failed)?);
        *loaded = Some(Arc::clone(&classifier));
        Ok(classifier)
    }

    fn split(&self, split: SplitId) -> Outcome<&Pack> {
        let pack = match split {
            SplitId::TRAIN => &self.train,
            SplitId::VAL => &self.val,
            SplitId::VAL_OOD => &self.val_ood,
            _ => &None,
        };
        pack.as_deref().ok_or_else(|| {
            let message = format!("split {} was not asked for, or is not there", split.0);
            RawError::new(ErrorCode::UNAVAILABLE, message)
        })
    }

    /// Calls `f` with each part of a batch of images and its size.
    fn in_parts(
        &self,
        images: TensorView<'_>,
        mut f: impl FnMut(&Classifier, &[f32], (usize, usize), std::ops::Range<usize>) -> Outcome<()>,
    ) -> Outcome<usize> {
        let (n, height, width) = match *images.shape.as_slice() {
            [n, 3, height, width] if images.is_valid() => (n, height, width),
            ref shape => {
                return Err(bad_input(format!(
                    "images expected [n, 3, height, width], got {shape:?}"
                )));
            }
        };
        let values = images.data.as_slice();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(bad_input("images expected finite values".to_owned()));
        }
        let classifier = self.classifier()?;
        let image = 3 * height * width;
        for first in (0..n).step_by(FORWARD_BATCH) {
            let range = first..(first + FORWARD_BATCH).min(n);
            let part = &values[range.start * image..range.end * image];
            f(&classifier, part, (height, width), range)?;
        }
        Ok(n)
    }

    fn do_forward(&self, images: TensorView<'_>) -> Outcome<ForwardOutputs> {
        self.offers(Needs::FORWARD, "forward")?;
        let (mut logits, mut features) = (RVec::new(), RVec::new());
        self.in_parts(images, |classifier, part, size, _| {
            let outputs = classifier.forward(part, size).map_err(failed)?;
            for (all, tensor) in [(&mut logits, outputs.logits), (&mut features, outputs.features)]
            {
                let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
                all.extend(values.map_err(failed)?);
            }
            Ok(())
        })?;
        Ok(ForwardOutputs { logits, features })
    }

    fn do_vjp(
        &self,
        images: TensorView<'_>,
        at: &str,
        cotangent: TensorView<'_>,
    ) -> Outcome<RVec<f32>> {
        self.offers(Needs::GRADIENT, "vjp")?;
        let n = images.shape.first().copied().unwrap_or(0);
        if !cotangent.is_valid() || cotangent.shape.first() != Some(&n) {
            let shape = cotangent.shape.as_slice();
            return Err(bad_input(format!("cotangent expected [{n}, …], got {shape:?}")));
        }
        let values = cotangent.data.as_slice();
        let row = values.len().checked_div(n).unwrap_or(0);
        let mut gradient = RVec::with_capacity(images.data.len());
        self.in_parts(images, |classifier, part, size, range| {
            let of_part = &values[range.start * row..range.end * row];
            gradient.extend(classifier.vjp(part, size, at, of_part).map_err(failed)?);
            Ok(())
        })?;
        Ok(gradient)
    }

    fn do_layers(&self, images: TensorView<'_>, names: &[String]) -> Outcome<RVec<NamedTensor>> {
        self.offers(Needs::LAYERS, "layers")?;
        let mut layers: Vec<NamedTensor> = Vec::new();
        let n = self.in_parts(images, |classifier, part, size, _| {
            let mut taken = classifier.layers(part, size, names).map_err(failed)?;
            for (i, name) in names.iter().enumerate() {
                let tensor = taken
                    .remove(name)
                    .ok_or_else(|| bad_input(format!("layer `{name}` was named twice")))?;
                let values =
                    tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(failed)?;
                match layers.get_mut(i) {
                    Some(layer) => layer.data.extend(values),
                    None => layers.push(NamedTensor {
                        name: name.as_str().into(),
                        data: values.into(),
                        shape: tensor.dims().to_vec().into(),
                    }),
                }
            }
            Ok(())
        })?;
        for layer in &mut layers {
            layer.shape[0] = n;
        }
        Ok(layers.into())
    }

    fn do_images(&self, split: SplitId, first: usize, out: &mut [f32]) -> Outcome<()> {
        self.offers(Needs::IMAGES, "images")?;
        let pack = self.split(split)?;
        let image = 3 * pack.height() as usize * pack.width() as usize;
        let n = out.len() / image;
        let end = first.checked_add(n).filter(|&end| end <= pack.len());
        let Some(end) = end.filter(|_| n * image == out.len()) else {
            return Err(bad_input(format!(
                "images expected a multiple of {image} values within {} images, got {} from image {first}",
                pack.len(),
                out.len()
            )));
        };
        write_images(pack, first..end, out);
        Ok(())
    }

    fn do_head(&self) -> Outcome<Head> {
        self.offers(Needs::HEAD, "head")?;
        let head = HeadFile::open(&self.head).map_err(failed)?;
        Ok(Head {
            weight: head.weight.into(),
            bias: head.bias.into(),
            n_classes: head.n_classes,
            n_features: head.n_features,
        })
    }
}

impl Host for WorkerHost {
    fn log(&self, level: LogLevel, message: RStr<'_>) {
        // One line each: a message is shown as a line, and the protocol has lines.
        let message = message.as_str().lines().collect::<Vec<_>>().join(" ");
        (self.say)(Event::Log { level: level.0, message });
    }

    fn progress(&self, done: u64, total: u64) {
        (self.say)(Event::Progress { done, total });
    }

    fn cancelled(&self) -> bool {
        // A worker is ended from outside, by ending the process.
        false
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn device(&self) -> RString {
        self.device.as_str().into()
    }

    fn asset(&self, name: RStr<'_>) -> RawResult<RString> {
        raw(self.offers(Needs::ASSETS, "asset").and_then(|()| {
            match self.assets.get(name.as_str()) {
                Some(path) => Ok(path.display().to_string().into()),
                None => Err(RawError::new(
                    ErrorCode::BAD_PARAMETER,
                    format!("parameter `{name}` expected a file, got none"),
                )),
            }
        }))
    }

    fn head(&self) -> RawResult<Head> {
        raw(self.do_head())
    }

    fn images(&self, split: SplitId, first: usize, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        raw(self.do_images(split, first, out.as_mut_slice()))
    }

    fn image_shape(&self) -> RawResult<RVec<usize>> {
        let (height, width) = self.size;
        raw(self.offers(Needs::IMAGES, "image_shape").map(|()| RVec::from(vec![3, height, width])))
    }

    fn forward(&self, images: TensorView<'_>) -> RawResult<ForwardOutputs> {
        raw(self.do_forward(images))
    }

    fn vjp(
        &self,
        images: TensorView<'_>,
        at: RStr<'_>,
        cotangent: TensorView<'_>,
    ) -> RawResult<RVec<f32>> {
        raw(self.do_vjp(images, at.as_str(), cotangent))
    }

    fn layer_names(&self) -> RawResult<RVec<RString>> {
        raw(self.offers(Needs::LAYERS, "layer_names").and_then(|()| {
            Ok(self.classifier()?.layer_names().into_iter().map(RString::from).collect())
        }))
    }

    fn layers(&self, images: TensorView<'_>, names: RVec<RString>) -> RawResult<RVec<NamedTensor>> {
        let names: Vec<String> = names.into_iter().map(RString::into_string).collect();
        raw(self.do_layers(images, &names))
    }

    fn extension(&self, id: RStr<'_>, _input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        let message = format!("unknown extension `{id}`");
        RResult::RErr(RawError::new(ErrorCode::UNSUPPORTED, message))
    }
}
