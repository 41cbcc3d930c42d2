//! A detector's worked example as data to run it on, and the example classifier; their contract
//! is stated at [`oodbench_abi::example`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{
    Example, ExampleHead, ExampleSplit, ForwardOutputs, HostBox, Needs, ParamKind, RawError,
};
use serde_json::Value;

use super::memory::{
    ImageNetwork, MemoryData, MemoryHead, MemoryHost, MemorySplit, MemoryTensor, bad_input,
};
use crate::pack::DetectorInfo;

/// Channels of an image, and features of the example classifier.
const CHANNELS: usize = 3;

/// A worked example, ready to run.
pub(super) struct Prepared {
    pub(super) data: Arc<MemoryData>,
    /// What the example scores.
    pub(super) batch: MemorySplit,
    /// The same, and then the mirror image of each row, so that there are at least two images.
    pub(super) longer: MemorySplit,
    /// Of `batch`.
    pub(super) scores: Vec<f32>,
    pub(super) tolerance: f32,
    /// The example's parameters, as JSON.
    pub(super) params: String,
    /// The files that the parameters name, by what the host has them under. None of them is there.
    files: Vec<(String, PathBuf)>,
    network: Arc<ExampleClassifier>,
}

impl Prepared {
    /// Checks an example and derives what it leaves out.
    ///
    /// # Errors
    /// One line: what of it is missing or has the wrong size.
    pub(super) fn new(info: &DetectorInfo) -> Result<Self, String> {
        let example = &info.example;
        if example.scores.is_empty() {
            return Err("the descriptor has no worked example".to_owned());
        }
        if example.scores.len() != example.batch.len() {
            return Err(format!(
                "the example expected a score for each of {} images, got {}",
                example.batch.len(),
                example.scores.len()
            ));
        }
        if !(example.tolerance >= 0.0 && example.scores.iter().all(|score| score.is_finite())) {
            return Err("the example expected finite scores and a tolerance from 0".to_owned());
        }
        let sizes = Sizes::of(example)?;
        let head = sizes.head(example)?;
        let network = Arc::new(ExampleClassifier {
            head: head.clone(),
            n_classes: sizes.n_classes,
            heads: sizes.further_heads(example)?,
        });
        let split = |split: &ExampleSplit, name: &str| sizes.split(split, name, &network);
        let data = MemoryData {
            n_classes: sizes.n_classes,
            n_features: sizes.n_features,
            image_size: sizes.side.map(|side| (side, side)),
            head,
            train: split(&example.train, "train")?,
            val: split(&example.val, "val")?,
            val_ood: match example.val_ood.is_empty() {
                true => None,
                false => Some(split(&example.val_ood, "val_ood")?),
            },
        };
        let batch = split(&example.batch, "batch")?;
        let longer = split(&with_mirror_images(&example.batch), "batch")?;
        let params = Value::Object(example.params.clone()).to_string();
        let prepared = Self {
            data: Arc::new(data),
            batch,
            longer,
            scores: example.scores.clone(),
            tolerance: example.tolerance,
            params,
            files: files(info),
            network,
        };
        prepared.has_what_is_needed(info.needs)?;
        Ok(prepared)
    }

    /// A host of this example, with seed 0.
    pub(super) fn host(&self, needs: Needs) -> HostBox {
        let network: Arc<dyn ImageNetwork> = Arc::clone(&self.network) as _;
        let host = MemoryHost::new(needs, Arc::clone(&self.data)).network(network);
        let files = self.files.iter();
        files.fold(host, |host, (name, path)| host.asset(name, path.clone())).boxed()
    }

