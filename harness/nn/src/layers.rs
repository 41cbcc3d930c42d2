//! The layers that the networks are built from, over the kernels of this crate.
//!
//! Every constructor takes a `VarBuilder` already at the layer's own path, so that a checkpoint
//! key can be searched for in the source.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, VarBuilder, init};

use crate::kernels::{self, Then};
use crate::maps::{CHANNELS, Kept, Map, ops};

/// Whether a forward pass trains the network or uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Batch statistics and dropout.
    Train,
    /// Running statistics, no dropout.
    Eval,
}

/// A square convolution.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
    padding: usize,
    /// The two in channels-last order.
    packed: Kept,
    padded_bias: Kept,
}

/// Kernel size, stride and padding of a [`Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl ConvShape {
    /// 3x3, padding 1.
    pub const fn three(stride: usize) -> Self {
        Self { kernel: 3, stride, padding: 1 }
    }

    /// 1x1, no padding.
    pub const fn one(stride: usize) -> Self {
        Self { kernel: 1, stride, padding: 0 }
    }
}

impl Conv2d {
    /// A convolution without bias, initialised as He et al. (fan-out) where there are no weights.
    pub fn new(c_in: usize, c_out: usize, shape: ConvShape, vb: VarBuilder) -> Result<Self> {
        let ConvShape { kernel, stride, padding } = shape;
        let fan_out = (c_out * kernel * kernel) as f64;
        let init = Init::Randn { mean: 0.0, stdev: (2.0 / fan_out).sqrt() };
        let weight = vb.get_with_hints((c_out, c_in, kernel, kernel), "weight", init)?;
        Ok(Self::of(weight, None, stride, padding))
    }

    /// A convolution with bias, initialised as PyTorch does where there are no weights.
    pub fn with_bias(c_in: usize, c_out: usize, shape: ConvShape, vb: VarBuilder) -> Result<Self> {
        let ConvShape { kernel, stride, padding } = shape;
        let bound = 1.0 / ((c_in * kernel * kernel) as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((c_out, c_in, kernel, kernel), "weight", init)?;
        let bias = vb.get_with_hints(c_out, "bias", init)?;
        Ok(Self::of(weight, Some(bias), stride, padding))
    }

    /// A 1x1 convolution of given weights, each of which may be a variable or come of one.
    ///
    /// # Shapes
    /// `weight`: `[c_out, c_in, 1, 1]`, `bias`: `[c_out]`
    pub fn pointwise(weight: Tensor, bias: Tensor) -> Self {
        Self::of(weight, Some(bias), 1, 0)
    }

    fn of(weight: Tensor, bias: Option<Tensor>, stride: usize, padding: usize) -> Self {
        let (packed, padded_bias) = Default::default();
        Self { weight, bias, stride, padding, packed, padded_bias }
    }

    /// # Shapes
    /// `xs`: `[batch, c_in, height, width]`
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        kernels::conv2d(xs, &self.weight, self.bias.as_ref(), self.stride, self.padding)
    }

    /// [`Conv2d::forward`] plus a number for each image and channel, in the same pass.
    ///
    /// # Shapes
    /// `shift`: `[batch, c_out]`
    fn forward_shifted(&self, xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let shift = match &self.bias {
            Some(bias) => shift.broadcast_add(bias)?,
            None => shift.clone(),
        };
        kernels::conv2d(xs, &self.weight, Some(&shift), self.stride, self.padding)
    }

