//! Optimisers with a state that can be saved: SGD with momentum, Adam and AdamW, as PyTorch
//! defines them.
//!
//! On the CPU a step is one pass over each variable (`update`). On a CUDA device a training makes one
//! pass over all of them together (`train::fused`), with the moments that are kept here. On any
//! other device the same is said with candle's own operations, which the tests hold the pass against.

mod update;

use std::sync::Mutex;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::values::is_readable;
use update::Update;

/// The rule of an optimiser, without the learning rate, which a schedule gives for each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// Stochastic gradient descent; `weight_decay` is added to the gradient.
    Sgd { momentum: f64, nesterov: bool, weight_decay: f64 },
    /// Kingma and Ba, 2015; `weight_decay` is added to the gradient.
    Adam {
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        /// Divide by the largest second moment so far: Reddi et al., 2018.
        #[serde(default, skip_serializing_if = "is_false")]
        amsgrad: bool,
    },
    /// Loshchilov and Hutter, 2019; weights decay apart from the gradient.
    AdamW {
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        /// As for `Adam`.
        #[serde(default, skip_serializing_if = "is_false")]
        amsgrad: bool,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Rule {
    /// The names of its moments in a saved state.
    pub fn moments(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { .. } => &["first"],
            Self::Adam { amsgrad: false, .. } | Self::AdamW { amsgrad: false, .. } => {
                &["first", "second"]
            }
            Self::Adam { .. } | Self::AdamW { .. } => &["first", "second", "largest"],
        }
    }

    /// What the rule comes to in one step. `steps` counts this one.
    fn coefficients(&self, steps: u64, learning_rate: f64, scale: f64) -> Coefficients {
        match *self {
            Self::Sgd { momentum, weight_decay, .. } => Coefficients {
                scale: scale as f32,
                rate: learning_rate as f32,
                weight_decay: weight_decay as f32,
                beta1: momentum as f32,
                ..Coefficients::default()
            },
            Self::Adam { beta1, beta2, eps, weight_decay, .. }
            | Self::AdamW { beta1, beta2, eps, weight_decay, .. } => {
                let steps = steps as f64;
                let (bias1, bias2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
                let decoupled = matches!(self, Self::AdamW { .. });
                Coefficients {
                    scale: scale as f32,
                    rate: (learning_rate / bias1) as f32,
                    weight_decay: if decoupled { 0.0 } else { weight_decay as f32 },
                    keep: if decoupled { 1.0 - learning_rate * weight_decay } else { 1.0 } as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    one_minus_beta1: (1.0 - beta1) as f32,
                    one_minus_beta2: (1.0 - beta2) as f32,
                    bias2_sqrt: bias2.sqrt() as f32,
                    eps: eps as f32,
                }
            }
        }
    }
}

/// The numbers of one step, computed in `f64`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coefficients {
    /// Of the gradient, before anything else.
    pub(crate) scale: f32,
    /// The learning rate; Adam's over the first moment's bias.
    pub(crate) rate: f32,
    /// Added to the gradient, times the value.
    pub(crate) weight_decay: f32,
    /// What is left of the value before it moves.
    pub(crate) keep: f32,
    /// SGD's momentum, or the weight of the past in Adam's first moment.
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) bias2_sqrt: f32,
    pub(crate) eps: f32,
}

/// The moments of one variable, each of its size.
enum Moments {
    Host(Vec<Vec<f32>>),
    Device(Vec<Tensor>),
}

/// An optimiser of named variables.
pub struct Optimiser {
    rule: Rule,
    vars: Vec<(String, Var)>,
    moments: Vec<Moments>,
    steps: u64,
}

impl Optimiser {
    /// # Errors
    /// A device without memory for the moments.
    pub fn new(rule: Rule, vars: Vec<(String, Var)>) -> Result<Self> {
        let moments = |var: &Var| -> Result<Moments> {
            let names = rule.moments().iter();
            if is_readable(var) {
                Ok(Moments::Host(names.map(|_| vec![0.0; var.elem_count()]).collect()))
            } else {
                names.map(|_| var.zeros_like()).collect::<Result<_>>().map(Moments::Device)
            }
        };
        let moments = vars.iter().map(|(_, var)| moments(var)).collect::<Result<_>>()?;
        Ok(Self { rule, vars, moments, steps: 0 })
    }

