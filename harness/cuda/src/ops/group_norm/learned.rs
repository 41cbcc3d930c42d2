//! Parameters that gradients are asked of. Automatic differentiation knows operations of up to three
//! tensors, so weight, bias and shift are put one behind the other.

use candle_core::{CudaStorage, DType, Result, Shape, Tensor, bail};

use super::super::elementwise::sum_rows;
use super::{BACKWARD, Norm, Parameters};
use crate::launch::{self, Arg, Pointer, View};
use crate::op::{self, Operation};

/// Weight, bias and perhaps shift, one behind the other in one tensor.
pub(super) struct Learned {
    pub(super) norm: Norm,
    pub(super) has_shift: bool,
}

impl Learned {
    fn parameters(&self, joined: u64, batch: usize, channels: usize) -> Parameters {
        let mut addresses = [0; 3];
        let mut next = joined;
        for (nth, address) in addresses.iter_mut().enumerate() {
            if nth < 2 || self.has_shift {
                *address = next;
                let rows = if self.norm.per_image[nth] { batch } else { 1 };
                next += (rows * channels * DType::F32.size_in_bytes()) as u64;
            }
        }
        Parameters(addresses)
    }
}

impl Operation<2> for Learned {
    const NAME: &'static str = "group_norm";

    fn forward(&self, [xs, joined]: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        let (batch, _, _, channels) = xs.shape().dims4()?;
        let stream = xs.device().cuda_stream();
        let joined = joined.pointer(&stream)?;
        let parameters = self.parameters(joined.address, batch, channels);
        Ok((self.norm.forward(xs, None, &parameters)?, xs.shape().clone()))
    }

    fn backward(&self, [xs, joined]: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let (batch, _, _, channels) = xs.dims4()?;
        let (out, partial) = op::with_views([xs, grad, joined], |[xs, grad, joined]| {
            let stream = xs.device().cuda_stream();
            let joined = joined.pointer(&stream)?;
            let parameters = self.parameters(joined.address, batch, channels);
            self.norm.backward(xs, grad, &parameters)
        })?;
        let count = if self.has_shift { 3 } else { 2 };
        let partial = op::tensor(partial, (count, batch, channels));
        let joined = gradient_of_joined(&partial, &self.norm.per_image[..count])?;
        Ok([Some(op::tensor(out, xs.shape())), Some(joined)])
    }
}

/// The gradients of what differs between images as they are, of what does not summed over them.
fn gradient_of_joined(partial: &Tensor, per_image: &[bool]) -> Result<Tensor> {
    let (count, batch, channels) = partial.dims3()?;
    if batch == 1 || per_image.iter().all(|each| *each) {
        return partial.flatten_all();
    }
    let sums = op::with_views([partial], |[partial]| sum_rows(partial, count, batch, channels))?;
    let sums = op::tensor(sums, (count, channels));
    if !per_image.iter().any(|each| *each) {
        return sums.flatten_all();
    }
    let mut parts = Vec::with_capacity(count);
    for (nth, each) in per_image.iter().enumerate() {
        parts.push(if *each { partial.get(nth)? } else { sums.get(nth)? });
    }
    let (storage, shape) = match &parts[..] {
        [a, b] => op::with_views([a, b], |views| Join::run(&views)),
        [a, b, c] => op::with_views([a, b, c], |views| Join::run(&views)),
        other => bail!("group_norm expected 2 or 3 parameters, got {}", other.len()),
    }?;
    Ok(op::tensor(storage, shape))
}

/// The numbers of two or three tensors one behind the other.
pub(super) struct Join;

impl Join {
    fn run(views: &[View<'_>]) -> Result<(CudaStorage, Shape)> {
        let device = views[0].device();
        let stream = device.cuda_stream();
        let lengths: Vec<usize> = views.iter().map(|view| view.shape().elem_count()).collect();
        let count: usize = lengths.iter().sum();
        let mut out = launch::alloc(device, DType::F32, count)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let mut pointers = Vec::with_capacity(views.len());
            for view in views {
                pointers.push(view.pointer(&stream)?);
            }
            let absent = Arg::Pointer(0);
            let from = |nth: usize| pointers.get(nth).map_or(absent, Pointer::arg);
            let length = |nth: usize| -> Result<Arg> {
                Ok(Arg::U32(launch::to_u32(lengths.get(nth).copied().unwrap_or(0))?))
            };
            let args = [from(0), from(1), from(2), to.arg(), length(0)?, length(1)?, length(2)?];
            // SAFETY: the parameters of `join`; what is absent has length 0.
            unsafe { launch::launch(device, &BACKWARD, "join", launch::grid(count)?, &args) }?;
        }
        Ok((out, Shape::from(count)))
    }

    fn split(args: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(args.len());
        for arg in args {
            let count = arg.elem_count();
            parts.push(Some(grad.narrow(0, start, count)?.reshape(arg.shape())?));
            start += count;
        }
        Ok(parts)
    }
}

impl Operation<2> for Join {
    const NAME: &'static str = "join";

    fn forward(&self, views: [View<'_>; 2]) -> Result<(CudaStorage, Shape)> {
        Self::run(&views)
    }

    fn backward(&self, args: [&Tensor; 2], grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let mut parts = Self::split(&args, grad)?.into_iter();
        Ok([(); 2].map(|()| parts.next().flatten()))
    }
}

impl Operation<3> for Join {
    const NAME: &'static str = "join";

    fn forward(&self, views: [View<'_>; 3]) -> Result<(CudaStorage, Shape)> {
        Self::run(&views)
    }

    fn backward(&self, args: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let mut parts = Self::split(&args, grad)?.into_iter();
        Ok([(); 3].map(|()| parts.next().flatten()))
    }
}
