//! The classifier of worked examples.

use std::collections::BTreeMap;
use std::path::Path;

use oodbench_abi::message::{LayerGroups, Normalisation};
use oodbench_abi::{ForwardOutputs, RawError};

use super::CHANNELS;
use crate::check::memory::{ImageNetwork, MemoryHead, MemoryTensor, bad_input};

/// The classifier of worked examples: features are the means of the channels, and logits the head
/// applied to them. Its layer `input` is the image, a stage and a map, and further heads are linear
/// layers on the features. It does not normalise.
pub(super) struct ExampleClassifier {
    pub(super) head: Option<MemoryHead>,
    pub(super) n_classes: usize,
    /// By name.
    pub(super) heads: BTreeMap<String, MemoryHead>,
}

impl ExampleClassifier {
    const LAYER: &str = "input";

    /// The logits of rows of features; none without a head.
    pub(super) fn logits(&self, features: &[f32]) -> Vec<f32> {
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

/// The mean of each channel of each image.
pub(super) fn channel_means(images: &[f32], pixels: usize) -> Vec<f32> {
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
