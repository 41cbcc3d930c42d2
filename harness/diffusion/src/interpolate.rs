//! The interpolation study: what lies between two images, as the diffusion network sees it.
//!
//! Both images are *encoded* to noise, that is moved up the trajectory that denoising would go
//! down. Then, for several steps on the way:
//!
//! - *asymmetric interpolation*: one image is diffused with the encoded noise of the other to some
//!   step, and denoised from there. Early steps keep the image, late ones show the other;
//! - *between*: the two noises are mixed on the sphere (slerp), and the mixture is denoised.
//!
//! As in the reference, encoding ends one stride before the noisiest state, so that a schedule of
//! 1000 steps sampled in 50 is encoded to 979. A network with classes is told "no class": the
//! reference tells it nothing, which leaves out the class's part of the embedding.

use candle_core::{DType, Device, Result, Tensor};

use crate::guidance::Guided;
use crate::net::EpsModel;
use crate::sample::Refusal;
use crate::sampler::Sampler;

/// Why images could not be interpolated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterpolateError {
    #[error(
        "images expected two batches of one shape [n, 3, height, width], got {first:?} and {second:?}"
    )]
    Shapes { first: Vec<usize>, second: Vec<usize> },
    #[error("sample steps expected two at least, got {got}")]
    Steps { got: usize },
    #[error("interpolated images expected finite pixels, got {got}")]
    NotFinite { got: f32 },
    #[error("interpolate images")]
    Network(#[source] Box<candle_core::Error>),
    /// What the caller's own function said.
    #[error(transparent)]
    Caller(Refusal),
}

/// The angle between two noises that slerp goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Angle {
    /// That of each pair of images.
    #[default]
    PerPair,
    /// One for all pairs: the reference takes the scalar product and the norms over the whole
    /// batch, so that its interpolation of a pair depends on the other pairs.
    WholeBatch,
}

/// What to interpolate with.
pub struct Interpolation<'a> {
    pub model: &'a dyn EpsModel,
    pub sampler: Sampler<'a>,
    pub angle: Angle,
    /// Images in one evaluation of the network. An adaptive method takes one image at a time.
    pub batch: usize,
}

/// The images of the three studies. All are `[n_pairs, n_steps, 3, height, width]`, in `[0, 1]`.
pub struct Interpolated {
    /// How far on the way each of the `n_steps` is, counted in strides.
    pub strides: Vec<usize>,
    /// The first image diffused with the noise of the second.
    pub first: Tensor,
    /// The second image diffused with the noise of the first.
    pub second: Tensor,
    /// From the noise of the first to that of the second.
    pub between: Tensor,
}