    /// [`Conv2d::forward`] of a map in either order. In channels-last order the result has channels to a
    /// multiple of [`CHANNELS`], of which those behind the last one are zero.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn forward_map(&self, xs: &Map) -> Result<Map> {
        match xs.first() {
            Some(first) => Ok(xs.convolved(self.forward(first)?, None)),
            None => Ok(xs.convolved(self.convolve_last(xs)?, self.padded_bias()?)),
        }
    }

    /// [`Conv2d::forward_map`] plus a number for each image and channel, in the same pass or the next one.
    ///
    /// # Shapes
    /// `shift`: `[batch, c_out]`, `f32`; in channels-last order `c_out` is a multiple of
    /// [`CHANNELS`]
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn forward_map_shifted(&self, xs: &Map, shift: &Tensor) -> Result<Map> {
        match xs.first() {
            Some(first) => Ok(xs.convolved(self.forward_shifted(first, shift)?, None)),
            None => xs.convolved(self.convolve_last(xs)?, self.padded_bias()?).shifted(shift),
        }
    }

    /// The convolution without its bias.
    fn convolve_last(&self, xs: &Map) -> Result<Tensor> {
        let is_projection =
            self.weight.dims()[2..] == [1, 1] && self.stride == 1 && self.padding == 0;
        match xs.pieces() {
            Some((a, b)) if is_projection => {
                let weight = self.packed_weight(a.dtype(), a.dim(3)? + b.dim(3)?)?;
                ops::project_joined(a, b, &weight)
            }
            _ => {
                let xs = xs.last()?;
                let weight = self.packed_weight(xs.dtype(), xs.dim(3)?)?;
                ops::conv2d(&xs, &weight, self.stride, self.padding)
            }
        }
    }

    /// The weight in channels-last order, for as many input channels as a map has.
    fn packed_weight(&self, dtype: DType, padded_in: usize) -> Result<Tensor> {
        self.packed.get(&[&self.weight], dtype, || {
            let padded_out = self.weight.dim(0)?.next_multiple_of(CHANNELS);
            ops::pack_weight(&self.weight, dtype, padded_out, padded_in)
        })
    }

    /// The bias of as many channels as the packed weight has.
    fn padded_bias(&self) -> Result<Option<Tensor>> {
        let pad = |bias: &Tensor| {
            let channels = bias.dim(0)?;
            match channels.next_multiple_of(CHANNELS) - channels {
                0 => Ok(bias.clone()),
                more => {
                    self.padded_bias.get(&[bias], bias.dtype(), || bias.pad_with_zeros(0, 0, more))
                }
            }
        };
        self.bias.as_ref().map(pad).transpose()
    }

    /// `[c_out, c_in, kernel, kernel]`
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[c_out]`
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// Batch normalisation over `[batch, channels, height, width]`.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

impl BatchNorm2d {
    const EPS: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(channels, "weight", init::ONE)?,
            bias: vb.get_with_hints(channels, "bias", init::ZERO)?,
            running_mean: Var::from_tensor(&vb.get_with_hints(
                channels,
                "running_mean",
                init::ZERO,
            )?)?,
            running_var: Var::from_tensor(&vb.get_with_hints(
                channels,
                "running_var",
                init::ONE,
            )?)?,
        })
    }

    /// Normalises; in training by the batch's own statistics, which also move the running ones.
    pub fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.apply(xs, mode, Then::Nothing)
    }

    /// The same with a ReLU behind it.
    pub fn forward_relu(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.apply(xs, mode, Then::Relu)
    }

    fn apply(&self, xs: &Tensor, mode: Mode, then: Then) -> Result<Tensor> {
        if mode == Mode::Eval {
            let mean = self.running_mean.as_detached_tensor();
            let variance = self.running_var.as_detached_tensor();
            let scale = (&self.weight / (variance + Self::EPS)?.sqrt()?)?;
            let shift = (&self.bias - (mean * &scale)?)?;
            return kernels::scale_shift(xs, &scale.detach(), &shift.detach(), then);
        }
        let (batch, channels, height, width) = xs.dims4()?;
        let count = (batch * height * width) as f64;
        let by_channel = xs.transpose(0, 1)?.reshape((channels, ()))?;
        let mean = by_channel.mean_keepdim(1)?;
        let centred = by_channel.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let scale = (self.weight.reshape((channels, 1))? / (&variance + Self::EPS)?.sqrt()?)?;
        let ys = centred
            .broadcast_mul(&scale)?
            .broadcast_add(&self.bias.reshape((channels, 1))?)?
            .reshape((channels, batch, height, width))?
            .transpose(0, 1)?
            .contiguous()?;
        let unbiased = (variance.detach().flatten_all()? * (count / (count - 1.0).max(1.0)))?;
        self.move_running(&self.running_mean, &mean.detach().flatten_all()?)?;
        self.move_running(&self.running_var, &unbiased)?;
        if then == Then::Relu { ys.relu() } else { Ok(ys) }
    }

    fn move_running(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let old = (running.as_detached_tensor() * (1.0 - Self::MOMENTUM))?;
        running.set(&(old + (batch * Self::MOMENTUM)?)?)
    }
}

/// Group normalisation with 32 groups or as the caller says, `eps` 1e-6 as in the DDIM code.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!(
                "`{}` expected channels divisible by {groups}, got {channels}",
                vb.prefix()
            );
        }
        Ok(Self {
            weight: vb.get_with_hints(channels, "weight", init::ONE)?,
            bias: vb.get_with_hints(channels, "bias", init::ZERO)?,
            groups,
            eps,
        })
    }

    /// Normalises, then applies `activation`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn forward(&self, xs: &Map, activation: kernels::Activation) -> Result<Map> {
        xs.group_norm(&self.weight, &self.bias, self.groups, self.eps, activation)
    }
}

/// A fully connected layer.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `weight`: `[c_out, c_in]`, `bias`: `[c_out]`; initialised as PyTorch does.
    pub fn new(c_in: usize, c_out: usize, vb: VarBuilder) -> Result<Self> {
        let bound = 1.0 / (c_in as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        Ok(Self {
            weight: vb.get_with_hints((c_out, c_in), "weight", init)?,
            bias: vb.get_with_hints(c_out, "bias", init)?,
        })
    }

    /// A layer of given weights, each of which may be a variable or come of one.
    ///
    /// # Shapes
    /// `weight`: `[c_out, c_in]`, `bias`: `[c_out]`
    pub fn of(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    /// On the CPU, a row's result does not depend on how many rows there are.
    ///
    /// # Shapes
    /// `xs`: `[batch, c_in]` to `[batch, c_out]`
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !xs.device().is_cpu() {
            return ops::add_row(&xs.matmul(&self.weight.t()?)?, &self.bias);
        }
        // candle's matrix product adds up in another order where there are few rows. A convolution
        // of images of one pixel does not.
        let pixels = xs.unsqueeze(2)?.unsqueeze(3)?;
        let weight = self.weight.unsqueeze(2)?.unsqueeze(3)?;
        kernels::conv2d(&pixels, &weight, Some(&self.bias), 1, 0)?.flatten_from(1)
    }

    /// `[c_out, c_in]`
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[c_out]`
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }
}

