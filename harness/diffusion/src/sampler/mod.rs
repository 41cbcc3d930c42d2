//! Samplers: a *transfer* (how a state moves along a given direction) times a *gradient* (which
//! direction to move along), the factorisation of pseudo-numerical methods.
//!
//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022.
//!
//! | name | transfer | gradient |
//! | --- | --- | --- |
//! | DDIM | DDIM | the noise at the state |
//! | PNDM2 | DDIM | Adams-Bashforth of order 2, begun by improved Euler |
//! | PNDM4 | DDIM | Adams-Bashforth of order 4, begun by three Runge-Kutta steps |
//! | NDM1 | linear | forward Euler on the probability-flow ODE |
//! | NDM4 | linear | Adams-Bashforth of order 4 on it, begun by three Runge-Kutta steps |
//! | PF | - | adaptive Runge-Kutta 5(4) on it, as scipy's `solve_ivp` |
//!
//! **Steps.** Every method is called with states of the schedule, `-1` being the clean end, and
//! goes in both directions. What a state means to the DDIM transfer is [`Indexing`]: by default
//! the reference's convention. The others know the time `(s + 1) / n`: a trajectory from `n - 1`
//! to `-1` is the reference's interval from `n` to 0, and one from `t - 1` to `-1`, as detection
//! has it, begins at time `t / n`.
//!
//! **Guidance.** The samplers ask for a noise and do not know how it came about, so that every
//! method can be guided. The reference ignores classes under NDM.
//!
//! **PF in the reference** stops for want of an attribute, `sample_speed`. What was meant follows
//! from its use: a tolerance of 7e-4, absolute and relative, whenever the schedule is sampled in
//! fewer steps than it has. Here the tolerance is a field, and 7e-4 its default.

mod flow;
mod gradient;
mod indexing;
mod method;
mod rk45;

use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};

use crate::schedule::Schedule;
use flow::Flow;
use gradient::Field;
pub use indexing::Indexing;
pub use method::Method;
use method::{Gradient, Scheme, Transfer};

/// The tolerance of the reference's PF.
pub const TOLERANCE: f64 = 7e-4;

/// The states that a trajectory goes through, the last one included.
///
/// From `start` towards `end` in strides of `schedule.steps() / sample_steps`; the last stride is
/// shorter where the distance is no multiple of it. Equal ends give no step.
pub fn trajectory(schedule: &Schedule, sample_steps: usize, start: i64, end: i64) -> Vec<i64> {
    let stride = stride(schedule, sample_steps);
    let mut steps = vec![start];
    let mut t = start;
    while t != end {
        let left = (end - t).abs();
        t += (end - t).signum() * stride.min(left);
        steps.push(t);
    }
    steps
}

fn stride(schedule: &Schedule, sample_steps: usize) -> i64 {
    (schedule.steps() / sample_steps.max(1)).max(1) as i64
}

/// A sampler over a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Sampler<'a> {
    pub schedule: &'a Schedule,
    pub method: Method,
    /// How many steps the whole schedule would be sampled with, from 1 to all of them. PF chooses
    /// its own.
    pub sample_steps: usize,
    /// What states mean to DDIM, PNDM2 and PNDM4.
    pub indexing: Indexing,
    /// The absolute and relative tolerance of PF in one step.
    pub tolerance: f64,
}

impl<'a> Sampler<'a> {
    /// A sampler with the conventions of the reference.
    pub fn new(schedule: &'a Schedule, method: Method, sample_steps: usize) -> Self {
        let (indexing, tolerance) = (Indexing::Reference, TOLERANCE);
        Self { schedule, method, sample_steps, indexing, tolerance }
    }

    /// The state that an image is in after [`Schedule::diffuse`] took it to step `t`: where its
    /// denoising starts.
    pub fn state_of(&self, t: usize) -> i64 {
        self.indexing.state_of(t)
    }

    /// The state that pure noise is taken for: the reference's `n - stride` for the DDIM transfer,
    /// so that all strides but the last are whole, and the last state otherwise. (With strides of
    /// one step the reference's would lie outside of the schedule; it is the last state then.)
    pub fn noise_state(&self) -> i64 {
        match (self.method.scheme(), self.indexing) {
            (Scheme::Strides(Transfer::Ddim, _), Indexing::Reference) => {
                let whole = self.schedule.steps() as i64 - stride(self.schedule, self.sample_steps);
                whole.min(self.last())
            }
            _ => self.last(),
        }
    }

    /// The last state of the schedule.
    fn last(&self) -> i64 {
        match self.method.scheme() {
            Scheme::Strides(Transfer::Ddim, _) => self.indexing.last(self.schedule),
            _ => self.schedule.steps() as i64 - 1,
        }
    }

    /// How often `eps` is asked on the way from `start` to `end`.
    ///
    /// Of an adaptive method ([`Method::is_adaptive`]) nobody can tell: the number is that of
    /// NDM4, which is good for a guess of the time that is left and nothing else.
    pub fn evaluations(&self, start: i64, end: i64) -> usize {
        let strides = trajectory(self.schedule, self.sample_steps, start, end).len() - 1;
        match self.method.scheme() {
            Scheme::Strides(_, gradient) => gradient.evaluations(strides),
            Scheme::Adaptive => Gradient::Multistep4.evaluations(strides),
        }
    }

    /// Moves `x` from state `start` to state `end`, down (denoising) or up (encoding), and returns
    /// every state on the way, the first one included. Those of PF are the ends of its own steps.
    ///
    /// `eps(x, t)` is asked for the noise in `x` at step `t`, which need not be a whole number.
    ///
    /// # Shapes
    /// - `x` and all states: `[batch, channels, height, width]`, any float
    ///
    /// # Errors
    /// Settings or a state outside of the schedule, PF with noise that is not finite, or what
    /// `eps` says.
    pub fn states(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        mut eps: impl FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut states = vec![x.clone()];
        self.walk(x, start, end, &mut eps, &mut |state| states.push(state.clone()))?;
        Ok(states)
    }

