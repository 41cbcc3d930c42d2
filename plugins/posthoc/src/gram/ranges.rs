//! The range of every correlation within each class, and how far an image leaves it.

use oodbench_sdk::Layer;
use oodbench_sdk::prelude::*;
use rayon::prelude::*;

use super::correlation::{MOST, correlate};
use crate::numeric::moments::single;
use crate::numeric::reduce::{argmax, max_probability};

/// Added to the ends of a range before a deviation is divided by them.
const EPS: f64 = 1e-6;

/// Values of maps that are held at once: 64 MiB.
const VALUES_AT_ONCE: usize = 1 << 24;

/// Images whose maps are held at once, at most.
const IMAGES_AT_ONCE: usize = 32;

/// What is learned: the range of every correlation within each class.
///
/// Correlations of an image stand map by map, within a map power by power, within a power channel by
/// channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(crate = "oodbench_sdk::serde")]
pub struct Ranges {
    powers: Vec<u32>,
    /// Of each map.
    channels: Vec<usize>,
    /// Least and greatest values of each class, and then over all classes: `[n_classes + 1]` rows.
    least: Vec<f32>,
    greatest: Vec<f32>,
    /// Whether there is a range of this class.
    is_seen: Vec<bool>,
    /// What the deviation of each map is divided by.
    divisors: Vec<f64>,
}

impl Ranges {
    /// Learns from training images: `maps` gives the maps of the images with these numbers, few at a
    /// time and each image once.
    ///
    /// # Errors
    /// No images outside of `held_out`, maps of changing shapes or that are not finite, and what
    /// `maps` and `progress` say.
    pub fn learn(
        powers: &[u32],
        classes: &[usize],
        n_classes: usize,
        held_out: &[usize],
        mut maps: impl FnMut(&[usize]) -> Result<Vec<Layer>>,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let mut is_held_out = vec![false; classes.len()];
        for &image in held_out {
            is_held_out[image] = true;
        }
        let (held_out, kept): (Vec<usize>, Vec<usize>) =
            (0..classes.len()).partition(|&image| is_held_out[image]);
        if kept.is_empty() {
            return Err(Error::input("there are no training images"));
        }
        let mut ranges = Self {
            powers: powers.to_vec(),
            channels: Vec::new(),
            least: Vec::new(),
            greatest: Vec::new(),
            is_seen: vec![false; n_classes + 1],
            divisors: Vec::new(),
        };
        let mut rest = kept.as_slice();
        // The first image tells the sizes.
        let mut at_once = 1;
        while !rest.is_empty() {
            let (part, later) = rest.split_at(at_once.min(rest.len()));
            let layers = maps(part)?;
            if ranges.channels.is_empty() {
                ranges.channels = channels(&layers)?;
                let n = (n_classes + 1) * ranges.n_correlations();
                ranges.least = vec![f32::INFINITY; n];
                ranges.greatest = vec![f32::NEG_INFINITY; n];
                at_once = images_at_once(&layers);
            }
            for (&image, row) in part.iter().zip(ranges.correlations(&layers, part.len())?) {
                ranges.widen(classes[image], &row);
                ranges.widen(n_classes, &row);
            }
            rest = later;
            progress(kept.len() - rest.len())?;
        }
        let mut sums = vec![0.0; ranges.channels.len()];
        let mut done = kept.len();
        for part in held_out.chunks(at_once) {
            let rows = ranges.correlations(&maps(part)?, part.len())?;
            for (&image, row) in part.iter().zip(rows) {
                for (sum, deviation) in sums.iter_mut().zip(ranges.deviations(classes[image], &row))
                {
                    *sum += deviation;
                }
            }
            done += part.len();
            progress(done)?;
        }
        let mean = |sum: f64| if sum > 0.0 { sum / held_out.len() as f64 } else { 1.0 };
        ranges.divisors = sums.into_iter().map(mean).collect();
        Ok(ranges)
    }

