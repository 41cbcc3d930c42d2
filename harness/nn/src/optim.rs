//! Optimisers with a state that can be saved: SGD with momentum, Adam and AdamW, as PyTorch
//! defines them.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

/// The rule of an optimiser, without the learning rate, which a schedule gives for each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// Stochastic gradient descent; `weight_decay` is added to the gradient.
    Sgd { momentum: f64, nesterov: bool, weight_decay: f64 },
    /// Kingma and Ba, 2015; `weight_decay` is added to the gradient.
    Adam { beta1: f64, beta2: f64, eps: f64, weight_decay: f64 },
    /// Loshchilov and Hutter, 2019; weights decay apart from the gradient.
    AdamW { beta1: f64, beta2: f64, eps: f64, weight_decay: f64 },
}

/// An optimiser of named variables.
pub struct Optimiser {
    rule: Rule,
    vars: Vec<(String, Var)>,
    /// Moments of each variable: momentum, or Adam's first and second.
    first: BTreeMap<String, Tensor>,
    second: BTreeMap<String, Tensor>,
    steps: u64,
}

impl Optimiser {
    pub fn new(rule: Rule, vars: Vec<(String, Var)>) -> Self {
        Self { rule, vars, first: BTreeMap::new(), second: BTreeMap::new(), steps: 0 }
    }

    /// Euclidean norm of the gradient over all variables.
    pub fn gradient_norm(&self, grads: &GradStore) -> Result<f64> {
        let mut squares = 0.0;
        for (_, var) in &self.vars {
            if let Some(grad) = grads.get(var) {
                squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        Ok(squares.sqrt())
    }

    /// Moves every variable that has a gradient; gradients are multiplied by `scale` first.
    pub fn step(&mut self, grads: &GradStore, learning_rate: f64, scale: f64) -> Result<()> {
        self.steps += 1;
        for (name, var) in &self.vars {
            let Some(grad) = grads.get(var) else { continue };
            let value = var.as_detached_tensor();
            let grad = grad.detach();
            let mut grad = if scale == 1.0 { grad } else { (grad * scale)? };
            let next = match self.rule {
                Rule::Sgd { momentum, nesterov, weight_decay } => {
                    if weight_decay != 0.0 {
                        grad = (grad + (&value * weight_decay)?)?;
                    }
                    let velocity = match self.first.get(name) {
                        Some(velocity) => ((velocity * momentum)? + &grad)?,
                        None => grad.clone(),
                    };
                    let step = if nesterov {
                        (&grad + (&velocity * momentum)?)?
                    } else {
                        velocity.clone()
                    };
                    self.first.insert(name.clone(), velocity);
                    (value - (step * learning_rate)?)?
                }
                Rule::Adam { beta1, beta2, eps, weight_decay } => {
                    if weight_decay != 0.0 {
                        grad = (grad + (&value * weight_decay)?)?;
                    }
                    let step = self.moments(name, &grad, [beta1, beta2, eps])?;
                    let moments = (step.first.clone(), step.second.clone());
                    let next = (value - (step.direction * learning_rate)?)?;
                    self.first.insert(name.clone(), moments.0);
                    self.second.insert(name.clone(), moments.1);
                    next
                }
                Rule::AdamW { beta1, beta2, eps, weight_decay } => {
                    let step = self.moments(name, &grad, [beta1, beta2, eps])?;
                    let decayed = (value * (1.0 - learning_rate * weight_decay))?;
                    self.first.insert(name.clone(), step.first);
                    self.second.insert(name.clone(), step.second);
                    (decayed - (step.direction * learning_rate)?)?
                }
            };
            var.set(&next)?;
        }
        Ok(())
    }

    fn moments(
        &self,
        name: &str,
        grad: &Tensor,
        [beta1, beta2, eps]: [f64; 3],
    ) -> Result<AdamStep> {
        let average = |old: Option<&Tensor>, new: Tensor, beta: f64| -> Result<Tensor> {
            let new = (new * (1.0 - beta))?;
            match old {
                Some(old) => (old * beta)? + new,
                None => Ok(new),
            }
        };
        let first = average(self.first.get(name), grad.clone(), beta1)?;
        let second = average(self.second.get(name), grad.sqr()?, beta2)?;
        let steps = self.steps as f64;
        let (bias1, bias2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
        let scale = ((second.sqrt()? / bias2.sqrt())? + eps)?;
        let direction = ((&first / scale)? / bias1)?;
        Ok(AdamStep { first, second, direction })
    }

    /// The state as tensors, to be saved beside the variables.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let first = self.first.iter().map(|(name, t)| (format!("first.{name}"), t.clone()));
        let second = self.second.iter().map(|(name, t)| (format!("second.{name}"), t.clone()));
        first.chain(second).collect()
    }

    /// Goes on from a saved [`Optimiser::state`] after `steps` steps.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, steps: u64) {
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let of_part = |(key, t): (&String, &Tensor)| {
                Some((key.strip_prefix(prefix)?.to_owned(), t.clone()))
            };
            state.iter().filter_map(of_part).collect()
        };
        self.first = part("first.");
        self.second = part("second.");
        self.steps = steps;
    }
}

struct AdamStep {
    first: Tensor,
    second: Tensor,
    direction: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Three steps on `sum(x^3) / 3` from [1, -2], whose gradient is `x^2`.
    fn run(rule: Rule) -> Vec<f32> {
        let var = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut optimiser = Optimiser::new(rule, vec![("x".to_owned(), var.clone())]);
        for _ in 0..3 {
            let cube = (var.sqr().unwrap() * var.as_tensor()).unwrap();
            let loss = (cube.sum_all().unwrap() / 3.0).unwrap();
            optimiser.step(&loss.backward().unwrap(), 0.1, 1.0).unwrap();
        }
        var.to_vec1().unwrap()
    }

    // The expected values come from torch 2.15:
    //   x = torch.tensor([1., -2.], requires_grad=True); o = torch.optim.SGD([x], 0.1, …)
    //   for _ in range(3): o.zero_grad(); ((x**3).sum()/3).backward(); o.step()
    #[track_caller]
    fn check(rule: Rule, expected: [f32; 2]) {
        for (got, expected) in run(rule).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{rule:?}: expected {expected}, got {got}");
        }
    }

    #[test]
    fn agrees_with_pytorch() {
        check(
            Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
            [0.403_805, -9.287_479],
        );
        check(
            Rule::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            [0.704_121, -2.300_494],
        );
        check(
            Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            [0.701_52, -2.294_198],
        );
    }
}
