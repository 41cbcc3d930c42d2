//! The gradient step of all variables against the same formula, one number after the other.

use candle_core::{DType, Device, Result, Tensor};
use oodbench_cuda::optim::{Coefficients, Optim, Outcome, Rule, Variable};

use crate::{device, numbers};

const RULES: [Rule; 4] = [Rule::Sgd, Rule::SgdNesterov, Rule::Adam, Rule::AdamAmsgrad];

/// Chunks are 8192 numbers long: less than four, an odd rest, exactly one, one more, and several.
const LENGTHS: [usize; 6] = [1, 5, 4099, 8192, 8193, 20_003];

const COEFFICIENTS: Coefficients = Coefficients {
    rate: 0.01,
    weight_decay: 0.02,
    keep: 0.999,
    beta1: 0.9,
    beta2: 0.99,
    one_minus_beta1: 0.1,
    one_minus_beta2: 0.01,
    bias2_sqrt: 0.7,
    eps: 1e-8,
    past: 0.75,
    now: 0.25,
};

/// A variable and its state, as numbers.
#[derive(Clone, PartialEq, Debug)]
struct State {
    value: Vec<f32>,
    moments: Vec<Vec<f32>>,
    average: Option<Vec<f32>>,
}

impl State {
    fn new(nth: usize, len: usize, rule: Rule) -> Self {
        let seed = 10 * nth as u64;
        // Second moments are never negative.
        let moment = |k| numbers(seed + 1 + k, len).iter().map(|x| x * x).collect();
        Self {
            value: numbers(seed, len),
            moments: (0..rule.moments() as u64).map(moment).collect(),
            average: (nth != 1).then(|| numbers(seed + 5, len)),
        }
    }

    /// The step of the CPU, in its order of operations.
    fn step(&mut self, rule: Rule, c: &Coefficients, grad: Option<&[f32]>, scale: f32) {
        for i in 0..self.value.len() {
            let x = self.value[i];
            if let Some(grad) = grad {
                let g = grad[i] * scale + c.weight_decay * x;
                let m = &mut self.moments;
                self.value[i] = match rule {
                    Rule::Sgd | Rule::SgdNesterov => {
                        m[0][i] = c.beta1 * m[0][i] + g;
                        let is_nesterov = rule == Rule::SgdNesterov;
                        let step = if is_nesterov { g + c.beta1 * m[0][i] } else { m[0][i] };
                        x - c.rate * step
                    }
                    Rule::Adam | Rule::AdamAmsgrad => {
                        m[0][i] += (g - m[0][i]) * c.one_minus_beta1;
                        m[1][i] = m[1][i] * c.beta2 + c.one_minus_beta2 * g * g;
                        let mut bound = m[1][i];
                        if rule == Rule::AdamAmsgrad {
                            m[2][i] = m[2][i].max(bound);
                            bound = m[2][i];
                        }
                        x * c.keep - c.rate * m[0][i] / (bound.sqrt() / c.bias2_sqrt + c.eps)
                    }
                };
            }
            if let Some(average) = &mut self.average {
                average[i] = c.past * average[i] + c.now * self.value[i];
            }
        }
    }
}

/// The same on the device.
struct OnDevice {
    value: Tensor,
    moments: Vec<Tensor>,
    average: Option<Tensor>,
}

impl OnDevice {
    fn new(state: &State, device: &Device, offset: usize) -> Self {
        let tensor = |numbers: &Vec<f32>| place(numbers, device, offset).unwrap();
        Self {
            value: tensor(&state.value),
            moments: state.moments.iter().map(tensor).collect(),
            average: state.average.as_ref().map(tensor),
        }
    }

    fn variable(&self) -> Variable<'_> {
        Variable { value: &self.value, moments: &self.moments, average: self.average.as_ref() }
    }

    fn state(&self) -> State {
        let values = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap();
        State {
            value: values(&self.value),
            moments: self.moments.iter().map(values).collect(),
            average: self.average.as_ref().map(values),
        }
    }
}

/// Numbers that begin `offset` numbers into their memory.
fn place(numbers: &[f32], device: &Device, offset: usize) -> Result<Tensor> {
    let mut padded = vec![f32::NAN; offset];
    padded.extend_from_slice(numbers);
    Tensor::from_vec(padded, offset + numbers.len(), device)?.narrow(0, offset, numbers.len())
}

struct Set {
    states: Vec<State>,
    tensors: Vec<OnDevice>,
    optim: Optim,
    device: Device,
    rule: Rule,
}

