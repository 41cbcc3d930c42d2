//! What a build without CUDA has in place of the fused step: nothing, of which there is no value.

use candle_core::{Device, Result, Tensor};

use crate::optim::Optimiser;
use crate::train::average::Average;
use crate::train::gradients::Gradients;

pub(in crate::train) enum Fused {}

impl Fused {
    pub(in crate::train) fn fits(_device: &Device) -> bool {
        false
    }

    pub(in crate::train) fn new(_: &Optimiser, _: Option<&Average>) -> Result<Self> {
        candle_core::bail!("this build has no CUDA")
    }

    pub(in crate::train) fn add(&mut self, _: Gradients, _: &Tensor, _: Option<f64>) -> Result<()> {
        match *self {}
    }

    pub(in crate::train) fn step(
        &mut self,
        _: &Optimiser,
        _: Option<&Average>,
        _: f64,
    ) -> Result<(f64, f64)> {
        match *self {}
    }

    pub(in crate::train) fn discard(&mut self) {
        match *self {}
    }
}
