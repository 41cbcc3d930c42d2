//! The exponential moving average of a network's variables.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::tensor_file::Numbers;
use crate::values::{is_readable, with_values};

/// `average = rate * average + (1 - rate) * value` after every step, in `f32`. It begins at the
/// values of its making.
pub(super) struct Average {
    rate: f64,
    vars: Vec<(String, Var)>,
    values: Vec<Kept>,
}

enum Kept {
    Host(Vec<f32>),
    Device(Tensor),
}

impl Average {
    /// # Errors
    /// A variable that cannot be read.
    pub(super) fn new(rate: f64, vars: Vec<(String, Var)>) -> Result<Self> {
        let keep = |var: &Var| -> Result<Kept> {
            if is_readable(var) {
                with_values(var, |values| Kept::Host(values.to_vec()))
            } else {
                var.as_detached_tensor().copy().map(Kept::Device)
            }
        };
        let values = vars.iter().map(|(_, var)| keep(var)).collect::<Result<_>>()?;
        Ok(Self { rate, vars, values })
    }

    /// The weight of its past.
    #[cfg(feature = "cuda")]
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Each variable by name, with its average where that is a tensor.
    #[cfg(feature = "cuda")]
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Var, Option<&Tensor>)> {
        self.vars.iter().zip(&self.values).map(|((name, var), kept)| match kept {
            Kept::Device(kept) => (name.as_str(), var, Some(kept)),
            Kept::Host(_) => (name.as_str(), var, None),
        })
    }

    /// Takes the variables' values of now into account.
    ///
    /// # Errors
    /// A variable that cannot be read.
    pub(super) fn update(&mut self) -> Result<()> {
        const CHUNK: usize = 1 << 14;
        let (past, now) = (self.rate as f32, (1.0 - self.rate) as f32);
        for ((_, var), kept) in self.vars.iter().zip(&mut self.values) {
            match kept {
                Kept::Host(kept) => with_values(var, |values| {
                    let pairs = kept.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
                    pairs.for_each(|(kept, values)| {
                        for (kept, value) in kept.iter_mut().zip(values) {
                            *kept = past * *kept + now * value;
                        }
                    });
                })?,
                Kept::Device(kept) => {
                    let new = (var.as_detached_tensor() * f64::from(now))?;
                    *kept = ((&*kept * f64::from(past))? + new)?;
                }
            }
        }
        Ok(())
    }

    /// The averages by name.
    ///
    /// # Errors
    /// A device without memory for a copy.
    pub(super) fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |((name, var), kept): (&(String, Var), &Kept)| {
            let tensor = match kept {
                Kept::Host(kept) => Tensor::from_slice(kept, var.dims(), var.device())?,
                Kept::Device(kept) => kept.copy()?,
            };
            Ok((name.clone(), tensor))
        };
        self.vars.iter().zip(&self.values).map(tensor).collect()
    }

    /// Name, shape and numbers of each, to be saved.
    pub(super) fn state(&self) -> impl Iterator<Item = (&str, &[usize], Numbers<'_>)> {
        self.vars.iter().zip(&self.values).map(|((name, var), kept)| {
            let numbers = match kept {
                Kept::Host(kept) => Numbers::Slice(kept),
                Kept::Device(kept) => Numbers::Tensor(kept.clone()),
            };
            (name.as_str(), var.dims(), numbers)
        })
    }

    /// Goes on from what `read` gives for each name and shape.
    pub(super) fn restore<E: From<candle_core::Error>>(
        &mut self,
        mut read: impl FnMut(&str, &[usize]) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<(), E> {
        for ((name, var), kept) in self.vars.iter().zip(&mut self.values) {
            let numbers = read(name, var.dims())?;
            *kept = match kept {
                Kept::Host(_) => Kept::Host(numbers),
                Kept::Device(_) => {
                    Kept::Device(Tensor::from_vec(numbers, var.dims(), var.device())?)
                }
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn it_follows_slowly() {
        let var = Var::new(&[1f32, -4.0], &Device::Cpu).unwrap();
        let mut average = Average::new(0.75, vec![("x".to_owned(), var.clone())]).unwrap();
        var.set(&Tensor::new(&[5f32, 0.0], &Device::Cpu).unwrap()).unwrap();
        average.update().unwrap();
        assert_eq!(average.snapshot().unwrap()["x"].to_vec1::<f32>().unwrap(), [2.0, -3.0]);
        average.update().unwrap();
        assert_eq!(average.snapshot().unwrap()["x"].to_vec1::<f32>().unwrap(), [2.75, -2.25]);
    }
}
