//! The gradients of a network's variables between the backward pass and the optimiser: where they
//! are averaged over machines, summed over micro-batches, and clipped.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::values::{is_readable, with_values};

/// The gradients of named variables, in the order of the optimiser.
#[derive(Clone, Debug)]
pub struct Gradients {
    names: Arc<[String]>,
    values: Vec<Option<Tensor>>,
}

/// What is done with the gradients of a backward pass before they are used: in data-parallel
/// training the mean over all machines, which then all make the same step.
///
/// It is called once for each backward pass, on the thread that trains, with the gradients of the
/// same variables in the same order on every machine; the sum over micro-batches and the clipping
/// come after it. A variable that the loss does not depend on has no gradient, on any machine.
pub trait Reduce {
    /// # Errors
    /// Whatever keeps the machines from agreeing; the training ends then.
    fn reduce(&mut self, gradients: &mut Gradients) -> Result<()>;

    /// The mean of a loss over all machines, so that they also agree on whether it is finite. It is
    /// called before each backward pass.
    ///
    /// # Shapes
    /// A scalar, `f32`
    ///
    /// # Errors
    /// As for [`Reduce::reduce`].
    fn mean(&mut self, loss: Tensor) -> Result<Tensor> {
        Ok(loss)
    }
}

/// One machine: nothing to agree on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Reduce for Alone {
    fn reduce(&mut self, _gradients: &mut Gradients) -> Result<()> {
        Ok(())
    }
}

impl Gradients {
    /// Takes the gradients of `vars` out of what a backward pass left.
    pub(super) fn take(names: Arc<[String]>, vars: &[(String, Var)], mut store: GradStore) -> Self {
        // Without `detach` a gradient would keep the graph that made it.
        let values = vars.iter().map(|(_, var)| store.remove(var).map(|grad| grad.detach()));
        Self { names, values: values.collect() }
    }

    /// Every gradient that there is, with the name of its variable.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let pairs = self.names.iter().zip(&self.values);
        pairs.filter_map(|(name, value)| Some((name.as_str(), value.as_ref()?)))
    }

    /// The same, to be replaced by tensors of the same shapes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Tensor)> {
        let pairs = self.names.iter().zip(&mut self.values);
        pairs.filter_map(|(name, value)| Some((name.as_str(), value.as_mut()?)))
    }

    /// By variable, for the optimiser.
    pub(super) fn values(&self) -> &[Option<Tensor>] {
        &self.values
    }

    /// The same, given away.
    #[cfg(feature = "cuda")]
    pub(super) fn into_values(self) -> Vec<Option<Tensor>> {
        self.values
    }

    /// `self * scale + other`.
    pub(super) fn add_to(self, scale: f64, other: Self) -> Result<Self> {
        let sum = |(old, new): (Option<Tensor>, Option<Tensor>)| match (old, new) {
            (Some(old), Some(new)) => {
                let old = if scale == 1.0 { old } else { (old * scale)? };
                (old + new).map(Some)
            }
            (Some(old), None) => (old * scale).map(Some),
            (None, new) => Ok(new),
        };
        let values = self.values.into_iter().zip(other.values).map(sum).collect::<Result<_>>()?;
        Ok(Self { names: self.names, values })
    }

    /// The Euclidean norm over all of them. On the CPU it is summed in `f64`, in parts of fixed
    /// size and in a fixed order.
    ///
    /// # Errors
    /// What candle says.
    pub fn norm(&self) -> Result<f64> {
        const PART: usize = 1 << 14;
        let mut squares = 0.0;
        for (_, grad) in self.iter() {
            squares += if is_readable(grad) {
                with_values(grad, |values| {
                    let parts: Vec<f64> = values.par_chunks(PART).map(sum_of_squares).collect();
                    parts.iter().sum::<f64>()
                })?
            } else {
                f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?)
            };
        }
        Ok(squares.sqrt())
    }
}

/// In eight lanes, so that the additions do not wait for each other.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (groups, rest) = values.as_chunks::<8>();
    let mut lanes = [0f64; 8];
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest = rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
    lanes.iter().sum::<f64>() + rest
}

/// PyTorch's `clip_grad_norm_`: what gradients of this norm are multiplied by.
pub(super) fn clip_factor(norm: f64, max: f64) -> f64 {
    (max / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn of(values: &[Option<&[f32]>]) -> Gradients {
        let names: Vec<String> = (0..values.len()).map(|i| format!("v{i}")).collect();
        let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu).unwrap();
        Gradients { names: names.into(), values: values.iter().map(|v| v.map(tensor)).collect() }
    }

    #[test]
    fn the_norm_is_that_of_all_together() {
        assert_eq!(of(&[Some(&[3.0]), None, Some(&[0.0, 4.0])]).norm().unwrap(), 5.0);
        let long = crate::formula::normal("long", 100_003);
        let exact = long.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let norm = of(&[Some(&long)]).norm().unwrap();
        assert!((norm / exact - 1.0).abs() < 1e-12, "expected {exact}, got {norm}");
    }

    #[test]
    fn a_sum_keeps_what_only_one_side_has() {
        let sum = of(&[Some(&[2.0]), None, Some(&[4.0])])
            .add_to(0.5, of(&[Some(&[1.0]), Some(&[7.0]), None]))
            .unwrap();
        let values: Vec<f32> = sum.iter().map(|(_, v)| v.to_vec1::<f32>().unwrap()[0]).collect();
        assert_eq!(values, [2.0, 7.0, 2.0]);
    }

    #[test]
    fn clipping_never_lengthens() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