    /// The variables that it moves, by name in the order of [`Optimiser::step`]'s gradients.
    pub fn vars(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// Moves every variable that has a gradient; gradients are multiplied by `scale` first.
    ///
    /// # Errors
    /// Another number of gradients than variables, or one of another shape.
    pub fn step(&mut self, grads: &[Option<Tensor>], learning_rate: f64, scale: f64) -> Result<()> {
        if grads.len() != self.vars.len() {
            candle_core::bail!("expected {} gradients, got {}", self.vars.len(), grads.len());
        }
        self.steps += 1;
        let coefficients = self.rule.coefficients(self.steps, learning_rate, scale);
        for (((name, var), moments), grad) in self.vars.iter().zip(&mut self.moments).zip(grads) {
            let Some(grad) = grad else { continue };
            if grad.shape() != var.shape() {
                let (expected, got) = (var.shape(), grad.shape());
                candle_core::bail!("gradient of `{name}` expected {expected:?}, got {got:?}");
            }
            match moments {
                Moments::Host(moments) => {
                    let (rule, moments) = (self.rule, Mutex::new(moments.as_mut_slice()));
                    var.inplace_op2(&grad.contiguous()?, &Update { rule, coefficients, moments })?;
                }
                Moments::Device(moments) => {
                    let value = stock_step(self.rule, coefficients, var, grad, moments)?;
                    var.set(&value)?;
                }
            }
        }
        Ok(())
    }

    /// Its rule.
    #[cfg(feature = "cuda")]
    pub(crate) fn rule(&self) -> Rule {
        self.rule
    }

    /// The moments of each variable, where they are tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensors(&self) -> Option<Vec<&[Tensor]>> {
        fn of(moments: &Moments) -> Option<&[Tensor]> {
            match moments {
                Moments::Device(tensors) => Some(tensors),
                Moments::Host(_) => None,
            }
        }
        self.moments.iter().map(of).collect()
    }

    /// What the next step comes to, for somebody else to make it.
    #[cfg(feature = "cuda")]
    pub(crate) fn next(&self, learning_rate: f64) -> Coefficients {
        self.rule.coefficients(self.steps + 1, learning_rate, 1.0)
    }

    /// Counts a step that somebody else has made.
    pub(crate) fn count(&mut self) {
        self.steps += 1;
    }

    /// Visits the state, to be saved beside the variables: moment and variable, shape, numbers.
    pub(crate) fn state(&self) -> impl Iterator<Item = (String, &[usize], State<'_>)> {
        self.vars.iter().zip(&self.moments).flat_map(move |((name, var), moments)| {
            self.rule.moments().iter().enumerate().map(move |(i, moment)| {
                let numbers = match moments {
                    Moments::Host(moments) => State::Host(&moments[i]),
                    Moments::Device(moments) => State::Device(&moments[i]),
                };
                (format!("{moment}.{name}"), var.dims(), numbers)
            })
        })
    }

