//! Gradients: linear multistep methods with their warm-up, over any transfer.

use std::collections::VecDeque;

use candle_core::{Result, Tensor};

use super::method::Gradient;

/// What a gradient is taken of.
pub(super) trait Field {
    /// The direction at `x` and position `t`.
    fn direction(&mut self, x: &Tensor, t: f64) -> Result<Tensor>;

    /// `x` moved from position `t` to `next` along `direction`.
    fn transfer(&self, x: &Tensor, direction: &Tensor, t: f64, next: f64) -> Result<Tensor>;
}

impl Gradient {
    /// Evaluations in so many strides.
    pub(super) fn evaluations(self, strides: usize) -> usize {
        match self {
            Self::Euler => strides,
            Self::Multistep2 => strides + strides.min(1),
            Self::Multistep4 => strides + 3 * strides.min(3),
        }
    }

    /// The direction to move along from `t` to `next`. `past` holds the directions at the states
    /// before, the newest first; that at `x` is added.
    pub(super) fn direction(
        self,
        x: &Tensor,
        t: f64,
        next: f64,
        past: &mut VecDeque<Tensor>,
        field: &mut dyn Field,
    ) -> Result<Tensor> {
        let e1 = field.direction(x, t)?;
        let direction = match self {
            Self::Euler => e1.clone(),
            Self::Multistep2 => match past.front() {
                Some(previous) => (((&e1 * 3.0)? - previous)? * 0.5)?,
                None => {
                    let e2 = field.direction(&field.transfer(x, &e1, t, next)?, next)?;
                    ((&e1 + e2)? * 0.5)?
                }
            },
            Self::Multistep4 if past.len() >= 3 => {
                let newer = ((&e1 * 55.0)? - (&past[0] * 59.0)?)?;
                let older = ((&past[1] * 37.0)? - (&past[2] * 9.0)?)?;
                ((newer + older)? * (1.0 / 24.0))?
            }
            Self::Multistep4 => {
                let middle = 0.5 * (t + next);
                let e2 = field.direction(&field.transfer(x, &e1, t, middle)?, middle)?;
                let e3 = field.direction(&field.transfer(x, &e2, t, middle)?, middle)?;
                let e4 = field.direction(&field.transfer(x, &e3, t, next)?, next)?;
                ((((&e1 + (e2 * 2.0)?)? + (e3 * 2.0)?)? + e4)? * (1.0 / 6.0))?
            }
        };
        past.push_front(e1);
        past.truncate(3);
        Ok(direction)
    }
}
