//! Gram matrices: how far correlations between channels leave the range of the predicted class.
//!
//! Sastry and Oore, "Detecting Out-of-Distribution Examples with Gram Matrices", 2020. For every map
//! `F` of the classifier, channels by pixels, and every power `p`, channel `i` has the correlation
//! `G_i = sign(g) |g|^(1/p)` with `g = sum_j (F^p F^p')_ij`. Of each class least and greatest values
//! over training images are learned. An image's deviation in a map is
//! `sum relu(min_i - G_i) / |min_i + 1e-6| + relu(G_i - max_i) / |max_i + 1e-6|` over channels and
//! powers, with the range of its predicted class. Score: the sum of the maps' deviations, each divided
//! by its mean over training images that were held out (a tenth of each class), divided by the
//! predicted class's probability.
//!
//! Maps are the outputs of convolutions and ReLU modules, as OpenOOD hooks them; its CIFAR ResNets
//! call ReLU as a function, which hides those. Row sums are taken as `F_i^p . sum_j F_j^p`, without
//! any matrix of channels by channels. Images pass through the classifier once, a few at a time: first
//! those that make the ranges, then those that were held out.
//!
//! Where OpenOOD fails, this goes on: a predicted class without training images has the range over all
//! classes, and a map has the divisor 1 where no image was held out (every class has fewer than ten)
//! or none of them deviates. OpenOOD draws the held-out images without a seed; here they follow from
//! the run's.

mod correlation;
mod ranges;

use oodbench_sdk::ImageBatch;
use oodbench_sdk::prelude::*;

use crate::numeric::random::Random;
use crate::numeric::{check, state};
use correlation::MOST;
pub use ranges::Ranges;
use ranges::images_at_once;

/// Parameters of [`Gram`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde", default, deny_unknown_fields)]
pub struct Params {
    powers: Vec<u32>,
}

impl Default for Params {
    fn default() -> Self {
        Self { powers: vec![1, 2, 3, 4, 5] }
    }
}

/// Gram matrices.
pub struct Gram {
    params: Params,
    host: Host,
    /// The maps that are read; known once the classifier is.
    maps: Option<Maps>,
    ranges: Option<Ranges>,
}

/// The maps that are read.
struct Maps {
    names: Vec<String>,
    images_at_once: usize,
}

/// A tenth of each class's images, rounded down.
fn held_out(classes: &[usize], n_classes: usize, seed: u64) -> Vec<usize> {
    let mut of_class = vec![Vec::new(); n_classes];
    for (image, &class) in classes.iter().enumerate() {
        of_class[class].push(image);
    }
    let chosen = |(class, images): (usize, &Vec<usize>)| {
        let n = images.len();
        let chosen = Random::of_image(seed, class as u64).choose(n / 10, n);
        chosen.into_iter().map(|nth| images[nth]).collect::<Vec<_>>()
    };
    of_class.iter().enumerate().flat_map(chosen).collect()
}

impl Detector for Gram {
    type Params = Params;

    fn info() -> Info {
        Info {
            id: "gram",
            title: "Gram matrices",
            family: "distance",
            summary: "how far correlations between channels leave the range of the predicted class, in all layers",
            paper: "Sastry and Oore, Detecting Out-of-Distribution Examples with Gram Matrices",
            year: 2020,
            url: "https://arxiv.org/abs/1912.12510",
            needs: Needs::LOGITS
                .and(Needs::LABELS)
                .and(Needs::IMAGES)
                .and(Needs::LAYERS)
                .and(Needs::TRAIN),
            params: vec![
                Param::new("powers", "powers of activations, whole numbers", "OpenOOD v1.5")
                    .sweep([vec![1, 2, 3, 4, 5]]),
            ],
            // With one pixel and the power 1 the correlation of a channel is its value times the sum
            // of the channels, which is 1. Red is 0.1 above 0.4, green as much below 0.2; the class
            // has a probability of 3/4.
            example: Example::of_images(&[&[0.5, 0.1, 0.4]], &[0.999_996])
                .head(&[&[0.0; 3], &[0.0; 3]], &[1.098_612_3, 0.0])
                .train_images(&[&[0.2, 0.2, 0.6], &[0.4, 0.2, 0.4], &[0.0, 0.0, 1.0]], &[0, 0, 1])
                .param("powers", vec![1]),
            ..Info::default()
        }
    }

