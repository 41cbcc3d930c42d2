//! Going on with a training that DiffOOD's own code began: its `train.ckpt` is a list of the model's
//! state dict, the optimiser's, the scheduler's, the epoch and the step; `ema.ckpt` beside it is the
//! moving average.
//!
//! PyTorch's optimisers number their parameters in the order of the model's, which is the order of
//! its state dict, since these networks have no buffers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oodbench_pickle::Value;
use oodbench_pickle::torch::{TensorRef, TorchFile, flatten_state_dict};

use super::error::TrainError;
use crate::checkpoint::{CheckpointError, StateDict, to_f32};

/// The numbers of a state by name and shape, as [`super::Learner::adopt`] asks for them.
pub type Read<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, TrainError> + 'a;

/// Opens a `train.ckpt`, and hands its step and its numbers to `adopt`. The average is read from
/// `ema.ckpt` in the same folder, if it is asked for.
///
/// # Errors
/// Files that are not there or are others; what `adopt` says.
pub fn adopt(
    path: &Path,
    adopt: impl FnOnce(u64, &mut Read<'_>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let not = |got: String| TrainError::NotACheckpoint { path: path.to_owned(), got };
    let bytes = std::fs::read(path)
        .map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    let torch = |source| CheckpointError::Torch { path: path.to_owned(), source };
    let file = TorchFile::parse(&bytes).map_err(torch)?;
    let items = file.value().items().ok_or_else(|| not(file.value().kind()))?;
    let [model, optimiser, _scheduler, _epoch, step, ..] = items else {
        return Err(not(format!("a list of {}", items.len())));
    };
    let step = step.as_usize().ok_or_else(|| not(format!("{} as the step", step.kind())))?;
    let model = flatten_state_dict(model)
        .map_err(|source| CheckpointError::NoStateDict { path: path.to_owned(), source })?;
    let ByName { tensors, idle } = by_name(&model, optimiser).map_err(not)?;
    let mut average = Average { path: path.with_file_name("ema.ckpt"), file: None };
    adopt(step as u64, &mut |name: &str, shape: &[usize]| {
        if let Some(name) = name.strip_prefix("average.") {
            return average.read(name, shape);
        }
        let expected = |got: String| not(format!("{got} for `{name}` {shape:?}"));
        let of_optimiser = name.strip_prefix("optimiser.").and_then(|name| name.split_once('.'));
        if of_optimiser.is_some_and(|(_, parameter)| idle.contains(parameter)) {
            return Ok(vec![0.0; shape.iter().product()]);
        }
        let tensor = tensors.get(name).ok_or_else(|| expected("nothing".to_owned()))?;
        if tensor.shape != shape {
            return Err(expected(format!("{:?}", tensor.shape)));
        }
        Ok(to_f32(tensor.dtype, &file.read_tensor(tensor).map_err(torch)?))
    })
}

/// A state under our names.
struct ByName {
    /// Weights and moments.
    tensors: BTreeMap<String, Arc<TensorRef>>,
    /// Parameters without moments: PyTorch makes these with the first gradient, so that a parameter
    /// which the loss does not depend on has none.
    idle: BTreeSet<String>,
}

/// The state of model and optimiser; what was found instead.
fn by_name(model: &[(String, Arc<TensorRef>)], optimiser: &Value) -> Result<ByName, String> {
    let state =
        optimiser.get("state").and_then(Value::entries).ok_or("no state of an optimiser")?;
    let groups = optimiser.get("param_groups").and_then(Value::items).unwrap_or_default();
    let params = groups.iter().filter_map(|group| group.get("params")?.items());
    let count: usize = params.map(<[Value]>::len).sum();
    if count != model.len() {
        return Err(format!("an optimiser of {count} parameters for {} weights", model.len()));
    }
    let (mut tensors, mut idle) = (BTreeMap::new(), BTreeSet::new());
    for (name, tensor) in model {
        idle.insert(name.clone());
        tensors.insert(format!("model.{name}"), tensor.clone());
    }
    for (index, moments) in state {
        let at = index.as_usize().and_then(|index| model.get(index));
        let (name, _) = at.ok_or_else(|| format!("a state of {}", index.kind()))?;
        idle.remove(name);
        let names = [
            ("exp_avg", "first"),
            ("momentum_buffer", "first"),
            ("exp_avg_sq", "second"),
            ("max_exp_avg_sq", "largest"),
        ];
        for (theirs, ours) in names {
            if let Some(tensor) = moments.get(theirs).and_then(Value::as_tensor) {
                tensors.insert(format!("optimiser.{ours}.{name}"), tensor.clone());
            }
        }
    }
    Ok(ByName { tensors, idle })
}

/// `ema.ckpt`, read when it is first asked for.
struct Average {
    path: PathBuf,
    file: Option<StateDict>,
}

impl Average {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => StateDict::open(&self.path)?,
        };
        let (vb, _) = self.file.insert(file).builder(&candle_core::Device::Cpu);
        let tensor = vb
            .get(shape, name)
            .map_err(|source| CheckpointError::Tensor { path: self.path.clone(), source })?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Rule;
    use crate::train::{Alone, Learner};
    use crate::variables::Variables;
    use candle_core::{Device, Tensor};
    use candle_nn::init;

    // `fixtures/torch_training.py` makes the files and prints what is expected.
    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/train/fixtures");

    #[test]
    fn a_training_of_pytorch_goes_on_as_pytorch_would() {
        let variables = Variables::new(0, &Device::Cpu);
        let vb = variables.builder();
        let b = vb.get_with_hints((2, 2), "b.weight", init::ZERO).unwrap();
        let a = vb.get_with_hints(3, "a.bias", init::ZERO).unwrap();
        let idle = vb.get_with_hints(2, "idle", init::ZERO).unwrap();
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, 0.01);
        let rule = Rule::AdamW { beta1, beta2, eps, weight_decay, amsgrad: false };
        let mut learner = Learner::new(variables, rule, Some(0.9)).unwrap();
        let path = Path::new(FOLDER).join("train.ckpt");
        adopt(&path, |step, read| learner.adopt(step, read)).unwrap();
        assert_eq!(learner.step(), 2);
        for _ in 0..2 {
            let square = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap();
            let loss = (square(&b) + (square(&a) * 2.0).unwrap()).unwrap();
            learner.backward(&loss, 1, None, &mut Alone).unwrap();
            learner.update(0.1).unwrap();
        }
        let check = |got: &Tensor, expected: &[f32]| {
            let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
            let far = got.iter().zip(expected).any(|(got, expected)| (got - expected).abs() > 1e-6);
            assert!(!far && got.len() == expected.len(), "expected {expected:?}, got {got:?}");
        };
        let (weights, average) = (learner.weights().unwrap(), learner.average().unwrap().unwrap());
        check(&weights["b.weight"], &B_WEIGHT);
        check(&weights["a.bias"], &A_BIAS);
        check(&average["b.weight"], &B_AVERAGE);
        check(&idle, &[4.0, -4.0]);
    }

    const B_WEIGHT: [f32; 4] = [-0.062_597_714, -0.304_877_88, 1.096_849_2, 1.594_153];
    const A_BIAS: [f32; 3] = [0.600_598_6, -1.594_153, 0.111_620_11];
    const B_AVERAGE: [f32; 4] = [0.214_578_03, -0.609_986, 1.408_575_7, 1.908_022_6];

    #[test]
    fn other_files_are_refused() {
        let path = Path::new(FOLDER).join("ema.ckpt");
        let err = adopt(&path, |_, _| Ok(())).unwrap_err().to_string();
        assert!(err.contains("expected a checkpoint of a training"), "{err}");
        assert!(adopt(Path::new("nowhere.ckpt"), |_, _| Ok(())).is_err());
    }
}
