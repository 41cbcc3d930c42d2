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
    ///
    /// # Shapes
    /// - `x`, the result: `[batch, 3, height, width]`
    ///
    /// # Errors
    /// What the network refuses: images of a size that it cannot halve, classes that it does not
    /// know, or none where it needs them.
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
        apart(&both, batch, self.beta)
    }
}

/// The guided noise of both branches, one behind the other.
fn apart(both: &Tensor, batch: usize, beta: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if both.device().is_cuda() && !both.track_op() {
        return oodbench_cuda::sampler::guide(both, beta);
    }
    let conditional = both.narrow(0, 0, batch)?;
    let unconditional = both.narrow(0, batch, batch)?;
    (conditional * (1.0 + beta))? - (unconditional * beta)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::NetConfig;
    use candle_core::Device;
    use oodbench_nn::formula;

    #[test]
    fn guidance_is_the_difference_that_the_class_makes_taken_further() {
        let net: NetConfig = serde_json::from_value(serde_json::json!({
            "struc": "DDIM", "image_size": 4, "num_classes": 3, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [],
            "dropout": 0.0, "resamp_with_conv": true,
        }))
        .unwrap();
        let model = net.build(formula::var_builder(Default::default())).unwrap();
        let x = Tensor::from_vec(formula::normal("x", 96), (2, 3, 4, 4), &Device::Cpu).unwrap();
        let eps = |classes: [u32; 2], beta| {
            let classes = Some(Tensor::new(&classes, &Device::Cpu).unwrap());
            let guided = Guided { model: model.as_ref(), classes, beta };
            guided.eps(&x, 120.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (with, without) = (eps([2, 0], 0.0), eps([3, 3], 0.0));
        let guided = eps([2, 0], 1.5);
        for i in 0..with.len() {
            let expected = 2.5 * with[i] - 1.5 * without[i];
            assert!((guided[i] - expected).abs() < 1e-5, "{} is not {expected}", guided[i]);
        }
        assert_ne!(with, without);
    }
}
