//! A detector's own images on their way through the classifier, in parts that it takes at once.

use std::ops::Range;

use oodbench_abi::abi_stable::std_types::RVec;
use oodbench_abi::{ForwardOutputs, TensorView};
use oodbench_nn::classifier::Classifier;
use oodbench_nn::device::{give_back, is_out_of_memory};

use super::Outcome;
use crate::check::memory::bad_input;
use crate::check::network::{self, failed};

/// Images that the classifier takes at once when a detector hands it more.
pub(super) const FORWARD_BATCH: usize = 128;

/// Pixels of the images that a classifier on a GPU takes at once, if that is more: 1024 images of
/// CIFAR's size.
const FORWARD_PIXELS: usize = 1 << 20;

/// Images of a detector's own: their number, height and width, and values.
pub(super) struct Images<'a> {
    pub(super) n: usize,
    pub(super) size: (usize, usize),
    pub(super) values: &'a [f32],
}

impl<'a> Images<'a> {
    pub(super) fn new(images: TensorView<'a>) -> Outcome<Self> {
        let (n, size) = match *images.shape.as_slice() {
            [n, 3, height, width] if images.is_valid() => (n, (height, width)),
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
        Ok(Self { n, size, values })
    }

    /// The images with these numbers.
    pub(super) fn part(&self, range: &Range<usize>) -> &'a [f32] {
        let image = 3 * self.size.0 * self.size.1;
        &self.values[range.start * image..range.end * image]
    }
}

/// The rows that the classifier takes at once, of so many.
pub(super) fn parts(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(FORWARD_BATCH).map(move |first| first..(first + FORWARD_BATCH).min(n))
}

/// Logits and features of parts one after the other.
pub(super) fn joined(
    parts: impl Iterator<Item = Outcome<ForwardOutputs>>,
) -> Outcome<ForwardOutputs> {
    let mut all = ForwardOutputs { logits: RVec::new(), features: RVec::new() };
    for outputs in parts {
        let ForwardOutputs { logits, features } = outputs?;
        all.logits.extend(logits);
        all.features.extend(features);
    }
    Ok(all)
}

/// Logits and features of images, as many at once as the classifier's device has memory for.
pub(super) fn forward(classifier: &Classifier, images: &Images<'_>) -> Outcome<ForwardOutputs> {
    let (height, width) = images.size;
    let mut at_once = match classifier.device().is_cpu() {
        true => FORWARD_BATCH,
        false => (FORWARD_PIXELS / (height * width).max(1)).max(FORWARD_BATCH),
    };
    let mut all = ForwardOutputs { logits: RVec::new(), features: RVec::new() };
    let mut first = 0;
    while first < images.n {
        let range = first..(first + at_once).min(images.n);
        match classifier.forward(images.part(&range), images.size) {
            Ok(outputs) => {
                let part = network::outputs(&outputs)?;
                all.logits.extend(part.logits);
                all.features.extend(part.features);
                first = range.end;
            }
            // The detector has taken what it takes; the classifier makes do with the rest.
            Err(error) if is_out_of_memory(&error) && range.len() > 1 => {
                give_back(classifier.device()).map_err(failed)?;
                at_once = range.len() / 2;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(all)
}