impl Interpolation<'_> {
    /// The strides of the studies: tenths of the way, from one to nine, as far as they differ. Of
    /// 50 steps, 5, 10, … 45.
    pub fn strides(&self) -> Vec<usize> {
        let steps = self.sampler.sample_steps;
        let mut strides: Vec<usize> = (1..10).map(|tenth| (tenth * steps + 5) / 10).collect();
        strides.retain(|stride| (1..steps).contains(stride));
        strides.dedup();
        strides
    }

    /// The step that so many strides lead to.
    fn step(&self, strides: usize) -> usize {
        strides * (self.sampler.schedule.steps() / self.sampler.sample_steps.max(1))
    }

    /// The state that encoding ends in.
    fn encoded(&self) -> i64 {
        self.sampler.state_of(self.step(self.sampler.sample_steps.saturating_sub(1)))
    }

    fn rows_at_once(&self) -> usize {
        if self.sampler.method.is_adaptive() { 1 } else { self.batch.max(1) }
    }

    /// How often the network is evaluated, and `tick` called, for so many pairs; a guess for an
    /// adaptive method.
    pub fn evaluations(&self, n_pairs: usize) -> usize {
        let batches = |rows: usize| rows.div_ceil(self.rows_at_once());
        let (strides, end) = (self.strides(), self.encoded());
        let encoding = batches(2 * n_pairs) * self.sampler.evaluations(-1, end);
        let asymmetric: usize = strides
            .iter()
            .map(|&k| self.sampler.evaluations(self.sampler.state_of(self.step(k)), -1))
            .sum();
        let between = batches(strides.len() * n_pairs) * self.sampler.evaluations(end, -1);
        encoding + batches(2 * n_pairs) * asymmetric + between
    }

    /// Interpolates pairs of images.
    ///
    /// `tick` is called before each evaluation of the network; its error ends the work and comes
    /// back as [`InterpolateError::Caller`].
    ///
    /// # Shapes
    /// - `first`, `second`: `[n_pairs, 3, height, width]`, in `[0, 1]`
    ///
    /// # Errors
    /// Images of other shapes, fewer than two steps, settings that the sampler refuses, pixels
    /// that are not finite, and what `tick` says.
    pub fn run(
        &self,
        first: &Tensor,
        second: &Tensor,
        tick: &mut dyn FnMut() -> std::result::Result<(), Refusal>,
    ) -> std::result::Result<Interpolated, InterpolateError> {
        if first.dims() != second.dims() || first.rank() != 4 || first.dims()[0] == 0 {
            let (first, second) = (first.dims().to_vec(), second.dims().to_vec());
            return Err(InterpolateError::Shapes { first, second });
        }
        if self.sampler.sample_steps < 2 {
            return Err(InterpolateError::Steps { got: self.sampler.sample_steps });
        }
        let mut refusal = None;
        let mut tick = || {
            tick().map_err(|err| {
                refusal = Some(err);
                candle_core::Error::msg("stopped by the caller")
            })
        };
        let studies = self.studies(first, second, &mut tick);
        let (interpolated, sum) = match (studies, refusal) {
            (Ok(studies), _) => studies,
            (Err(_), Some(refusal)) => return Err(InterpolateError::Caller(refusal)),
            (Err(err), None) => return Err(InterpolateError::Network(Box::new(err))),
        };
        // What is not finite makes the sum so.
        match sum.is_finite() {
            true => Ok(interpolated),
            false => Err(InterpolateError::NotFinite { got: sum }),
        }
    }

    /// The studies, and the sum of all their pixels before these were clamped.
    fn studies(
        &self,
        first: &Tensor,
        second: &Tensor,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Interpolated, f32)> {
        let n_pairs = first.dim(0)?;
        let images = Tensor::cat(&[first, second], 0)?.affine(2.0, -1.0)?;
        let noises = self.walk(&images, -1, self.encoded(), tick)?;
        let noise_of = |image: usize| noises.narrow(0, image * n_pairs, n_pairs);
        let (noise_of_first, noise_of_second) = (noise_of(0)?, noise_of(1)?);
        let swapped = Tensor::cat(&[&noise_of_second, &noise_of_first], 0)?;

        let strides = self.strides();
        let mut asymmetric = Vec::with_capacity(strides.len());
        for &k in &strides {
            let step = self.step(k);
            let x = self.sampler.schedule.diffuse(&images, &vec![step; 2 * n_pairs], &swapped)?;
            asymmetric.push(self.walk(&x, self.sampler.state_of(step), -1, tick)?);
        }
        let asymmetric = Tensor::stack(&asymmetric, 1)?; // [2 n_pairs, n_steps, 3, h, w]

        let mixtures = strides
            .iter()
            .map(|&k| {
                let share = k as f64 / self.sampler.sample_steps as f64;
                slerp(&noise_of_first, &noise_of_second, share, self.angle)
            })
            .collect::<Result<Vec<_>>>()?;
        let mixtures = Tensor::stack(&mixtures, 1)?; // [n_pairs, n_steps, 3, h, w]
        let shape = mixtures.shape().clone();
        let between = self.walk(&mixtures.flatten(0, 1)?, self.encoded(), -1, tick)?;
        let between = between.reshape(shape)?;

        let sum = |x: &Tensor| x.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>();
        let sum = sum(&asymmetric)? + sum(&between)?;
        let in_unit_range = |x: Tensor| x.affine(0.5, 0.5)?.clamp(0.0, 1.0);
        let asymmetric = in_unit_range(asymmetric)?;
        let interpolated = Interpolated {
            strides,
            first: asymmetric.narrow(0, 0, n_pairs)?,
            second: asymmetric.narrow(0, n_pairs, n_pairs)?,
            between: in_unit_range(between)?,
        };
        Ok((interpolated, sum))
    }

    /// Moves images along their trajectories, a batch at a time.
    fn walk(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let (n, at_once) = (x.dim(0)?, self.rows_at_once());
        let mut moved = Vec::with_capacity(n.div_ceil(at_once));
        for row in (0..n).step_by(at_once) {
            let x = x.narrow(0, row, at_once.min(n - row))?;
            let classes = match self.model.n_classes() {
                0 => None,
                no_class => Some(Tensor::full(no_class as u32, x.dim(0)?, x.device())?),
            };
            let guided = Guided { model: self.model, classes, beta: 0.0 };
            moved.push(self.sampler.run(&x, start, end, |x, t| {
                tick()?;
                guided.eps(x, t)
            })?);
        }
        Tensor::cat(&moved, 0)
    }
}