    fn has_what_is_needed(&self, needs: Needs) -> Result<(), String> {
        let data = &self.data;
        let has = |need: Needs| match need {
            Needs::LOGITS => !self.batch.logits.is_absent(),
            Needs::FEATURES => !self.batch.features.is_absent(),
            Needs::IMAGES => !self.batch.images.is_absent(),
            Needs::HEAD | Needs::FORWARD | Needs::GRADIENT => data.head.is_some(),
            Needs::TRAIN => !data.train.is_empty(),
            Needs::VAL => !data.val.is_empty(),
            Needs::VAL_OOD => data.val_ood.is_some(),
            Needs::LABELS => [&data.train, &data.val].iter().any(|split| !split.labels.is_empty()),
            _ => true,
        };
        let missing = Needs::NAMES.iter().find(|(need, _)| needs.contains(*need) && !has(*need));
        match missing {
            Some((Needs::FORWARD | Needs::GRADIENT, name)) => {
                Err(format!("the detector needs `{name}`, but its example has no head"))
            }
            Some((_, name)) => {
                Err(format!("the detector needs `{name}`, but its example has none"))
            }
            None => Ok(()),
        }
    }
}

/// Sizes that all parts of an example share.
struct Sizes {
    n_classes: usize,
    n_features: usize,
    /// Height and width of the images, if there are any.
    side: Option<usize>,
}

impl Sizes {
    fn of(example: &Example) -> Result<Self, String> {
        let splits = [&example.batch, &example.train, &example.val, &example.val_ood];
        let row = |rows: fn(&ExampleSplit) -> &Vec<Vec<f32>>| {
            splits.iter().find_map(|split| rows(split).first()).map(Vec::len)
        };
        let side = match row(|split| &split.images) {
            Some(len) => {
                let side = (len / CHANNELS).isqrt();
                if side == 0 || CHANNELS * side * side != len {
                    return Err(format!(
                        "an image of the example expected 3 * side * side values, got {len}"
                    ));
                }
                Some(side)
            }
            None => None,
        };
        let greatest_label = splits.iter().flat_map(|split| &split.labels).max().copied();
        let of_labels = greatest_label.and_then(|label| usize::try_from(label + 1).ok());
        let (n_classes, n_features) = match example.head_weight.first() {
            Some(weights) => (example.head_weight.len(), weights.len()),
            None => (
                row(|split| &split.logits).or(of_labels).unwrap_or(0),
                row(|split| &split.features).or(side.map(|_| CHANNELS)).unwrap_or(0),
            ),
        };
        Ok(Self { n_classes, n_features, side })
    }

    fn head(&self, example: &Example) -> Result<Option<MemoryHead>, String> {
        if example.head_weight.is_empty() {
            return Ok(None);
        }
        let weight = flat(&example.head_weight, self.n_features, "head_weight")?;
        if example.head_bias.len() != self.n_classes {
            let (expected, got) = (self.n_classes, example.head_bias.len());
            return Err(format!(
                "`head_bias` of the example expected {expected} values, got {got}"
            ));
        }
        Ok(Some(MemoryHead { weight, bias: example.head_bias.clone() }))
    }

    /// The further heads by name.
    fn further_heads(&self, example: &Example) -> Result<BTreeMap<String, MemoryHead>, String> {
        let read = |(name, head): (&String, &ExampleHead)| {
            let what = format!("heads.{name}.weight");
            let weight = flat(&head.weight, self.n_features, &what)?;
            let (expected, got) = (head.weight.len(), head.bias.len());
            if expected != got || expected == 0 {
                return Err(format!(
                    "`heads.{name}` of the example expected as many values of `bias` as rows of `weight`, got {got} and {expected}"
                ));
            }
            Ok((name.clone(), MemoryHead { weight, bias: head.bias.clone() }))
        };
        example.heads.iter().map(read).collect()
    }

