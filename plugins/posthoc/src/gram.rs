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

use oodbench_sdk::prelude::*;
use oodbench_sdk::{ImageBatch, Layer};
use rayon::prelude::*;

use crate::numeric::moments::single;
use crate::numeric::random::Random;
use crate::numeric::reduce::{argmax, max_probability};
use crate::numeric::{check, state};

/// Added to the ends of a range before a deviation is divided by them.
const EPS: f64 = 1e-6;

/// The greatest power, which is the paper's.
const MOST: u32 = 10;

/// Values of maps that are held at once: 64 MiB.
const VALUES_AT_ONCE: usize = 1 << 24;

/// Images whose maps are held at once, at most.
const IMAGES_AT_ONCE: usize = 32;

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
    fn is_whole(&self) -> bool {
        let channels = self.channels.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        let n = channels
            .and_then(|channels| channels.checked_mul(self.powers.len()))
            .and_then(|n| n.checked_mul(self.is_seen.len()));
        let found = [self.least.len(), self.greatest.len()].map(Some);
        found == [n; 2]
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
fn images_at_once(layers: &[Layer]) -> usize {
    let per_image: usize = layers.iter().map(|layer| layer.data.len()).sum();
    (VALUES_AT_ONCE / per_image.max(1)).clamp(1, IMAGES_AT_ONCE)
}

/// Appends the correlation of each channel with all channels, power by power; `false` for a map that
/// is not finite.
fn correlate(map: &[f32], channels: usize, powers: &[u32], out: &mut Vec<f32>) -> bool {
    // Without their signs, numbers are in the order of their bits, and those that are none stand last.
    let size = map.iter().map(|x| x.to_bits() & !(1 << 31)).max().map_or(0.0, f32::from_bits);
    if !size.is_finite() {
        return false;
    }
    // Powers of values up to 1 neither overflow nor vanish together.
    let size = f64::from(size);
    let first = out.len();
    out.resize(first + powers.len() * channels, 0.0);
    if size > 0.0 {
        let greatest = powers.iter().copied().max().unwrap_or(0);
        let out = &mut out[first..];
        // Compiled for the vectors that the machine has, and for each number of powers.
        pulp::Arch::new().dispatch(|| match greatest {
            1 => correlate_up_to::<1>(map, channels, powers, size, out),
            2 => correlate_up_to::<2>(map, channels, powers, size, out),
            3 => correlate_up_to::<3>(map, channels, powers, size, out),
            4 => correlate_up_to::<4>(map, channels, powers, size, out),
            5 => correlate_up_to::<5>(map, channels, powers, size, out),
            _ => correlate_up_to::<{ MOST as usize }>(map, channels, powers, size, out),
        });
    }
    true
}

/// Pixels that are worked on together.
const LANES: usize = 8;

/// The powers of some pixels, from the first on.
type Powers<const M: usize> = [[f64; LANES]; M];

/// The correlations of a map that is not all zeros, in two passes over it: the sum of all channels for
/// each pixel and power, then its product with each channel.
#[inline(always)]
fn correlate_up_to<const M: usize>(
    map: &[f32],
    channels: usize,
    powers: &[u32],
    size: f64,
    out: &mut [f32],
) {
    let pixels = map.len() / channels;
    let mut sums: Vec<Powers<M>> = vec![[[0.0; LANES]; M]; pixels.div_ceil(LANES)];
    for row in map.chunks_exact(pixels) {
        let (whole, rest) = row.as_chunks::<LANES>();
        for (sums, xs) in sums.iter_mut().zip(whole) {
            add_powers(xs, size, sums);
        }
        if !rest.is_empty() {
            add_powers(&padded(rest), size, &mut sums[whole.len()]);
        }
    }
    for (channel, row) in map.chunks_exact(pixels).enumerate() {
        let mut products: Powers<M> = [[0.0; LANES]; M];
        let (whole, rest) = row.as_chunks::<LANES>();
        for (sums, xs) in sums.iter().zip(whole) {
            add_products(xs, size, sums, &mut products);
        }
        if !rest.is_empty() {
            add_products(&padded(rest), size, &sums[whole.len()], &mut products);
        }
        for (nth, &power) in powers.iter().enumerate() {
            let g: f64 = products[power as usize - 1].iter().sum();
            // The map was divided by its size, which the correlation holds twice.
            let root = g.signum() * g.abs().powf(1.0 / f64::from(power)) * size * size;
            out[nth * channels + channel] = single(root);
        }
    }
}

/// The last pixels of a row, and zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut xs = [0.0; LANES];
    xs[..rest.len()].copy_from_slice(rest);
    xs
}

/// `sums += (xs / size)^p` for each power.
#[inline(always)]
fn add_powers<const M: usize>(xs: &[f32; LANES], size: f64, sums: &mut Powers<M>) {
    let scale = 1.0 / size;
    for lane in 0..LANES {
        let x = f64::from(xs[lane]) * scale;
        let mut power = x;
        for sums in sums.iter_mut() {
            sums[lane] += power;
            power *= x;
        }
    }
}

/// `products += (xs / size)^p * sums` for each power.
#[inline(always)]
fn add_products<const M: usize>(
    xs: &[f32; LANES],
    size: f64,
    sums: &Powers<M>,
    products: &mut Powers<M>,
) {
    let scale = 1.0 / size;
    for lane in 0..LANES {
        let x = f64::from(xs[lane]) * scale;
        let mut power = x;
        for (products, sums) in products.iter_mut().zip(sums) {
            products[lane] += power * sums[lane];
            power *= x;
        }
    }
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

    fn layer(data: Vec<f32>, shape: &[usize]) -> Layer {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Layer { name: "map".to_owned(), data, shape: shape.to_vec() }
    }

    fn correlations(map: &[f32], channels: usize, powers: &[u32]) -> Vec<f32> {
        let mut out = Vec::new();
        assert!(correlate(map, channels, powers, &mut out));
        out
    }

    #[test]
    fn row_sums_are_those_of_the_whole_gram_matrix() {
        let (channels, pixels) = (5, 13);
        let mut random = Random::new(3);
        let map: Vec<f32> =
            (0..channels * pixels).map(|_| (random.unit() * 8.0 - 4.0) as f32).collect();
        let powers = [1, 5, 2, 3];
        let ours = correlations(&map, channels, &powers);
        let at = |i: usize, k: usize, p: u32| f64::from(map[i * pixels + k]).powi(p as i32);
        let mut expected = Vec::new();
        for p in powers {
            for i in 0..channels {
                let entry = |j: usize| (0..pixels).map(|k| at(i, k, p) * at(j, k, p)).sum::<f64>();
                let g: f64 = (0..channels).map(entry).sum();
                expected.push(g.signum() * g.abs().powf(1.0 / f64::from(p)));
            }
        }
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!(
                (f64::from(*ours) - expected).abs() < 1e-5 * expected.abs(),
                "{ours} {expected}"
            );
        }
    }

    #[test]
    fn great_powers_of_extreme_maps_stay_finite() {
        for size in [f32::MAX, 1e-30, f32::MIN_POSITIVE] {
            let row = correlations(&[size, -size, size / 2.0, size], 2, &[1, 5, MOST]);
            assert!(row.iter().all(|g| g.is_finite()), "{size}: {row:?}");
        }
        assert_eq!(correlations(&[0.0; 6], 3, &[1, 2]), [0.0; 6]);
        assert!(!correlate(&[1.0, f32::NAN], 1, &[1], &mut Vec::new()));
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