/// Spherical interpolation: the noise at a share of the angle from `a` to `b`. Noises that point
/// the same way, or the opposite one, have no arc between them and are mixed along a line.
///
/// # Shapes
/// - `a`, `b`, the result: `[n, 3, height, width]`
///
/// # Errors
/// Noises of different shapes.
pub fn slerp(a: &Tensor, b: &Tensor, share: f64, angle: Angle) -> Result<Tensor> {
    let products = |x: &Tensor, y: &Tensor| -> Result<Vec<f64>> {
        let product = (x * y)?.flatten_from(1)?.to_device(&Device::Cpu)?;
        let per_pair = product.to_dtype(DType::F64)?.sum(1)?.to_vec1::<f64>()?;
        Ok(match angle {
            Angle::PerPair => per_pair,
            Angle::WholeBatch => vec![per_pair.iter().sum(); per_pair.len()],
        })
    };
    let (dot, square_a, square_b) = (products(a, b)?, products(a, a)?, products(b, b)?);
    let mut weights = (Vec::with_capacity(dot.len()), Vec::with_capacity(dot.len()));
    for (dot, (a, b)) in dot.iter().zip(square_a.iter().zip(&square_b)) {
        let theta = (dot / (a.sqrt() * b.sqrt())).clamp(-1.0, 1.0).acos();
        let (of_a, of_b) = match theta.sin() {
            sine if sine > 1e-6 => {
                (((1.0 - share) * theta).sin() / sine, (share * theta).sin() / sine)
            }
            _ => (1.0 - share, share),
        };
        weights.0.push(of_a as f32);
        weights.1.push(of_b as f32);
    }
    let weighted = |x: &Tensor, weights: Vec<f32>| {
        let weights = Tensor::from_vec(weights, (x.dim(0)?, 1, 1, 1), x.device())?;
        x.broadcast_mul(&weights.to_dtype(x.dtype())?)
    };
    weighted(a, weights.0)? + weighted(b, weights.1)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Pass;
    use crate::sampler::Method;
    use crate::schedule::{Schedule, ScheduleConfig};
    use oodbench_nn::formula;

    /// `0.6 tanh(x) + 0.3 sin(t / 100)`; must be told "no class".
    struct Analytic;

    impl EpsModel for Analytic {
        fn eps(&self, x_t: &Tensor, t: &Tensor, y: Option<&Tensor>, _: Pass<'_>) -> Result<Tensor> {
            assert!(y.unwrap().to_vec1::<u32>()?.iter().all(|&y| y == 10));
            let shift = ((t / 100.0)?.sin()? * 0.3)?.reshape(((), 1, 1, 1))?;
            (x_t.tanh()? * 0.6)?.broadcast_add(&shift)
        }

        fn n_classes(&self) -> usize {
            10
        }

        fn image_size(&self) -> usize {
            4
        }
    }

    fn schedule() -> Schedule {
        Schedule::new(&ScheduleConfig::default())
    }

    fn interpolation(schedule: &Schedule, steps: usize) -> Interpolation<'_> {
        let sampler = Sampler::new(schedule, Method::Pndm4, steps);
        Interpolation { model: &Analytic, sampler, angle: Angle::PerPair, batch: 64 }
    }

    fn images(name: &str, n: usize) -> Tensor {
        let values = formula::uniform(name, n * 48, 0.0, 1.0);
        Tensor::from_vec(values, (n, 3, 4, 4), &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        let squares = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        squares.sqrt()
    }

    #[test]
    fn strides_are_those_of_the_reference() {
        let schedule = schedule();
        let strides = |steps| interpolation(&schedule, steps).strides();
        assert_eq!(strides(50), [5, 10, 15, 20, 25, 30, 35, 40, 45]);
        assert_eq!(strides(20), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(strides(4), [1, 2, 3]);
        assert_eq!(interpolation(&schedule, 50).encoded(), 979);
        assert_eq!(interpolation(&schedule, 20).encoded(), 949);
    }

    #[test]
    fn each_study_leads_from_one_image_to_the_other() {
        let schedule = schedule();
        let (a, b) = (images("a", 1), images("b", 1));
        let studies = interpolation(&schedule, 50).run(&a, &b, &mut || Ok(())).unwrap();
        let step = |study: &Tensor, i: usize| study.narrow(1, i, 1).unwrap().squeeze(1).unwrap();
        for (name, study, from) in [
            ("first", &studies.first, &a),
            ("second", &studies.second, &b),
            ("between", &studies.between, &a),
        ] {
            let there: Vec<f32> = (0..9).map(|i| distance(&step(study, i), from)).collect();
            assert!(there[0] < there[4] && there[4] < there[8], "{name}: {there:?}");
        }
        // Only the last study goes the whole way for a model that is no network.
        assert!(
            distance(&step(&studies.between, 8), &b) < distance(&step(&studies.between, 0), &b)
        );
    }

    #[test]
    fn the_studies_are_those_of_the_reference() {
        // The reference's `interpolation` with this model in the place of the network: the mean
        // of the first pair's image, and the last pixel of the second pair's last channel.
        let schedule = schedule();
        let interpolation =
            Interpolation { angle: Angle::WholeBatch, ..interpolation(&schedule, 50) };
        let (a, b) = (images("a", 2), images("b", 2));
        let studies = interpolation.run(&a, &b, &mut || Ok(())).unwrap();
        let check = |study: &Tensor, expected: [(f32, f32); 3]| {
            for (i, (mean, last)) in [0, 4, 8].into_iter().zip(expected) {
                let of_pair = |pair: usize| values(&study.get(pair).unwrap().get(i).unwrap());
                let (first, second) = (of_pair(0), of_pair(1));
                let got = (first.iter().sum::<f32>() / 48.0, second[47]);
                assert!((got.0 - mean).abs() < 1e-5 && (got.1 - last).abs() < 1e-5, "{i}: {got:?}");
            }
        };
        let first = [(0.474055, 0.621568), (0.607061, 0.713657), (0.316427, 0.510814)];
        check(&studies.first, first);
        let second = [(0.488141, 0.685704), (0.612101, 0.729808), (0.314472, 0.471195)];
        check(&studies.second, second);
        let between = [(0.473793, 0.647601), (0.498736, 0.710708), (0.488447, 0.714685)];
        check(&studies.between, between);
    }

    #[test]
    fn the_number_of_images_at_once_changes_nothing_and_is_announced() {
        let schedule = schedule();
        let (a, b) = (images("a", 3), images("b", 3));
        let mut all = Vec::new();
        for batch in [64, 4, 1] {
            let interpolation = Interpolation { batch, ..interpolation(&schedule, 10) };
            let mut asked = 0;
            let mut tick = || {
                asked += 1;
                Ok(())
            };
            let studies = interpolation.run(&a, &b, &mut tick).unwrap();
            assert_eq!(asked, interpolation.evaluations(3));
            all.push([studies.first, studies.second, studies.between].map(|x| values(&x)));
        }
        assert_eq!(all[0], all[1]);
        assert_eq!(all[0], all[2]);
    }

    #[test]
    fn slerp_keeps_to_the_sphere() {
        let device = &Device::Cpu;
        let vector = |x: f32, y: f32| Tensor::from_vec(vec![x, y], (1, 1, 1, 2), device).unwrap();
        let half = slerp(&vector(1.0, 0.0), &vector(0.0, 1.0), 0.5, Angle::PerPair).unwrap();
        assert!(values(&half).iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-6));
        let same = slerp(&vector(1.0, 2.0), &vector(1.0, 2.0), 0.3, Angle::PerPair).unwrap();
        assert!(distance(&same, &vector(1.0, 2.0)) < 1e-6);
    }

    #[test]
    fn the_angle_of_the_reference_is_that_of_the_batch() {
        // From PyTorch, with the formula of the reference, at a share of 0.3:
        // z1 = [[1, 0], [0, 2]], z2 = [[0, 1], [1, 2]].
        let pairs = |v: [f32; 4]| Tensor::from_vec(v.to_vec(), (2, 1, 1, 2), &Device::Cpu).unwrap();
        let (a, b) = (pairs([1.0, 0.0, 0.0, 2.0]), pairs([0.0, 1.0, 1.0, 2.0]));
        let batch = values(&slerp(&a, &b, 0.3, Angle::WholeBatch).unwrap());
        for (got, expected) in batch.iter().zip([0.735509, 0.327468, 0.327468, 2.125953]) {
            assert!((got - expected).abs() < 1e-5, "{batch:?}");
        }
        let one =
            slerp(&a.narrow(0, 0, 1).unwrap(), &b.narrow(0, 0, 1).unwrap(), 0.3, Angle::WholeBatch);
        let both = values(&slerp(&a, &b, 0.3, Angle::PerPair).unwrap());
        assert_eq!(values(&one.unwrap()), both[..2]);
    }

    #[test]
    fn what_cannot_be_interpolated_is_refused() {
        let schedule = schedule();
        let (a, b) = (images("a", 1), images("b", 2));
        let run = |steps, a: &Tensor, b: &Tensor| {
            let err = interpolation(&schedule, steps).run(a, b, &mut || Ok(()));
            err.err().unwrap().to_string()
        };
        assert!(run(50, &a, &b).contains("got [1, 3, 4, 4] and [2, 3, 4, 4]"));
        assert_eq!(run(1, &a, &a), "sample steps expected two at least, got 1");
        let infinite = (&a * f64::INFINITY).unwrap();
        assert!(run(10, &a, &infinite).contains("expected finite pixels"));
        let stopped = interpolation(&schedule, 10).run(&a, &a, &mut || Err("enough".into()));
        assert_eq!(stopped.err().unwrap().to_string(), "enough");
    }
}
