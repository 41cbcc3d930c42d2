//! The fused step of a network's variables.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use oodbench_cuda::optim::{Coefficients, Optim, Rule as DeviceRule, Variable};

use crate::optim::{Optimiser, Rule};
use crate::train::average::Average;
use crate::train::gradients::Gradients;

/// The gradients since the last step, and the way to use them.
pub(in crate::train) struct Fused {
    optim: Optim,
    /// Variables that have an average but are not trained; they come after the others.
    untrained: usize,
}

impl Fused {
    /// Whether the step of variables on a device is made here.
    pub(in crate::train) fn fits(device: &Device) -> bool {
        device.is_cuda()
    }

    /// Works on the variables of `optimiser`, its moments and the averages where they lie: they must
    /// not be replaced as long as this is used.
    ///
    /// # Errors
    /// Variables on another device, or memory that cannot be had.
    pub(in crate::train) fn new(optimiser: &Optimiser, average: Option<&Average>) -> Result<Self> {
        let Some(moments) = optimiser.tensors() else {
            candle_core::bail!("fused step expected moments on a CUDA device, got some on the CPU");
        };
        let mut averages = BTreeMap::new();
        for (name, var, kept) in average.into_iter().flat_map(Average::tensors) {
            let Some(kept) = kept else {
                candle_core::bail!("average of `{name}` expected a CUDA device, got the CPU");
            };
            averages.insert(name, (var.as_tensor(), kept));
        }
        let mut variables = Vec::new();
        for ((name, var), moments) in optimiser.vars().iter().zip(moments) {
            let average = averages.remove(name.as_str()).map(|(_, average)| average);
            variables.push(Variable { value: var.as_tensor(), moments, average });
        }
        let untrained = averages.len();
        for (value, average) in averages.into_values() {
            variables.push(Variable { value, moments: &[], average: Some(average) });
        }
        let rule = match optimiser.rule() {
            Rule::Sgd { nesterov: false, .. } => DeviceRule::Sgd,
            Rule::Sgd { nesterov: true, .. } => DeviceRule::SgdNesterov,
            Rule::Adam { amsgrad: false, .. } | Rule::AdamW { amsgrad: false, .. } => {
                DeviceRule::Adam
            }
            Rule::Adam { amsgrad: true, .. } | Rule::AdamW { amsgrad: true, .. } => {
                DeviceRule::AdamAmsgrad
            }
        };
        Ok(Self { optim: Optim::new(rule, &variables)?, untrained })
    }

    /// Takes the gradients of a micro-batch, and clips the sum of all so far to the norm `clip`.
    ///
    /// # Errors
    /// Gradients of other variables.
    pub(in crate::train) fn add(
        &mut self,
        gradients: Gradients,
        loss: &Tensor,
        clip: Option<f64>,
    ) -> Result<()> {
        let mut gradients = gradients.into_values();
        gradients.resize(gradients.len() + self.untrained, None);
        self.optim.add(gradients, loss, clip)
    }

    /// Makes the step; the loss and the norm of the gradient. Where one of them is not finite nothing
    /// has moved.
    ///
    /// # Errors
    /// No gradients, or what the device says.
    pub(in crate::train) fn step(
        &mut self,
        optimiser: &Optimiser,
        average: Option<&Average>,
        learning_rate: f64,
    ) -> Result<(f64, f64)> {
        let c = optimiser.next(learning_rate);
        let (past, now) = average
            .map_or((0.0, 0.0), |average| (average.rate() as f32, (1.0 - average.rate()) as f32));
        let outcome = self.optim.step(&Coefficients {
            rate: c.rate,
            weight_decay: c.weight_decay,
            keep: c.keep,
            beta1: c.beta1,
            beta2: c.beta2,
            one_minus_beta1: c.one_minus_beta1,
            one_minus_beta2: c.one_minus_beta2,
            bias2_sqrt: c.bias2_sqrt,
            eps: c.eps,
            past,
            now,
        })?;
        Ok((outcome.loss, outcome.norm))
    }

    /// Forgets the gradients since the last step.
    pub(in crate::train) fn discard(&mut self) {
        self.optim.discard();
    }
}
