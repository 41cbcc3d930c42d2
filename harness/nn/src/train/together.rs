//! Data-parallel training: a process for each GPU, each with its share of every batch.
//!
//! All processes have the same weights from the beginning, since they follow from the seed or come
//! from the same checkpoint. They average the loss and the gradients of every backward pass, so they
//! all make the same step, and stay the same.

use candle_core::{Device, Result, Tensor};
use oodbench_cuda::collective::{Collective, ID_BYTES, new_id};

use super::gradients::{Gradients, Reduce};

/// A process among those that train together.
pub struct Together(Collective);

/// What the processes of one training recognise each other by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GroupId([u8; ID_BYTES]);

impl GroupId {
    /// Bytes of [`GroupId::text`].
    pub const TEXT_BYTES: usize = 2 * ID_BYTES;

    /// A fresh one.
    ///
    /// # Errors
    /// NCCL's.
    pub fn new() -> Result<Self> {
        new_id().map(Self)
    }

    /// As text: two hexadecimal digits a byte.
    pub fn text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads [`GroupId::text`].
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; ID_BYTES];
        if !text.is_ascii() || text.len() != Self::TEXT_BYTES {
            return None;
        }
        for (nth, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * nth..2 * nth + 2], 16).ok()?;
        }
        Some(Self(id))
    }
}

impl Together {
    /// Joins the others; returns when all of them are there.
    ///
    /// # Errors
    /// A device that is no CUDA device, a rank outside of the group, or NCCL's.
    pub fn join(device: &Device, id: &GroupId, rank: usize, world: usize) -> Result<Self> {
        Collective::join(device, &id.0, rank, world).map(Self)
    }

    /// Whether any of the processes says so, asked of all of them at the same time.
    ///
    /// # Errors
    /// NCCL's.
    pub fn any(&self, says: bool) -> Result<bool> {
        self.0.any(says)
    }
}

impl Reduce for Together {
    fn reduce(&mut self, gradients: &mut Gradients) -> Result<()> {
        let own: Vec<Tensor> = gradients.iter().map(|(_, gradient)| gradient.clone()).collect();
        let means = self.0.mean(&own.iter().collect::<Vec<_>>())?;
        gradients.iter_mut().zip(means).for_each(|((_, gradient), mean)| *gradient = mean);
        Ok(())
    }

    fn mean(&mut self, loss: Tensor) -> Result<Tensor> {
        self.0.mean(&[&loss])?.pop().ok_or_else(|| candle_core::Error::msg("no mean of one loss"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = GroupId(std::array::from_fn(|i| (i * 37) as u8));
        assert!(GroupId::parse(&id.text()) == Some(id));
        for wrong in ["", "0", &"g".repeat(2 * ID_BYTES), &"é".repeat(ID_BYTES)] {
            assert!(GroupId::parse(wrong).is_none(), "{wrong}");
        }
    }
}