/// Mean over height and width: `[batch, channels, h, w]` to `[batch, channels]`.
pub fn global_average_pool(xs: &Tensor) -> Result<Tensor> {
    xs.flatten_from(2)?.mean(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, random};
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn running_statistics_approach_those_of_the_batch() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let norm = BatchNorm2d::new(3, vb.pp("bn")).unwrap();
        let xs = ((random("xs", &[8, 3, 4, 4]) * 5.0).unwrap() + 2.0).unwrap();
        let mut trained = xs.clone();
        for _ in 0..200 {
            trained = norm.forward(&xs, Mode::Train).unwrap();
        }
        // The running variance is the unbiased one, the batch is normalised by the biased one.
        assert_close(&norm.forward(&xs, Mode::Eval).unwrap(), &trained, 0.01);
        let stored = vars.data().lock().unwrap()["bn.running_mean"].as_detached_tensor();
        assert!(stored.to_vec1::<f32>().unwrap().iter().all(|m| (m - 2.0).abs() < 1.5));
    }
    #[test]
    fn a_row_does_not_depend_on_how_many_there_are() {
        for (c_in, c_out) in [(32, 128), (128, 64), (64, 10), (512, 512), (640, 1)] {
            let vb = VarBuilder::from_tensors(
                [
                    ("weight".to_owned(), random("weight", &[c_out, c_in])),
                    ("bias".to_owned(), random("bias", &[c_out])),
                ]
                .into(),
                DType::F32,
                &Device::Cpu,
            );
            let linear = Linear::new(c_in, c_out, vb).unwrap();
            let xs = random("xs", &[300, c_in]);
            let all = linear.forward(&xs).unwrap().to_vec2::<f32>().unwrap();
            for rows in [1, 2, 3, 7, 26, 64, 257] {
                let some = linear.forward(&xs.narrow(0, 0, rows).unwrap()).unwrap();
                assert_eq!(some.to_vec2::<f32>().unwrap(), all[..rows], "{c_in} {c_out} {rows}");
            }
        }
    }
}
