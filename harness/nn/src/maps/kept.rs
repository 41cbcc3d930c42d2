//! What a layer makes of its weights once, if they do not change.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

/// A tensor that is made of weights when it is first wanted. It is kept where the weights are
/// constants; where one is a variable, or comes of one, it is made at each use, so that it follows
/// the variable and a gradient finds its way back.
#[derive(Clone, Debug, Default)]
pub struct Kept(OnceLock<Tensor>);

impl Kept {
    /// The tensor in `dtype`, which `make` makes of `weights`.
    ///
    /// # Errors
    /// What `make` says.
    pub fn get(
        &self,
        weights: &[&Tensor],
        dtype: DType,
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if weights.iter().any(|weight| weight.track_op()) {
            return make();
        }
        match self.0.get() {
            Some(kept) if kept.dtype() == dtype => Ok(kept.clone()),
            // A layer that serves two precisions at once keeps one.
            Some(_) => make(),
            None => {
                let made = make()?;
                Ok(self.0.get_or_init(|| made).clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use std::cell::Cell;

    #[test]
    fn constants_are_worked_on_once_and_variables_each_time() {
        let made = Cell::new(0);
        let use_of = |kept: &Kept, weight: &Tensor, dtype| {
            let make = || {
                made.set(made.get() + 1);
                (weight * 2.0)?.to_dtype(dtype)
            };
            let got = kept.get(&[weight], dtype, make).unwrap();
            assert_eq!(got.dtype(), dtype);
            got.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()[0]
        };
        let constant = Tensor::new(&[3f32], &Device::Cpu).unwrap();
        let kept = Kept::default();
        assert_eq!(use_of(&kept, &constant, DType::F32), 6.0);
        assert_eq!(use_of(&kept, &constant, DType::F32), 6.0);
        assert_eq!(made.get(), 1);
        assert_eq!(use_of(&kept, &constant, DType::BF16), 6.0);
        assert_eq!(made.get(), 2);

        let var = Var::new(&[3f32], &Device::Cpu).unwrap();
        let kept = Kept::default();
        assert_eq!(use_of(&kept, &var, DType::F32), 6.0);
        var.set(&Tensor::new(&[5f32], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(use_of(&kept, &var, DType::F32), 10.0);
        // What comes of a variable follows it too.
        let derived = (var.as_tensor() + 1.0).unwrap();
        assert_eq!(use_of(&kept, &derived, DType::F32), 12.0);
    }
}