    /// The arrays of a split, with what follows from its images and features.
    fn split(
        &self,
        split: &ExampleSplit,
        name: &str,
        network: &ExampleClassifier,
    ) -> Result<MemorySplit, String> {
        let n = split.len();
        let side = self.side.unwrap_or(0);
        let array = |rows: &[Vec<f32>], what: &str, shape: &[usize]| {
            if rows.is_empty() {
                return Ok(MemoryTensor::default());
            }
            let what = format!("{name}.{what}");
            if rows.len() != n {
                return Err(format!(
                    "`{what}` of the example expected {n} rows, got {}",
                    rows.len()
                ));
            }
            let data = flat(rows, shape.iter().product(), &what)?;
            Ok(MemoryTensor::new(data, &[&[n], shape].concat()))
        };
        let images = array(&split.images, "images", &[CHANNELS, side, side])?;
        let mut features = array(&split.features, "features", &[self.n_features])?;
        if features.is_absent() && !images.is_absent() && self.n_features == CHANNELS {
            features = MemoryTensor::new(channel_means(&images.data, side * side), &[n, CHANNELS]);
        }
        let mut logits = array(&split.logits, "logits", &[self.n_classes])?;
        if logits.is_absent() && !features.is_absent() && network.head.is_some() {
            logits = MemoryTensor::new(network.logits(&features.data), &[n, self.n_classes]);
        }
        if !split.labels.is_empty() && split.labels.len() != n {
            let got = split.labels.len();
            return Err(format!("`{name}.labels` of the example expected {n} values, got {got}"));
        }
        Ok(MemorySplit { labels: split.labels.clone(), logits, features, images })
    }
}

/// Rows one after the other, each of this length.
fn flat(rows: &[Vec<f32>], len: usize, what: &str) -> Result<Vec<f32>, String> {
    match rows.iter().position(|row| row.len() != len) {
        Some(i) => Err(format!(
            "row {i} of `{what}` of the example expected {len} values, got {}",
            rows[i].len()
        )),
        None => Ok(rows.concat()),
    }
}

/// The rows, and after them each row again in reverse order.
fn with_mirror_images(split: &ExampleSplit) -> ExampleSplit {
    let both = |rows: &[Vec<f32>]| {
        let mirrored = rows.iter().map(|row| row.iter().rev().copied().collect());
        rows.iter().cloned().chain(mirrored).collect()
    };
    ExampleSplit {
        labels: Vec::new(),
        logits: both(&split.logits),
        features: both(&split.features),
        images: both(&split.images),
    }
}

/// The files that an example's parameters name, by what the host has them under.
fn files(info: &DetectorInfo) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for param in info.params.iter().filter(|param| param.kind == ParamKind::ASSET) {
        match info.example.params.get(&param.name) {
            Some(Value::String(place)) => files.push((param.name.clone(), place.into())),
            Some(Value::Array(places)) => {
                let places = places.iter().filter_map(Value::as_str).enumerate();
                files.extend(places.map(|(nth, it)| (format!("{}.{nth}", param.name), it.into())));
            }
            _ => {}
        }
    }
    files
}

/// The mean of each channel of each image.
fn channel_means(images: &[f32], pixels: usize) -> Vec<f32> {
    let mean = |channel: &[f32]| channel.iter().map(|&x| f64::from(x)).sum::<f64>() / pixels as f64;
    images.chunks_exact(pixels).map(|channel| mean(channel) as f32).collect()
}

/// A linear layer on rows of features.
fn linear(MemoryHead { weight, bias }: &MemoryHead, features: &[f32]) -> Vec<f32> {
    let n_features = weight.len() / bias.len();
    let mut out = Vec::with_capacity(features.len() / n_features * bias.len());
    for row in features.chunks_exact(n_features) {
        out.extend(weight.chunks_exact(n_features).zip(bias).map(|(weight, bias)| {
            let dot: f64 = weight.iter().zip(row).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
            (dot + f64::from(*bias)) as f32
        }));
    }
    out
}

/// The gradient with respect to each channel's mean, from that with respect to what a layer of this
/// weight gives.
fn of_means(weight: &[f32], cotangent: &[f32]) -> Vec<f32> {
    let n_outputs = weight.len() / CHANNELS;
    let of_image = |cotangent: &[f32]| {
        let channel = |c: usize| {
            let terms = cotangent.iter().enumerate();
            terms.map(|(output, g)| g * weight[output * CHANNELS + c]).sum::<f32>()
        };
        (0..CHANNELS).map(channel).collect::<Vec<_>>()
    };
    cotangent.chunks_exact(n_outputs).flat_map(of_image).collect()
}

