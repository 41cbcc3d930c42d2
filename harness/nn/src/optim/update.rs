//! One step of an optimiser on the CPU: value, gradient and moments of a variable in one pass over
//! slices, in parallel, in `f32` with coefficients from `f64`, in PyTorch's order of operations.
//!
//! Elements do not meet, so the result does not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};
use rayon::prelude::*;

use super::{Coefficients, Rule};

/// Elements that one task works on.
const CHUNK: usize = 1 << 14;

/// The step of one variable, as candle's in-place operation: it changes the variable and reads the
/// gradient.
pub(super) struct Update<'a> {
    pub(super) rule: Rule,
    pub(super) coefficients: Coefficients,
    /// The moments of the rule, each as long as the variable. Behind a lock because an operation
    /// is called by shared reference.
    pub(super) moments: Mutex<&'a mut [Vec<f32>]>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimiser-step"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        value_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(value), CpuStorage::F32(grad)) = (value, grad) else {
            candle_core::bail!("optimiser step expected f32");
        };
        let offsets = (value_layout.contiguous_offsets(), grad_layout.contiguous_offsets());
        let (Some((v0, v1)), Some((g0, g1))) = offsets else {
            candle_core::bail!("optimiser step expected contiguous tensors");
        };
        let (value, grad) = (&mut value[v0..v1], &grad[g0..g1]);
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        self.run(value, grad, &mut moments);
        Ok(())
    }
}

impl Update<'_> {
    fn run(&self, value: &mut [f32], grad: &[f32], moments: &mut [Vec<f32>]) {
        let c = self.coefficients;
        let grad = grad.par_chunks(CHUNK);
        match (self.rule, moments) {
            (Rule::Sgd { nesterov, .. }, [velocity]) => {
                value.par_chunks_mut(CHUNK).zip(grad).zip(velocity.par_chunks_mut(CHUNK)).for_each(
                    |((x, g), v)| {
                        for ((x, g), v) in x.iter_mut().zip(g).zip(v) {
                            let g = g * c.scale + c.weight_decay * *x;
                            *v = c.beta1 * *v + g;
                            let step = if nesterov { g + c.beta1 * *v } else { *v };
                            *x -= c.rate * step;
                        }
                    },
                );
            }
            (_, [first, second]) => {
                let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                value.par_chunks_mut(CHUNK).zip(grad).zip(moments).for_each(|((x, g), (m, v))| {
                    for ((x, g), (m, v)) in x.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                        let second = c.moments(*x, *g, m, v);
                        *x = c.moved(*x, *m, second);
                    }
                });
            }
            (_, [first, second, largest]) => {
                let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                let moments = moments.zip(largest.par_chunks_mut(CHUNK));
                value.par_chunks_mut(CHUNK).zip(grad).zip(moments).for_each(
                    |((x, g), ((m, v), w))| {
                        let moments = m.iter_mut().zip(v.iter_mut()).zip(w);
                        for ((x, g), ((m, v), w)) in x.iter_mut().zip(g).zip(moments) {
                            *w = w.max(c.moments(*x, *g, m, v));
                            *x = c.moved(*x, *m, *w);
                        }
                    },
                );
            }
            _ => unreachable!("the optimiser makes as many moments as its rule has"),
        }
    }
}

impl Coefficients {
    /// Moves Adam's moments; the second one.
    #[inline(always)]
    fn moments(&self, x: f32, g: f32, first: &mut f32, second: &mut f32) -> f32 {
        let g = g * self.scale + self.weight_decay * x;
        *first += (g - *first) * self.one_minus_beta1;
        *second = *second * self.beta2 + self.one_minus_beta2 * g * g;
        *second
    }

    /// Where Adam moves `x`.
    #[inline(always)]
    fn moved(&self, x: f32, first: f32, second: f32) -> f32 {
        x * self.keep - self.rate * first / (second.sqrt() / self.bias2_sqrt + self.eps)
    }
}