    /// The last of [`Sampler::states`], without keeping the others.
    pub fn run(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        mut eps: impl FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.walk(x, start, end, &mut eps, &mut |_| ())
    }

    fn walk(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        eps: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
        visit: &mut dyn FnMut(&Tensor),
    ) -> Result<Tensor> {
        let n_steps = self.schedule.steps();
        if !(1..=n_steps).contains(&self.sample_steps) {
            candle_core::bail!(
                "sample steps expected from 1 to {n_steps}, got {}",
                self.sample_steps
            )
        }
        let last = self.last();
        if let Some(s) = [start, end].into_iter().find(|s| !(-1..=last).contains(s)) {
            candle_core::bail!("step expected between -1 and {last}, got {s}")
        }
        match self.method.scheme() {
            Scheme::Strides(Transfer::Ddim, gradient) => {
                let mut field = Noise { sampler: self, eps };
                let positions = self.trajectory(start, end).map(|s| s as f64);
                stride_along(x, positions, gradient, &mut field, visit)
            }
            Scheme::Strides(Transfer::Linear, gradient) => {
                let flow = Flow::new(self.schedule)?;
                let mut field = Derivative { flow, eps };
                let times = self.trajectory(start, end).map(|s| f64::from(flow.time(s)));
                stride_along(x, times, gradient, &mut field, visit)
            }
            Scheme::Adaptive => self.integrate(x, start, end, eps, visit),
        }
    }

    fn trajectory(&self, start: i64, end: i64) -> impl Iterator<Item = i64> {
        trajectory(self.schedule, self.sample_steps, start, end).into_iter()
    }

    /// PF: the state is kept in `f64` on the host, as scipy does, and the network sees `x`'s type.
    fn integrate(
        &self,
        x: &Tensor,
        start: i64,
        end: i64,
        eps: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
        visit: &mut dyn FnMut(&Tensor),
    ) -> Result<Tensor> {
        if !(self.tolerance.is_finite() && self.tolerance > 0.0) {
            candle_core::bail!("tolerance expected a positive number, got {}", self.tolerance)
        }
        let flow = Flow::new(self.schedule)?;
        let tensor = |y: &[f64]| -> Result<Tensor> {
            let y = y.iter().map(|&y| y as f32).collect();
            Tensor::from_vec(y, x.shape(), x.device())?.to_dtype(x.dtype())
        };
        let values = |x: &Tensor| -> Result<Vec<f64>> {
            x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
        };
        let mut derivative =
            |u: f64, y: &[f64]| values(&flow.derivative(&tensor(y)?.detach(), u as f32, eps)?);
        let mut visit = |_: f64, y: &[f64]| {
            visit(&tensor(y)?);
            Ok(())
        };
        let interval = (flow.end(start), flow.end(end));
        let y = rk45::integrate(&mut derivative, interval, values(x)?, self.tolerance, &mut visit)?;
        tensor(&y)
    }
}

/// Moves `x` through the positions.
fn stride_along(
    x: &Tensor,
    positions: impl Iterator<Item = f64>,
    gradient: Gradient,
    field: &mut dyn Field,
    visit: &mut dyn FnMut(&Tensor),
) -> Result<Tensor> {
    let positions: Vec<f64> = positions.collect();
    let (mut x, mut past) = (x.clone(), VecDeque::new());
    for pair in positions.windows(2) {
        let (t, next) = (pair[0], pair[1]);
        let direction = gradient.direction(&x, t, next, &mut past, field)?;
        x = field.transfer(&x, &direction, t, next)?.detach();
        visit(&x);
    }
    Ok(x)
}

/// The noise in a state, along which the DDIM transfer moves. Positions are states.
struct Noise<'a> {
    sampler: &'a Sampler<'a>,
    eps: &'a mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
}

impl Field for Noise<'_> {
    fn direction(&mut self, x: &Tensor, t: f64) -> Result<Tensor> {
        (self.eps)(x, self.sampler.indexing.asked(t))
    }

    fn transfer(&self, x: &Tensor, noise: &Tensor, t: f64, next: f64) -> Result<Tensor> {
        let signal = |s| self.sampler.indexing.signal(self.sampler.schedule, s);
        let (a, b) = (signal(t)?, signal(next)?);
        let along_x = 1.0 / (a.sqrt() * (a.sqrt() + b.sqrt()));
        let along_noise = 1.0 / (a.sqrt() * (((1.0 - b) * a).sqrt() + ((1.0 - a) * b).sqrt()));
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() && x.dtype() == DType::F32 && !x.track_op() && !noise.track_op() {
            return oodbench_cuda::sampler::ddim(x, noise, along_x, along_noise, b - a);
        }
        let delta = ((x * along_x)? - (noise * along_noise)?)?;
        x + (delta * (b - a))?
    }
}

/// The derivative of the probability-flow ODE, along which the linear transfer moves. Positions
/// are times, rounded to `f32` as the reference does.
struct Derivative<'a> {
    flow: Flow,
    eps: &'a mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
}

impl Field for Derivative<'_> {
    fn direction(&mut self, x: &Tensor, u: f64) -> Result<Tensor> {
        self.flow.derivative(x, u as f32, self.eps)
    }

    fn transfer(&self, x: &Tensor, derivative: &Tensor, u: f64, next: f64) -> Result<Tensor> {
        x + (derivative * (next - u))?
    }
}

#[cfg(test)]
mod tests;