    fn new(params: Params, host: Host) -> Result<Self> {
        let Params { powers } = &params;
        let is_twice = |i: usize| powers[..i].contains(&powers[i]);
        let is_bad = |i: usize| !(1..=MOST).contains(&powers[i]) || is_twice(i);
        if powers.is_empty() || (0..powers.len()).any(is_bad) {
            let expected = format!("different whole numbers from 1 to {MOST}");
            return Err(Error::parameter("powers", &expected, format!("{powers:?}")));
        }
        Ok(Self { params, host, maps: None, ranges: None })
    }

    fn fit(&mut self, data: &FitData<'_>) -> Result<()> {
        let n_classes = data.n_classes();
        let train = data.train().id();
        let classes = check::classes(data.train().labels()?, n_classes)?;
        let names = self.host.layer_groups()?.maps;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (height, width) = self.host.image_size()?;
        let maps = |numbers: &[usize]| {
            let mut images = Vec::with_capacity(numbers.len() * 3 * height * width);
            for &number in numbers {
                images.extend(self.host.images(train, number, 1)?);
            }
            self.host.layers(ImageBatch::new(&images, height, width)?, &names)
        };
        let held_out = held_out(&classes, n_classes, self.host.seed());
        if held_out.is_empty() {
            self.host.warn(
                "no class has ten training images, so that none is held out and deviations of all \
                 layers count alike",
            );
        }
        let progress = |done| self.host.progress(done, classes.len());
        let powers = &self.params.powers;
        self.ranges = Some(Ranges::learn(powers, &classes, n_classes, &held_out, maps, progress)?);
        Ok(())
    }

    fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
        let ranges = state::fitted(self.ranges.as_ref())?;
        if batch.is_empty() {
            return Ok(());
        }
        let logits = check::logits(batch.logits()?)?;
        let images = batch.images()?;
        let [_, channels, height, width] = images.shape();
        let per_image = channels * height * width;
        let host = &self.host;
        let maps_of = |names: &[String], first: usize, n: usize| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let values = &images.values()[first * per_image..(first + n) * per_image];
            host.layers(ImageBatch::new(values, height, width)?, &names)
        };
        if self.maps.is_none() {
            let names = host.layer_groups()?.maps;
            let images_at_once = images_at_once(&maps_of(&names, 0, 1)?);
            self.maps = Some(Maps { names, images_at_once });
        }
        let Some(Maps { names, images_at_once }) = &self.maps else {
            return Err(Error::new("the classifier has no maps"));
        };
        for (nth, scores) in scores.chunks_mut(*images_at_once).enumerate() {
            let first = nth * images_at_once;
            host.progress(first, batch.len())?;
            let layers = maps_of(names, first, scores.len())?;
            let n_classes = logits.n_cols();
            let of_part = &logits.values()[first * n_classes..(first + scores.len()) * n_classes];
            let of_part = Matrix::new(of_part, scores.len(), n_classes)?;
            scores.copy_from_slice(&ranges.scores(&layers, of_part)?);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<Option<Vec<u8>>> {
        state::save(self.ranges.as_ref())
    }

    fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let ranges: Option<Ranges> = state::load(bytes)?;
        if ranges.as_ref().is_some_and(|ranges| !ranges.is_whole()) {
            return Err(Error::input("the saved state cannot be read: sizes differ"));
        }
        self.ranges = ranges;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_each_class_is_held_out() {
        let classes: Vec<usize> = (0..49).map(|i| usize::from(i >= 40)).collect();
        let mut chosen = held_out(&classes, 3, 1);
        chosen.sort_unstable();
        assert_eq!(chosen.len(), 4);
        assert!(chosen.iter().all(|&image| image < 40), "{chosen:?}");
        assert_ne!(held_out(&classes, 3, 1), held_out(&classes, 3, 2));
    }
}
