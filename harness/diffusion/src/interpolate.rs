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
mod tests;