    /// Goes on from a saved state after `steps` steps. `read` gives the numbers of a moment by the
    /// name and shape that [`Optimiser::state`] gave it.
    pub(crate) fn restore<E: From<candle_core::Error>>(
        &mut self,
        steps: u64,
        mut read: impl FnMut(&str, &[usize]) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<(), E> {
        for ((name, var), moments) in self.vars.iter().zip(&mut self.moments) {
            for (i, moment) in self.rule.moments().iter().enumerate() {
                let numbers = read(&format!("{moment}.{name}"), var.dims())?;
                match moments {
                    Moments::Host(moments) => moments[i] = numbers,
                    Moments::Device(moments) => {
                        moments[i] = Tensor::from_vec(numbers, var.dims(), var.device())?;
                    }
                }
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// A moment's numbers, wherever they lie.
pub(crate) enum State<'a> {
    Host(&'a [f32]),
    Device(&'a Tensor),
}

/// The step in candle's own operations: moves the moments, and gives the new value.
fn stock_step(
    rule: Rule,
    c: Coefficients,
    var: &Var,
    grad: &Tensor,
    moments: &mut [Tensor],
) -> Result<Tensor> {
    let times = |xs: &Tensor, factor: f32| xs * f64::from(factor);
    let value = var.as_detached_tensor();
    let grad = (times(&grad.detach(), c.scale)? + times(&value, c.weight_decay)?)?;
    if let (Rule::Sgd { nesterov, .. }, [velocity]) = (rule, &mut *moments) {
        *velocity = (times(velocity, c.beta1)? + &grad)?;
        let step = if nesterov { (grad + times(velocity, c.beta1)?)? } else { velocity.clone() };
        return value - times(&step, c.rate)?;
    }
    let first = (&moments[0] + times(&(&grad - &moments[0])?, c.one_minus_beta1)?)?;
    let second = (times(&moments[1], c.beta2)? + times(&grad.sqr()?, c.one_minus_beta2)?)?;
    if let Some(largest) = moments.get_mut(2) {
        *largest = largest.maximum(&second)?;
    }
    let bound = moments.get(2).unwrap_or(&second);
    let scale = ((bound.sqrt()? / f64::from(c.bias2_sqrt))? + f64::from(c.eps))?;
    let next = (times(&value, c.keep)? - (times(&first, c.rate)? / scale)?)?;
    (moments[0], moments[1]) = (first, second);
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::BTreeMap;

    /// The saved moments by name.
    fn numbers(optimiser: &Optimiser) -> BTreeMap<String, Vec<f32>> {
        let of = |state: State<'_>| match state {
            State::Host(numbers) => numbers.to_vec(),
            State::Device(tensor) => tensor.flatten_all().unwrap().to_vec1().unwrap(),
        };
        optimiser.state().map(|(name, _, state)| (name, of(state))).collect()
    }

    const RULES: [Rule; 6] = [
        Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        Rule::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, amsgrad: false },
        Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, amsgrad: false },
        Rule::Adam { beta1: 0.5, beta2: 0.9, eps: 1e-8, weight_decay: 0.0, amsgrad: true },
        Rule::AdamW { beta1: 0.5, beta2: 0.9, eps: 1e-8, weight_decay: 0.01, amsgrad: true },
    ];

    /// Three steps on `sum(x^3) / 3` from [1, -2], whose gradient is `x^2`; then two on `x`, which
    /// is smaller, so that the largest second moment is one of the past.
    fn run(rule: Rule) -> Vec<f32> {
        let var = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut optimiser = Optimiser::new(rule, vec![("x".to_owned(), var.clone())]).unwrap();
        for nth in 0..5 {
            let x = var.as_detached_tensor();
            let grad = if nth < 3 { x.sqr() } else { x * 1e-3 };
            optimiser.step(&[Some(grad.unwrap())], 0.1, 1.0).unwrap();
        }
        var.to_vec1().unwrap()
    }

    // The expected values come from torch 2.15, in double precision:
    //   x = torch.tensor([1., -2.], requires_grad=True, dtype=torch.double)
    //   o = torch.optim.SGD([x], 0.1, …)
    //   for i in range(5): x.grad = (x*x if i < 3 else x*1e-3).detach().clone(); o.step()
    #[test]
    fn agrees_with_pytorch() {
        let expected: [[f32; 2]; 6] = [
            [0.128_130_62, -13.912_516],
            [0.167_777_76, -8.633_124],
            [0.556_737_3, -2.451_641_6],
            [0.553_671_64, -2.441_170_7],
            [0.639_706_24, -2.387_102_5],
            [0.635_873_6, -2.376_039_3],
        ];
        for (rule, expected) in RULES.into_iter().zip(expected) {
            for (got, expected) in run(rule).iter().zip(expected) {
                let far = (got - expected).abs() > 2e-6 * expected.abs();
                assert!(!far, "{rule:?}: expected {expected}, got {got}");
            }
        }
    }

    #[test]
    fn the_pass_over_slices_is_what_candle_says() {
        for rule in RULES {
            let start: Vec<f32> = crate::formula::normal("x", 40_000);
            let var = Var::from_slice(&start, 40_000, &Device::Cpu).unwrap();
            let stock = Var::from_slice(&start, 40_000, &Device::Cpu).unwrap();
            let mut ours = Optimiser::new(rule, vec![("x".to_owned(), var.clone())]).unwrap();
            let mut theirs = Optimiser::new(rule, vec![("x".to_owned(), stock.clone())]).unwrap();
            let zeros = rule.moments().iter().map(|_| stock.zeros_like().unwrap()).collect();
            theirs.moments = vec![Moments::Device(zeros)];
            for step in 0..4 {
                let grad = crate::formula::normal(&format!("g{step}"), 40_000);
                let grad = Tensor::from_vec(grad, 40_000, &Device::Cpu).unwrap();
                ours.step(&[Some(grad.clone())], 0.01, 0.5).unwrap();
                theirs.step(&[Some(grad)], 0.01, 0.5).unwrap();
            }
            let (ours, theirs) = (var.to_vec1::<f32>().unwrap(), stock.to_vec1::<f32>().unwrap());
            let far = ours.iter().zip(&theirs).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(!far, "{rule:?}");
            assert_ne!(ours, start);
        }
    }

    #[test]
    fn a_restored_state_goes_on_as_the_one_that_was_saved() {
        for rule in RULES {
            let new = || {
                let var = Var::new(&[1f32, -2.0, 3.0], &Device::Cpu).unwrap();
                (Optimiser::new(rule, vec![("x".to_owned(), var.clone())]).unwrap(), var)
            };
            let step = |optimiser: &mut Optimiser, var: &Var| {
                let grad = var.as_detached_tensor().sqr().unwrap();
                optimiser.step(&[Some(grad)], 0.1, 1.0).unwrap();
            };
            let (mut first, var) = new();
            step(&mut first, &var);
            let (mut second, other) = new();
            other.set(&var).unwrap();
            let saved = numbers(&first);
            second.restore(1, |name, _| Ok::<_, candle_core::Error>(saved[name].clone())).unwrap();
            step(&mut first, &var);
            step(&mut second, &other);
            assert_eq!(var.to_vec1::<f32>().unwrap(), other.to_vec1::<f32>().unwrap());
            assert_eq!(numbers(&first), numbers(&second));
        }
    }

    #[test]
    fn a_variable_without_a_gradient_stays() {
        let var = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut optimiser = Optimiser::new(RULES[0], vec![("x".to_owned(), var.clone())]).unwrap();
        optimiser.step(&[None], 0.1, 1.0).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, -2.0]);
        assert!(optimiser.step(&[], 0.1, 1.0).is_err());
    }
}
