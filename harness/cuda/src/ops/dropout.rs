//! Dropout with the mask that the CPU draws.

use candle_core::{CudaStorage, Result, Shape, Tensor, bail};

use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_dropout", ptx: ptx::DROPOUT };

/// Zeroes each element with probability `p` and multiplies the others by `1 / (1 - p)`. The mask is
/// that of the CPU's dropout on the same image in channels-first order: bits of a SplitMix64 sequence
/// of `key`. It is not kept: the gradient's pass computes it again.
///
/// Moves the bytes of an image in and out.
///
/// # Shapes
/// `[batch, height, width, channels]`, `f32` or `bf16`
///
/// # Errors
/// A probability outside of `[0, 1)`, other shapes or dtypes, or the device's.
pub fn dropout(xs: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    xs.dims4()?;
    if !(0.0..1.0).contains(&p) {
        bail!("dropout expected a probability from 0 to below 1, got {p}");
    }
    if p == 0.0 {
        return Ok(xs.clone());
    }
    // As the CPU rounds them.
    let threshold = (p * 2f64.powi(32)).round().min(f64::from(u32::MAX)) as u32;
    op::apply1(Mask { key, threshold, scale: (1.0 / (1.0 - p)) as f32 }, xs)
}

#[derive(Clone, Copy)]
struct Mask {
    key: u64,
    /// An element goes when its 32 random bits are below this.
    threshold: u32,
    scale: f32,
}

impl Operation<1> for Mask {
    const NAME: &'static str = "dropout";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (xs.device(), xs.dtype(), xs.shape().clone());
        let (_, height, width, channels) = shape.dims4()?;
        let (pixels, count) = (height * width, shape.elem_count());
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, count)?;
        let from = xs.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let suffix = launch::suffix(dtype)?;
            // Two neighbours in channels-first order share a random number. Where the number of pixels
            // is odd some of them are in different channels.
            let (function, threads, columns) = if pixels.is_multiple_of(2) {
                let pack = launch::pack(dtype, &[channels], &[&from, &to]);
                (format!("dropout_pairs_{suffix}_{pack}"), count / pack / 2, channels / pack)
            } else {
                (format!("dropout_each_{suffix}"), count, channels)
            };
            let args = [
                from.arg(),
                to.arg(),
                Arg::U32(launch::to_u32(threads)?),
                Arg::U32(launch::to_u32(columns)?),
                Arg::U32(launch::to_u32(pixels)?),
                Arg::U64(self.key),
                Arg::U32(self.threshold),
                Arg::F32(self.scale),
            ];
            // SAFETY: the parameters of both kernels; a thread for each of `threads` packs or numbers.
            unsafe { launch::launch(device, &MODULE, &function, launch::grid(threads)?, &args) }?;
        }
        Ok((out, shape))
    }

    fn backward(&self, _args: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (storage, shape) = op::with_views([grad], |views| self.forward(views))?;
        Ok([Some(op::tensor(storage, shape))])
    }
}
