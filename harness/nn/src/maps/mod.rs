//! Feature maps in the order that a device likes: channels first on the CPU, last on a GPU.
//!
//! A network is written once, over [`Map`]. In channels-first order each method is a kernel of this
//! crate; in channels-last order it is an operation of `oodbench-cuda`, or, on the CPU, where only
//! tests want that order, its [`mod@reference`]. Of those operations a convolution has no bias: the bias
//! stays with the map until the next operation that adds something anyway.

mod kept;
pub(crate) mod ops;
pub mod reference;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::{self, Activation};
use crate::precision::Precision;

pub use kept::Kept;

/// Channels in channels-last order are padded to a multiple of this: 16 bytes of `bf16`, what tensor
/// cores take at once.
pub const CHANNELS: usize = 8;

/// Where the channels of a map lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// `[batch, channels, height, width]`
    ChannelsFirst,
    /// `[batch, height, width, channels]`
    ChannelsLast,
}

/// How a network holds its maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    pub order: Order,
    pub dtype: DType,
}

impl Form {
    /// Channels first in `f32`: the form of the CPU.
    pub const FIRST: Self = Self { order: Order::ChannelsFirst, dtype: DType::F32 };
    /// Channels last in `f32`.
    pub const LAST: Self = Self { order: Order::ChannelsLast, dtype: DType::F32 };

    /// What is fastest on a device.
    pub fn new(device: &Device, precision: Precision) -> Self {
        let order = if device.is_cpu() { Order::ChannelsFirst } else { Order::ChannelsLast };
        Self { order, dtype: precision.dtype() }
    }
}

/// The activations of some images between two layers.
#[derive(Clone, Debug)]
pub struct Map {
    xs: Tensor,
    order: Order,
    /// Further channels, which follow those of `xs`. They are joined where an operation needs them in one
    /// piece. In channels-first order there never are any.
    beside: Option<Tensor>,
    /// What is still to be added: `[channels]` or `[batch, channels]`, `f32`. In channels-first order
    /// nothing ever is.
    pending: Option<Tensor>,
}

impl Map {
    /// Brings images into a form.
    ///
    /// # Shapes
    /// `xs`: `[batch, channels, height, width]`, `f32`
    ///
    /// # Errors
    /// Another shape, or channels first in another dtype than `f32`.
    pub fn enter(xs: &Tensor, form: Form) -> Result<Self> {
        let xs = match (form.order, form.dtype) {
            (Order::ChannelsFirst, DType::F32) => xs.clone(),
            (Order::ChannelsFirst, dtype) => {
                candle_core::bail!("channels-first maps expected f32, got {dtype:?}")
            }
            (Order::ChannelsLast, dtype) => {
                let padded = xs.dim(1)?.next_multiple_of(CHANNELS);
                ops::to_channels_last(xs, dtype, padded)?
            }
        };
        Ok(Self { xs, order: form.order, beside: None, pending: None })
    }

    /// The first channels, as images are given and taken.
    ///
    /// # Shapes
    /// To `[batch, channels, height, width]`, `f32`, contiguous.
    ///
    /// # Errors
    /// More channels than there are.
    pub fn leave(self, channels: usize) -> Result<Tensor> {
        let Self { xs, order, .. } = self.settled()?;
        match order {
            Order::ChannelsFirst if xs.dim(1)? == channels => Ok(xs),
            Order::ChannelsFirst => xs.narrow(1, 0, channels)?.contiguous(),
            Order::ChannelsLast => ops::to_channels_first(&xs, channels),
        }
    }

    /// Where its channels lie.
    pub fn order(&self) -> Order {
        self.order
    }

    /// A map of the same order as this one.
    fn with(&self, xs: Tensor) -> Self {
        Self { xs, order: self.order, beside: None, pending: None }
    }

    /// A map in this one's order, of which `pending` is still to be added.
    pub(crate) fn convolved(&self, xs: Tensor, pending: Option<Tensor>) -> Self {
        Self { pending, ..self.with(xs) }
    }

    /// The same values in one piece, with nothing left to add to them.
    pub fn settled(self) -> Result<Self> {
        let xs = self.joined()?;
        match &self.pending {
            None => Ok(self.with(xs)),
            Some(bias) => Ok(self.with(ops::add_bias(&xs, bias)?)),
        }
    }