impl Set {
    fn new(rule: Rule, offset: usize) -> Self {
        let device = device();
        let state = |(nth, len): (usize, &usize)| State::new(nth, *len, rule);
        let mut states: Vec<State> = LENGTHS.iter().enumerate().map(state).collect();
        // The last one is not trained, but averaged.
        states.push(State { moments: Vec::new(), ..State::new(9, 77, rule) });
        let of = |state: &State| OnDevice::new(state, &device, offset);
        let tensors: Vec<OnDevice> = states.iter().map(of).collect();
        // The tensors live as long as the set, and so does what the addresses point to.
        let variables: Vec<Variable<'_>> = tensors.iter().map(OnDevice::variable).collect();
        let optim = Optim::new(rule, &variables).unwrap();
        Self { states, tensors, optim, device, rule }
    }

    /// A gradient for every variable but two.
    fn gradients(&self, seed: u64) -> Vec<Option<Vec<f32>>> {
        let of = |(nth, state): (usize, &State)| {
            let has = nth != 2 && !state.moments.is_empty();
            has.then(|| numbers(1000 * seed + nth as u64, state.value.len()))
        };
        self.states.iter().enumerate().map(of).collect()
    }

    fn add(
        &mut self,
        gradients: &[Option<Vec<f32>>],
        loss: f32,
        limit: Option<f64>,
        offset: usize,
    ) {
        let tensor =
            |g: &Option<Vec<f32>>| g.as_ref().map(|g| place(g, &self.device, offset).unwrap());
        let loss = Tensor::new(loss, &self.device).unwrap();
        self.optim.add(gradients.iter().map(tensor).collect(), &loss, limit).unwrap();
    }

    fn expect_step(&mut self, gradients: &[Option<Vec<f32>>], scale: f32) {
        for (state, grad) in self.states.iter_mut().zip(gradients) {
            state.step(self.rule, &COEFFICIENTS, grad.as_deref(), scale);
        }
    }

    #[track_caller]
    fn check(&self, tolerance: f32) {
        for (nth, (expected, tensor)) in self.states.iter().zip(&self.tensors).enumerate() {
            let got = tensor.state();
            if tolerance == 0.0 {
                assert!(got == *expected, "{:?}: variable {nth} differs", self.rule);
                continue;
            }
            let flat = |state: &State| {
                let mut all = state.value.clone();
                all.extend(state.moments.iter().chain(&state.average).flatten());
                all
            };
            for (got, expected) in flat(&got).iter().zip(flat(expected)) {
                let far = (got - expected).abs() > tolerance * expected.abs().max(1e-3);
                assert!(!far, "{:?}: variable {nth}: expected {expected}, got {got}", self.rule);
            }
        }
    }
}