    /// Scores of images with these maps and logits.
    ///
    /// # Errors
    /// Maps of other shapes than those learned from, or that are not finite.
    pub fn scores(&self, layers: &[Layer], logits: Matrix<'_>) -> Result<Vec<f32>> {
        let rows = self.correlations(layers, logits.n_rows())?;
        let score = |(row, logits): (Vec<f32>, &[f32])| {
            let deviations = self.deviations(argmax(logits), &row);
            let total: f64 = deviations.zip(&self.divisors).map(|(sum, by)| sum / by).sum();
            single(total / max_probability(logits, 1.0))
        };
        Ok(rows.into_iter().zip(logits.rows()).map(score).collect())
    }

    /// What the deviation of each map is divided by.
    pub fn divisors(&self) -> &[f64] {
        &self.divisors
    }

    /// Whether a state that was read has as many ranges as its sizes say.
    pub(super) fn is_whole(&self) -> bool {
        let channels = self.channels.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        let n = channels
            .and_then(|channels| channels.checked_mul(self.powers.len()))
            .and_then(|n| n.checked_mul(self.is_seen.len()));
        let found = [self.least.len(), self.greatest.len()].map(Some);
        found == [n; 2]
            && self.powers.iter().all(|power| (1..=MOST).contains(power))
            && self.is_seen.last() == Some(&true)
            && self.divisors.len() == self.channels.len()
    }

    /// Of an image.
    fn n_correlations(&self) -> usize {
        self.powers.len() * self.channels.iter().sum::<usize>()
    }

    /// The correlations of each of `n` images.
    fn correlations(&self, layers: &[Layer], n: usize) -> Result<Vec<Vec<f32>>> {
        let found = channels(layers)?;
        if found != self.channels {
            let expected = &self.channels;
            return Err(Error::input(format!(
                "channels of the maps expected {expected:?}, got {found:?}"
            )));
        }
        if let Some(layer) = layers.iter().find(|layer| layer.shape[0] != n) {
            let (name, got) = (&layer.name, layer.shape[0]);
            return Err(Error::input(format!("layer `{name}` expected {n} images, got {got}")));
        }
        let of_image = |image: usize| {
            let mut row = Vec::with_capacity(self.n_correlations());
            for layer in layers {
                let len = layer.data.len() / n;
                let map = &layer.data[image * len..(image + 1) * len];
                if !correlate(map, layer.shape[1], &self.powers, &mut row) {
                    let name = &layer.name;
                    return Err(Error::input(format!("layer `{name}` expected finite values")));
                }
            }
            Ok(row)
        };
        (0..n).into_par_iter().map(of_image).collect()
    }

    fn widen(&mut self, class: usize, row: &[f32]) {
        let of_class = class * row.len()..(class + 1) * row.len();
        let least = &mut self.least[of_class.clone()];
        for ((least, greatest), &x) in least.iter_mut().zip(&mut self.greatest[of_class]).zip(row) {
            *least = least.min(x);
            *greatest = greatest.max(x);
        }
        self.is_seen[class] = true;
    }

    /// How far the correlations of an image leave the range of a class, for each map.
    fn deviations<'a>(
        &'a self,
        class: usize,
        row: &'a [f32],
    ) -> impl Iterator<Item = f64> + use<'a> {
        let of_all = self.is_seen.len() - 1;
        let class = if self.is_seen.get(class) == Some(&true) { class } else { of_all };
        let of_class = class * row.len()..(class + 1) * row.len();
        let (least, greatest) = (&self.least[of_class.clone()], &self.greatest[of_class]);
        let mut first = 0;
        self.channels.iter().map(move |channels| {
            let range = first..first + channels * self.powers.len();
            first = range.end;
            let ends = least[range.clone()].iter().zip(&greatest[range.clone()]);
            ends.zip(&row[range]).map(|(ends, &x)| deviation(ends, x)).sum()
        })
    }
}

/// How far a correlation leaves a range, as a part of the end that it leaves.
fn deviation((&least, &greatest): (&f32, &f32), x: f32) -> f64 {
    // An end in `f32` is never -1e-6, so that nothing is divided by 0.
    let beyond = |end: f32, by: f64| by / (f64::from(end) + EPS).abs();
    if x < least {
        beyond(least, f64::from(least) - f64::from(x))
    } else if x > greatest {
        beyond(greatest, f64::from(x) - f64::from(greatest))
    } else {
        0.0
    }
}