    /// All channels in one piece, without what is still to be added.
    fn joined(&self) -> Result<Tensor> {
        match &self.beside {
            None => Ok(self.xs.clone()),
            Some(beside) => ops::cat_channels(&self.xs, beside),
        }
    }

    /// What lies in memory once everything was added.
    fn values(&self) -> Result<Tensor> {
        self.clone().settled().map(|map| map.xs)
    }

    /// The values in channels-first order, for a layer that has no other.
    pub(crate) fn first(&self) -> Option<&Tensor> {
        (self.order == Order::ChannelsFirst).then_some(&self.xs)
    }

    /// The values in channels-last order, to which nothing is to be added.
    pub(crate) fn last(&self) -> Result<Tensor> {
        debug_assert_eq!(self.order, Order::ChannelsLast);
        self.values()
    }

    /// The same as [`Map::last`] in two pieces, of which the second one's channels follow the first one's,
    /// if that is how they lie.
    pub(crate) fn pieces(&self) -> Option<(&Tensor, &Tensor)> {
        match (&self.beside, &self.pending) {
            (Some(beside), None) => Some((&self.xs, beside)),
            _ => None,
        }
    }

    /// The map plus a number for each image and channel.
    ///
    /// # Shapes
    /// `by`: `[batch, channels]`, `f32`
    pub fn shifted(&self, by: &Tensor) -> Result<Self> {
        match self.order {
            Order::ChannelsFirst => {
                Ok(self.with(self.xs.broadcast_add(&by.unsqueeze(2)?.unsqueeze(3)?)?))
            }
            Order::ChannelsLast => {
                let pending = both(Some(by), self.pending.as_ref())?;
                Ok(Self { pending, ..self.clone() })
            }
        }
    }