fn norm(gradients: &[Option<Vec<f32>>]) -> f64 {
    let all = gradients.iter().flatten().flatten();
    all.map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn every_rule_is_that_of_the_cpu_bit_for_bit() {
    for rule in RULES {
        // Aligned for reads of four numbers, and not: values, gradients.
        for (offset, gradient_offset) in [(0, 0), (1, 0), (0, 3)] {
            let mut set = Set::new(rule, offset);
            for step in 0..3 {
                let gradients = set.gradients(step);
                set.add(&gradients, 0.5 + step as f32, None, gradient_offset);
                let outcome = set.optim.step(&COEFFICIENTS).unwrap();
                let loss = 0.5 + step as f64;
                assert_eq!(outcome, Outcome { is_finite: true, norm: 0.0, loss });
                set.expect_step(&gradients, 1.0);
                set.check(0.0);
            }
        }
    }
}

#[test]
fn gradients_are_scaled_down_to_the_limit() {
    for (limit, clips) in [(1.0, true), (1e9, false)] {
        let mut set = Set::new(Rule::Adam, 0);
        let gradients = set.gradients(1);
        set.add(&gradients, 1.0, Some(limit), 0);
        let outcome = set.optim.step(&COEFFICIENTS).unwrap();
        let norm = norm(&gradients);
        let far = (outcome.norm / norm - 1.0).abs();
        assert!(far < 1e-13, "norm expected {norm}, got {}", outcome.norm);
        let scale = (limit / (norm + 1e-6)).min(1.0) as f32;
        assert_eq!(scale < 1.0, clips);
        set.expect_step(&gradients, scale);
        set.check(if clips { 1e-6 } else { 0.0 });
    }
}

#[test]
fn micro_batches_are_added_up_and_clipped_one_after_the_other() {
    let mut set = Set::new(Rule::AdamAmsgrad, 0);
    for round in 0..2 {
        let mut sum: Vec<Option<Vec<f32>>> = vec![None; set.states.len()];
        let mut scale = 1f32;
        for part in 0..3 {
            let mut new = set.gradients(7 * round + part);
            if part == 1 {
                // One that only this part lacks.
                new[3] = None;
            }
            set.add(&new, part as f32, Some(30.0), 0);
            for (sum, new) in sum.iter_mut().zip(new) {
                *sum = match (sum.take(), new) {
                    (None, new) => new,
                    (Some(sum), None) => Some(sum.iter().map(|s| s * scale).collect()),
                    (Some(sum), Some(new)) => {
                        Some(sum.iter().zip(&new).map(|(s, n)| s * scale + n).collect())
                    }
                };
            }
            scale = (30.0 / (norm(&sum) + 1e-6)).min(1.0) as f32;
            assert!(scale < 1.0, "the limit is reached");
        }
        let outcome = set.optim.step(&COEFFICIENTS).unwrap();
        assert!((outcome.norm / norm(&sum) - 1.0).abs() < 1e-6, "{outcome:?}");
        assert_eq!(outcome.loss, 2.0, "of the last part");
        set.expect_step(&sum, scale);
        set.check(1e-5);
    }
}

#[test]
fn nothing_moves_after_what_is_not_finite() {
    let mut set = Set::new(Rule::Sgd, 0);
    let fine = set.gradients(1);
    let mut broken = fine.clone();
    if let Some(g) = &mut broken[5] {
        g[20_000] = f32::NAN;
    }
    // A loss; a gradient; a gradient in the first of two micro-batches.
    let cases: [(&[_], f32, f64); 3] = [
        (&[(&fine, f32::INFINITY)], f32::INFINITY, norm(&fine)),
        (&[(&broken, 1.0)], 1.0, f64::NAN),
        (&[(&broken, 1.0), (&fine, 2.0)], 1.0, f64::NAN),
    ];
    for (parts, loss, norm) in cases {
        for (gradients, loss) in parts {
            set.add(gradients, *loss, Some(1e9), 0);
        }
        let outcome = set.optim.step(&COEFFICIENTS).unwrap();
        assert!(!outcome.is_finite);
        assert_eq!(outcome.loss, f64::from(loss), "of the part that went wrong");
        assert_eq!(outcome.norm.is_nan(), norm.is_nan());
        set.check(0.0);
    }
    set.add(&broken, 1.0, Some(1.0), 0);
    set.optim.discard();
    assert!(set.optim.step(&COEFFICIENTS).is_err(), "there are no gradients");
    set.add(&fine, 1.0, Some(1e9), 0);
    assert!(set.optim.step(&COEFFICIENTS).unwrap().is_finite);
    set.expect_step(&fine, 1.0);
    set.check(0.0);
}

#[test]
fn a_gradient_in_another_order_is_read_in_that_of_its_variable() {
    let device = device();
    let value = Tensor::zeros((3, 5), DType::F32, &device).unwrap();
    let moments = [value.zeros_like().unwrap()];
    let variable = Variable { value: &value, moments: &moments, average: None };
    let mut optim = Optim::new(Rule::Sgd, &[variable]).unwrap();
    let gradient = Tensor::arange(0f32, 15.0, &device).unwrap().reshape((5, 3)).unwrap();
    let (gradient, loss) = (gradient.t().unwrap(), Tensor::new(1f32, &device).unwrap());
    optim.add(vec![Some(gradient.clone())], &loss, None).unwrap();
    let c = Coefficients { rate: -1.0, ..Coefficients::default() };
    optim.step(&c).unwrap();
    let flat = |t: &Tensor| t.contiguous().unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(flat(&value), flat(&gradient));
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let (three, four) = (
        Tensor::zeros(3, DType::F32, &device).unwrap(),
        Tensor::zeros(4, DType::F32, &device).unwrap(),
    );
    let new = |value: &Tensor, moments: &[Tensor]| {
        Optim::new(Rule::Sgd, &[Variable { value, moments, average: None }])
    };
    let says = |result: Result<Optim>, part: &str| {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(part), "{error}");
    };
    says(new(&three, std::slice::from_ref(&four)), "expected 3 numbers, got 4");
    says(new(&three, &[three.copy().unwrap(), three.copy().unwrap()]), "expected 1, got 2");
    says(new(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(), &[]), "cuda");
    let moments = [three.copy().unwrap()];
    let mut optim = new(&three, &moments).unwrap();
    let loss = Tensor::new(1f32, &device).unwrap();
    assert!(optim.add(vec![Some(four.clone())], &loss, None).is_err());
    assert!(optim.add(vec![], &loss, None).is_err());
    assert!(optim.add(vec![Some(moments[0].clone())], &four, None).is_err());
}