/// The channels of each map.
fn channels(layers: &[Layer]) -> Result<Vec<usize>> {
    let of_map = |layer: &Layer| match *layer.shape.as_slice() {
        [_, channels, _, _] if channels > 0 => Ok(channels),
        ref shape => {
            let name = &layer.name;
            Err(Error::input(format!(
                "layer `{name}` expected [n, channels, height, width], got {shape:?}"
            )))
        }
    };
    layers.iter().map(of_map).collect()
}

/// Images whose maps may be held together, given the maps of one.
pub(super) fn images_at_once(layers: &[Layer]) -> usize {
    let per_image: usize = layers.iter().map(|layer| layer.data.len()).sum();
    (VALUES_AT_ONCE / per_image.max(1)).clamp(1, IMAGES_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(data: Vec<f32>, shape: &[usize]) -> Layer {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Layer { name: "map".to_owned(), data, shape: shape.to_vec() }
    }

    /// Ranges of maps of one pixel and one channel, so that a correlation is a square.
    fn learn(values: &[f32], classes: &[usize], held_out: &[usize]) -> Result<Ranges> {
        let maps = |images: &[usize]| {
            let values: Vec<f32> = images.iter().map(|&image| values[image]).collect();
            let n = values.len();
            Ok(vec![layer(values, &[n, 1, 1, 1])])
        };
        Ranges::learn(&[1], classes, 2, held_out, maps, |_| Ok(()))
    }

    fn score(ranges: &Ranges, value: f32, logits: &[f32]) -> f32 {
        let layers = [layer(vec![value], &[1, 1, 1, 1])];
        let logits = Matrix::new(logits, 1, logits.len()).unwrap();
        ranges.scores(&layers, logits).unwrap()[0]
    }

    #[test]
    fn a_deviation_is_divided_by_that_of_images_held_out() {
        // Squares 1 to 4, and 9 held out: 5 / 4 beyond.
        let ranges = learn(&[1.0, 2.0, 3.0], &[0; 3], &[2]).unwrap();
        assert_eq!(ranges.powers, [1]);
        let expected = (16.0 - 4.0) / (9.0 - 4.0);
        let ours = score(&ranges, 4.0, &[100.0, 0.0]);
        assert!((f64::from(ours) - expected).abs() < 1e-6, "{ours} {expected}");
        // A probability of one half makes it twice as much.
        let ours = score(&ranges, 4.0, &[0.0, 0.0]);
        assert!((f64::from(ours) - 2.0 * expected).abs() < 1e-6, "{ours} {expected}");
        assert_eq!(score(&ranges, 1.5, &[0.0, 0.0]), 0.0);
    }

    #[test]
    fn a_class_without_images_has_the_range_of_all() {
        let ranges = learn(&[1.0, 2.0], &[0; 2], &[]).unwrap();
        assert_eq!(ranges.divisors, [1.0]);
        assert_eq!(score(&ranges, 3.0, &[0.0, 50.0]), score(&ranges, 3.0, &[50.0, 0.0]));
        assert!(learn(&[], &[], &[]).is_err());
        assert!(learn(&[1.0], &[0], &[0]).is_err());
        assert!(learn(&[1.0, f32::NAN], &[0; 2], &[]).is_err());
    }

    #[test]
    fn maps_of_other_shapes_are_refused() {
        let ranges = learn(&[1.0, 2.0], &[0; 2], &[]).unwrap();
        let refused = |layers: &[Layer]| {
            let logits = Matrix::new(&[0.0, 0.0], 1, 2).unwrap();
            ranges.scores(layers, logits).unwrap_err().to_string()
        };
        let error = refused(&[layer(vec![1.0; 2], &[1, 2, 1, 1])]);
        assert_eq!(error, "channels of the maps expected [1], got [2]");
        let error = refused(&[layer(vec![1.0; 2], &[2, 1, 1, 1])]);
        assert_eq!(error, "layer `map` expected 1 images, got 2");
        let error = refused(&[layer(vec![1.0; 2], &[1, 2])]);
        assert_eq!(error, "layer `map` expected [n, channels, height, width], got [1, 2]");
    }
}