    /// Normalises groups of channels, then applies `activation`.
    ///
    /// # Shapes
    /// `weight`, `bias`: `[channels]`, or `[batch, channels]` for those that each image has of its own
    ///
    /// # Errors
    /// Channels that do not divide into groups.
    pub fn group_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        groups: usize,
        eps: f64,
        activation: Activation,
    ) -> Result<Self> {
        let ys = match self.order {
            Order::ChannelsFirst if weight.rank() == 1 => {
                kernels::group_norm(&self.xs, weight, bias, groups, eps, activation)?
            }
            Order::ChannelsFirst => {
                // With the batch folded into the channels it is one call of the same kernel.
                let (batch, channels, height, width) = self.xs.dims4()?;
                let folded = self.xs.reshape((1, batch * channels, height, width))?;
                let (weight, bias) = (weight.flatten_all()?, bias.flatten_all()?);
                kernels::group_norm(&folded, &weight, &bias, groups * batch, eps, activation)?
                    .reshape((batch, channels, height, width))?
            }
            Order::ChannelsLast => {
                let row = |shift: &Tensor| match shift.rank() {
                    1 => shift.unsqueeze(0),
                    _ => Ok(shift.clone()),
                };
                let shift = self.pending.as_ref().map(row).transpose()?;
                let (xs, shift) = (&self.xs, shift.as_ref());
                let silu = activation == Activation::Silu;
                match &self.beside {
                    None => ops::group_norm(xs, weight, bias, shift, groups, eps, silu)?,
                    Some(beside) => {
                        ops::group_norm_joined(xs, beside, weight, bias, shift, groups, eps, silu)?
                    }
                }
            }
        };
        Ok(self.with(ys))
    }

    /// The sum of two maps of one shape.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&self, other: &Self) -> Result<Self> {
        if self.order == Order::ChannelsFirst {
            return Ok(self.with(kernels::add(&self.xs, &other.xs)?));
        }
        let (a, b) = (self.joined()?, other.joined()?);
        match both(self.pending.as_ref(), other.pending.as_ref())? {
            Some(bias) if bias.rank() == 2 => {
                Ok(self.convolved(ops::add(&a, &b, None)?, Some(bias)))
            }
            bias => Ok(self.with(ops::add(&a, &b, bias.as_ref())?)),
        }
    }

    /// The channels of this map, then those of another. In channels-last order they stay apart until an
    /// operation needs them joined; where a gradient may be asked for they are joined here, once for all
    /// operations.
    ///
    /// # Errors
    /// Sizes other than the channels that differ.
    pub fn cat_channels(&self, other: &Self) -> Result<Self> {
        let (a, b) = (self.values()?, other.values()?);
        match self.order {
            Order::ChannelsFirst => Ok(self.with(kernels::cat_channels(&a, &b)?)),
            Order::ChannelsLast if a.track_op() || b.track_op() => {
                Ok(self.with(ops::cat_channels(&a, &b)?))
            }
            Order::ChannelsLast => {
                if a.dims()[..3] != b.dims()[..3] {
                    candle_core::bail!(
                        "joined channels expected images of one size, got {:?} and {:?}",
                        a.dims(),
                        b.dims()
                    );
                }
                Ok(Self { beside: Some(b), ..self.with(a) })
            }
        }
    }

    /// Every pixel four times.
    pub fn upsample_2x(&self) -> Result<Self> {
        Ok(match self.order {
            Order::ChannelsFirst => self.with(kernels::upsample_2x(&self.xs)?),
            Order::ChannelsLast => {
                self.convolved(ops::upsample_2x(&self.joined()?)?, self.pending.clone())
            }
        })
    }

    /// The mean of every 2x2 pixels.
    pub fn avg_pool_2x(&self) -> Result<Self> {
        Ok(match self.order {
            Order::ChannelsFirst => self.with(kernels::avg_pool_2x(&self.xs)?),
            Order::ChannelsLast => {
                self.convolved(ops::avg_pool_2x(&self.joined()?)?, self.pending.clone())
            }
        })
    }

    /// A row and a column of zeros below and to the right.
    pub fn pad_end(&self) -> Result<Self> {
        let xs = self.values()?;
        Ok(self.with(match self.order {
            Order::ChannelsFirst => xs.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?,
            Order::ChannelsLast => ops::pad_end(&xs)?,
        }))
    }

    /// Zeroes each element with probability `p`; the same mask in either order.
    ///
    /// # Errors
    /// A probability outside of `[0, 1)`.
    pub fn dropout(&self, p: f64, key: u64) -> Result<Self> {
        let xs = self.values()?;
        Ok(self.with(match self.order {
            Order::ChannelsFirst => crate::dropout::dropout(&xs, p, key)?,
            Order::ChannelsLast => ops::dropout(&xs, p, key)?,
        }))
    }

    /// [`Map::dropout`] of a part of a batch, which loses what it loses in the whole: `before` images
    /// come before it there.
    ///
    /// # Errors
    /// A probability outside of `[0, 1)`; an odd number of elements before.
    pub fn dropout_after(&self, p: f64, key: u64, before: usize) -> Result<Self> {
        let xs = self.values()?;
        let first = before * (xs.elem_count() / xs.dim(0)?.max(1));
        match crate::dropout::key_from(key, first) {
            Some(key) => self.with(xs).dropout(p, key),
            None => candle_core::bail!("dropout expected an even number of elements, got {first}"),
        }
    }

    /// Attention of every pixel to all pixels of the same head of the same image.
    ///
    /// # Shapes
    /// Channels are those of each head's queries, keys and values, one head after the other; the result
    /// has a third of them.
    ///
    /// # Errors
    /// Channels that are no multiple of three times the heads.
    pub fn attention(&self, heads: usize, scale: f64) -> Result<Self> {
        let xs = self.values()?;
        Ok(self.with(match self.order {
            Order::ChannelsFirst => {
                let (batch, channels, height, width) = xs.dims4()?;
                let qkv = xs.reshape((batch * heads, channels / heads, height * width))?;
                kernels::attention(&qkv, scale)? // [B heads, channels / (3 heads), HW]
                    .reshape((batch, channels / 3, height, width))?
            }
            Order::ChannelsLast => {
                let (batch, height, width, channels) = xs.dims4()?;
                let qkv = xs.reshape((batch, height * width, channels))?;
                ops::attention(&qkv, heads, scale)?.reshape((batch, height, width, channels / 3))?
            }
        }))
    }
}

/// The sum of what two maps still have to add.
fn both(a: Option<&Tensor>, b: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Ok(a.or(b).cloned()),
    };
    Ok(Some(match (a.rank(), b.rank()) {
        (2, 1) => ops::add_row(a, b)?,
        (1, 2) => ops::add_row(b, a)?,
        _ => (a + b)?,
    }))
}
