//! The services that a worker offers to its detector, as far as the descriptor asks for them.

mod parts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use oodbench_abi::abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RString, RVec};
use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{
    ErrorCode, ForwardOutputs, Head, Host, LogLevel, NamedTensor, Needs, RawError, RawResult,
    SplitId, TensorView,
};
use oodbench_datasets::Pack;
use oodbench_nn::classifier::Classifier;
use oodbench_nn::device::{device, set_precision};
use oodbench_nn::precision::Precision;

use crate::bank::HeadFile;
use crate::check::memory::{MemoryTensor, bad_input};
use crate::check::network::{self, failed};
use crate::classifier::{ClassifierRef, load_other};
use crate::extension::{Extended, answer, check_needs};
use crate::image::write_images;
use crate::job::Event;
use parts::{Images, forward, joined, parts};

/// Where events go. `[any-thread]`
pub type Say = Arc<dyn Fn(Event) + Send + Sync>;

/// The host of one detector.
pub struct WorkerHost {
    pub(crate) needs: Needs,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    pub(crate) device: String,
    /// What the classifier computes in.
    pub(crate) precision: Precision,
    pub(crate) assets: BTreeMap<String, PathBuf>,
    /// Absent where it was not exported.
    pub(crate) head: Option<PathBuf>,
    /// Absent where features were exported and there is none to run.
    pub(crate) classifier: Option<ClassifierRef>,
    pub(crate) loaded: Mutex<Option<Arc<Classifier>>>,
    /// Classifiers that parameters name, by their files.
    pub(crate) others: Mutex<BTreeMap<PathBuf, Arc<Classifier>>>,
    pub(crate) train: Option<Arc<Pack>>,
    pub(crate) val: Option<Arc<Pack>>,
    pub(crate) val_ood: Option<Arc<Pack>>,
    /// Height and width of all images, if there are images.
    pub(crate) size: Option<(usize, usize)>,
    pub(crate) say: Say,
}

type Outcome<T> = Result<T, RawError>;

fn raw<T>(result: Outcome<T>) -> RawResult<T> {
    match result {
        Ok(value) => RResult::ROk(value),
        Err(error) => RResult::RErr(error),
    }
}

impl WorkerHost {
    fn offers(&self, need: Needs, service: &str) -> Outcome<()> {
        check_needs(self.needs, need, service)
    }

    fn path(&self, asset: &str) -> Outcome<&Path> {
        self.assets.get(asset).map(PathBuf::as_path).ok_or_else(|| {
            let message = format!("parameter `{asset}` expected a file, got none");
            RawError::new(ErrorCode::BAD_PARAMETER, message)
        })
    }

    /// The classifier whose weights are a file that a parameter names; it stays loaded.
    fn other(&self, asset: &str) -> Outcome<Arc<Classifier>> {
        let path = self.path(asset)?;
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(classifier) = others.get(path) {
            return Ok(Arc::clone(classifier));
        }
        let &ClassifierRef { n_classes, normalisation, .. } = self.known_classifier()?;
        let device = device(&self.device).map_err(failed)?;
        // As for the run's own classifier, which may not have been asked for.
        set_precision(self.precision, &device).map_err(failed)?;
        let classifier = load_other(path, n_classes, normalisation, &device).map_err(failed)?;
        let classifier = Arc::new(classifier);
        others.insert(path.to_owned(), Arc::clone(&classifier));
        Ok(classifier)
    }

    fn known_classifier(&self) -> Outcome<&ClassifierRef> {
        self.classifier.as_ref().ok_or_else(|| {
            let message = "this run has exported features, and no classifier to run".to_owned();
            RawError::new(ErrorCode::UNAVAILABLE, message)
        })
    }

    fn classifier(&self) -> Outcome<Arc<Classifier>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(classifier) = &*loaded {
            return Ok(Arc::clone(classifier));
        }
        let classifier =
            Arc::new(self.known_classifier()?.load(&self.device, self.precision).map_err(failed)?);
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

    fn do_forward(&self, images: TensorView<'_>) -> Outcome<ForwardOutputs> {
        self.offers(Needs::FORWARD, "forward")?;
        forward(&*self.classifier()?, &Images::new(images)?)
    }

