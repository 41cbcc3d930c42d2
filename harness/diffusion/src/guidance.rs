//! Classifier-free guidance: `(1 + beta) eps(x, y) - beta eps(x, no class)`.
//!
//! Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022. Both terms are evaluated in one
//! batch.

use candle_core::{Result, Tensor};

use crate::net::{EpsModel, Pass};

/// A network asked with or without guidance.
pub struct Guided<'a> {
    pub model: &'a dyn EpsModel,
    /// The class of each image, `[batch]`, `u32`; absent for an unconditional network.
    pub classes: Option<Tensor>,
    /// The weight of the guidance; 0 asks the conditional network alone.
    pub beta: f64,
}

impl Guided<'_> {
    /// The guided noise in `x` at step `t`.
    pub fn eps(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let steps = |n: usize| Tensor::full(t as f32, n, x.device());
        let Some(classes) = &self.classes else {
            return self.model.eps(x, &steps(batch)?, None, Pass::Sample);
        };
        if self.beta == 0.0 {
            return self.model.eps(x, &steps(batch)?, Some(classes), Pass::Sample);
        }
        let no_class = Tensor::full(self.model.n_classes() as u32, batch, x.device())?;
        let both = self.model.eps(
            &Tensor::cat(&[x, x], 0)?,
            &steps(2 * batch)?,
            Some(&Tensor::cat(&[classes, &no_class], 0)?),
            Pass::Sample,
        )?;
        let conditional = both.narrow(0, 0, batch)?;
        let unconditional = both.narrow(0, batch, batch)?;
        (conditional * (1.0 + self.beta))? - (unconditional * self.beta)?
    }
}
