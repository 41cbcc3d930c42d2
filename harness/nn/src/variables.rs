//! Trainable variables with names, initialised from a seed.
//!
//! candle's own `VarMap` draws from a generator that cannot be seeded on the CPU. Here each
//! variable is drawn from a stream of its own, keyed by seed and name, so that it depends on
//! neither the order of construction nor the other variables.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::formula::Stream;

/// Named variables of a network in training.
#[derive(Clone)]
pub struct Variables {
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
    seed: u64,
    device: Device,
}

impl Variables {
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { vars: Arc::default(), seed, device: device.clone() }
    }

    /// A builder that makes each variable at its first use.
    pub fn builder(&self) -> VarBuilder<'static> {
        let backend: Box<dyn SimpleBackend> = Box::new(self.clone());
        VarBuilder::from_backend(backend, DType::F32, self.device.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every variable, by name in order.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Those that a gradient moves: all but the running statistics of batch normalisation.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        let is_statistic =
            |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
        self.all().into_iter().filter(|(name, _)| !is_statistic(name)).collect()
    }

    /// A copy of every value, by name.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.all()
            .into_iter()
            .map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)))
            .collect()
    }

    /// Sets every variable from `values`.
    ///
    /// # Errors
    /// A name that is missing, or another shape.
    pub fn restore(&self, values: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.all() {
            match values.get(&name) {
                Some(value) => var.set(&value.to_device(&self.device)?)?,
                None => candle_core::bail!("no value for variable `{name}`"),
            }
        }
        Ok(())
    }
}

impl SimpleBackend for Variables {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        if let Some(var) = self.lock().get(name) {
            if var.shape() != &shape {
                candle_core::bail!("`{name}` expected {shape:?}, got {:?}", var.shape());
            }
            return Ok(var.as_tensor().clone());
        }
        let values = draw(self.seed, name, init, shape.elem_count());
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)?;
        let tensor = var.as_tensor().clone();
        self.lock().insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> Result<Tensor> {
        match self.lock().get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => candle_core::bail!("variable `{name}` has no shape yet"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

fn draw(seed: u64, name: &str, init: Init, len: usize) -> Vec<f32> {
    let mut stream = Stream::new(&format!("init/{seed}/{name}"));
    match init {
        Init::Const(value) => vec![value as f32; len],
        Init::Uniform { lo, up } => {
            (0..len).map(|_| (lo + (up - lo) * stream.next_f64()) as f32).collect()
        }
        Init::Randn { mean, stdev } => {
            (0..len).map(|_| (mean + stdev * stream.next_normal()) as f32).collect()
        }
        Init::Kaiming { .. } => unreachable!("the layers of this crate state their bounds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::init;

    #[test]
    fn a_variable_depends_on_seed_and_name_alone() {
        let value = |seed, before: bool| {
            let vars = Variables::new(seed, &Device::Cpu);
            let vb = vars.builder();
            let hint = Init::Randn { mean: 0.0, stdev: 1.0 };
            if before {
                vb.get_with_hints(3, "other", hint).unwrap();
            }
            vb.get_with_hints(4, "weight", hint).unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(value(1, false), value(1, true));
        assert_ne!(value(1, false), value(2, false));
    }

    #[test]
    fn running_statistics_are_not_trained() {
        let vars = Variables::new(0, &Device::Cpu);
        let vb = vars.builder();
        for name in ["weight", "running_mean", "running_var"] {
            vb.get_with_hints(2, name, init::ONE).unwrap();
        }
        let names: Vec<String> = vars.trainable().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["weight"]);
    }
}