    fn do_vjp(
        &self,
        images: TensorView<'_>,
        at: &str,
        cotangent: TensorView<'_>,
    ) -> Outcome<RVec<f32>> {
        self.offers(Needs::GRADIENT, "vjp")?;
        let images = Images::new(images)?;
        let n = images.n;
        if !cotangent.is_valid() || cotangent.shape.first() != Some(&n) {
            let shape = cotangent.shape.as_slice();
            return Err(bad_input(format!("cotangent expected [{n}, …], got {shape:?}")));
        }
        let classifier = self.classifier()?;
        let values = cotangent.data.as_slice();
        let row = values.len().checked_div(n).unwrap_or(0);
        let mut gradient = RVec::with_capacity(images.values.len());
        for range in parts(n) {
            let of_part = &values[range.start * row..range.end * row];
            let part = classifier.vjp(images.part(&range), images.size, at, of_part);
            gradient.extend(part.map_err(failed)?);
        }
        Ok(gradient)
    }

    fn do_layers(&self, images: TensorView<'_>, names: &[String]) -> Outcome<RVec<NamedTensor>> {
        self.offers(Needs::LAYERS, "layers")?;
        let images = Images::new(images)?;
        let classifier = self.classifier()?;
        let mut layers: Vec<NamedTensor> = Vec::new();
        for range in parts(images.n) {
            let part = network::layers(&classifier, images.part(&range), images.size, names)?;
            if layers.is_empty() {
                let named = |(name, tensor): (&String, MemoryTensor)| NamedTensor {
                    name: name.as_str().into(),
                    data: tensor.data.into(),
                    shape: tensor.shape.into(),
                };
                layers = names.iter().zip(part).map(named).collect();
            } else {
                for (layer, tensor) in layers.iter_mut().zip(part) {
                    layer.data.extend(tensor.data);
                }
            }
        }
        for layer in &mut layers {
            layer.shape[0] = images.n;
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
        let Some(path) = &self.head else {
            let message = "the head was not exported".to_owned();
            return Err(RawError::new(ErrorCode::UNAVAILABLE, message));
        };
        let head = HeadFile::open(path).map_err(failed)?;
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
        let path = self.offers(Needs::ASSETS, "asset").and_then(|()| self.path(name.as_str()));
        raw(path.map(|path| path.display().to_string().into()))
    }

    fn head(&self) -> RawResult<Head> {
        raw(self.do_head())
    }

    fn images(&self, split: SplitId, first: usize, mut out: RSliceMut<'_, f32>) -> RawResult<()> {
        raw(self.do_images(split, first, out.as_mut_slice()))
    }

    fn image_shape(&self) -> RawResult<RVec<usize>> {
        raw(self.offers(Needs::IMAGES, "image_shape").and_then(|()| {
            let (height, width) = self.size.ok_or_else(|| {
                let message = "this run has exported features, and no images".to_owned();
                RawError::new(ErrorCode::UNAVAILABLE, message)
            })?;
            Ok(RVec::from(vec![3, height, width]))
        }))
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

    fn extension(&self, id: RStr<'_>, input: RSlice<'_, u8>) -> RawResult<RVec<u8>> {
        raw(answer(self, id.as_str(), input.as_slice()))
    }
}

impl Extended for WorkerHost {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn normalisation(&self) -> Outcome<Normalisation> {
        // Known without loading the network.
        let own = self.known_classifier()?.normalisation;
        Ok(Normalisation { mean: own.mean, std: own.std })
    }

    fn layer_groups(&self) -> Outcome<LayerGroups> {
        Ok(network::groups(self.classifier()?.tapped()))
    }

    fn forward_from(&self, at: &str, activation: &MemoryTensor) -> Outcome<ForwardOutputs> {
        let classifier = self.classifier()?;
        let row = activation.row_len();
        joined(parts(activation.n_rows()).map(|range| {
            let mut shape = activation.shape.clone();
            shape[0] = range.len();
            let part = &activation.data[range.start * row..range.end * row];
            network::outputs(&classifier.forward_from(at, part, &shape).map_err(failed)?)
        }))
    }

    fn forward_with(&self, asset: &str, images: &MemoryTensor) -> Outcome<ForwardOutputs> {
        let classifier = self.other(asset)?;
        let size = (images.shape[2], images.shape[3]);
        forward(&classifier, &Images { n: images.n_rows(), size, values: &images.data })
    }
}

#[cfg(test)]
mod tests;