/// The classifier of worked examples: features are the means of the channels, and logits the head
/// applied to them. Its layer `input` is the image, a stage and a map, and further heads are linear
/// layers on the features. It does not normalise.
struct ExampleClassifier {
    head: Option<MemoryHead>,
    n_classes: usize,
    /// By name.
    heads: BTreeMap<String, MemoryHead>,
}

impl ExampleClassifier {
    const LAYER: &str = "input";

    /// The logits of rows of features; none without a head.
    fn logits(&self, features: &[f32]) -> Vec<f32> {
        self.head.as_ref().map_or_else(Vec::new, |head| linear(head, features))
    }

    /// A further head, which must take the features of this classifier.
    fn further(&self, name: &str) -> Result<&MemoryHead, RawError> {
        let head = self.heads.get(name).ok_or_else(|| self.unknown_layer(name))?;
        if head.weight.len() == head.bias.len() * CHANNELS {
            return Ok(head);
        }
        Err(bad_input(format!(
            "the example classifier has {CHANNELS} features: `{name}` expected as many"
        )))
    }

    fn unknown_layer(&self, name: &str) -> RawError {
        let expected = format!("logits, features, {}", self.layer_names().join(", "));
        bad_input(format!("layer expected one of {expected}, got `{name}`"))
    }

    /// The head, which must take the features of this classifier.
    fn weight(&self) -> Result<&[f32], RawError> {
        match &self.head {
            Some(head) if head.weight.len() == self.n_classes * CHANNELS => Ok(&head.weight),
            _ => Err(bad_input(format!(
                "the example classifier has {CHANNELS} features: the example's head expected as many"
            ))),
        }
    }
}

impl ImageNetwork for ExampleClassifier {
    fn forward(
        &self,
        images: &[f32],
        (height, width): (usize, usize),
    ) -> Result<ForwardOutputs, RawError> {
        self.weight()?;
        let features = channel_means(images, height * width);
        Ok(ForwardOutputs { logits: self.logits(&features).into(), features: features.into() })
    }

    /// Its only stage is the image, so that it goes on from any image.
    fn forward_from(
        &self,
        at: &str,
        activation: &MemoryTensor,
    ) -> Result<ForwardOutputs, RawError> {
        let shape = &activation.shape;
        match (at, shape.as_slice()) {
            (Self::LAYER, &[_, CHANNELS, height, width]) => {
                self.forward(&activation.data, (height, width))
            }
            (Self::LAYER, _) => Err(bad_input(format!(
                "activation at `{at}` expected [n, {CHANNELS}, height, width], got {shape:?}"
            ))),
            (other, _) => {
                Err(bad_input(format!("stage expected one of {}, got `{other}`", Self::LAYER)))
            }
        }
    }

    fn forward_with(
        &self,
        _weights: &Path,
        images: &[f32],
        size: (usize, usize),
    ) -> Result<ForwardOutputs, RawError> {
        // Whatever file an example names, it holds this classifier once more.
        self.forward(images, size)
    }

    fn vjp(
        &self,
        images: &[f32],
        (height, width): (usize, usize),
        at: &str,
        cotangent: &[f32],
    ) -> Result<Vec<f32>, RawError> {
        let pixels = height * width;
        let n = images.len() / (CHANNELS * pixels);
        let expect = |per_image: usize| match cotangent.len() == n * per_image {
            true => Ok(()),
            false => Err(bad_input(format!(
                "cotangent at `{at}` expected {} values, got {}",
                n * per_image,
                cotangent.len()
            ))),
        };
        // The gradient with respect to each channel's mean.
        let gradient: Vec<f32> = match at {
            Self::LAYER => {
                expect(CHANNELS * pixels)?;
                return Ok(cotangent.to_vec());
            }
            "features" => {
                expect(CHANNELS)?;
                cotangent.to_vec()
            }
            "logits" => {
                expect(self.n_classes)?;
                of_means(self.weight()?, cotangent)
            }
            head => {
                let head = self.further(head)?;
                expect(head.bias.len())?;
                of_means(&head.weight, cotangent)
            }
        };
        let spread = |g: f32| std::iter::repeat_n(g / pixels as f32, pixels);
        Ok(gradient.into_iter().flat_map(spread).collect())
    }

    fn normalisation(&self) -> Normalisation {
        Normalisation { mean: [0.0; CHANNELS], std: [1.0; CHANNELS] }
    }

    fn layer_names(&self) -> Vec<String> {
        std::iter::once(Self::LAYER.to_owned()).chain(self.heads.keys().cloned()).collect()
    }

    fn layer_groups(&self) -> LayerGroups {
        let input = vec![Self::LAYER.to_owned()];
        LayerGroups {
            stages: input.clone(),
            maps: input,
            heads: self.heads.keys().cloned().collect(),
        }
    }

    fn layers(
        &self,
        images: &[f32],
        (height, width): (usize, usize),
        names: &[String],
    ) -> Result<Vec<MemoryTensor>, RawError> {
        let n = images.len() / (CHANNELS * height * width);
        let layer = |(nth, name): (usize, &String)| {
            if names[..nth].contains(name) {
                return Err(bad_input(format!("layer `{name}` was named twice")));
            }
            if name == Self::LAYER {
                return Ok(MemoryTensor::new(images.to_vec(), &[n, CHANNELS, height, width]));
            }
            let head = self.further(name)?;
            let values = linear(head, &channel_means(images, height * width));
            Ok(MemoryTensor::new(values, &[n, head.bias.len()]))
        };
        names.iter().enumerate().map(layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classifier() -> ExampleClassifier {
        let head =
            Some(MemoryHead { weight: vec![1.0, 0.0, 2.0, 0.0, -1.0, 0.0], bias: vec![0.5, 0.0] });
        let confidence = MemoryHead { weight: vec![1.0, -2.0, 0.5], bias: vec![0.25] };
        let heads = [("confidence".to_owned(), confidence)].into();
        ExampleClassifier { head, n_classes: 2, heads }
    }

    #[test]
    fn features_are_channel_means_and_logits_the_head_of_them() {
        let images = [0.0, 1.0, 0.25, 0.75, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];
        let outputs = classifier().forward(&images, (1, 4)).unwrap();
        assert_eq!(outputs.features.as_slice(), [0.5, 0.5, 0.5]);
        assert_eq!(outputs.logits.as_slice(), [2.0, -0.5]);
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let classifier = classifier();
        let images: Vec<f32> = (0..24).map(|i| (i * 7 % 24) as f32 / 24.0).collect();
        let cotangent = [1.0, -2.0, 0.5, 3.0];
        let gradient = classifier.vjp(&images, (2, 2), "logits", &cotangent).unwrap();
        let value = |images: &[f32]| -> f32 {
            let logits = classifier.forward(images, (2, 2)).unwrap().logits;
            logits.iter().zip(cotangent).map(|(l, c)| l * c).sum()
        };
        for i in 0..images.len() {
            let (mut up, mut down) = (images.clone(), images.clone());
            up[i] += 0.25;
            down[i] -= 0.25;
            assert!((2.0 * (value(&up) - value(&down)) - gradient[i]).abs() < 1e-5, "{i}");
        }
    }

    #[test]
    fn a_further_head_is_a_layer_with_a_gradient() {
        let classifier = classifier();
        let images = [0.5, 1.0, 0.25];
        let names = ["confidence".to_owned(), "input".to_owned()];
        let layers = classifier.layers(&images, (1, 1), &names).unwrap();
        assert_eq!(
            (layers[0].data.as_slice(), layers[0].shape.as_slice()),
            (&[-1.125][..], &[1, 1][..])
        );
        assert_eq!(layers[1].data, images);
        let gradient = classifier.vjp(&images, (1, 1), "confidence", &[2.0]).unwrap();
        assert_eq!(gradient, [2.0, -4.0, 1.0]);
        assert_eq!(classifier.layer_groups().heads, ["confidence"]);
        let error = classifier.layers(&images, (1, 1), &["rotation".to_owned()]).unwrap_err();
        assert!(error.message.contains("input, confidence, got `rotation`"), "{}", error.message);
    }
}
