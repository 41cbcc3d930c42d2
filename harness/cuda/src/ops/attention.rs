//! Self-attention over the pixels of an image, by products of cuBLAS and a softmax of our own.

use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Tensor, bail};

use crate::gemm::{Matrix, Sizes, gemm};
use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_attention", ptx: ptx::ATTENTION };

/// Rows of scores that a block takes.
const WARPS: usize = 8;
/// Scores of so many images are held at once: at most this many bytes of them.
const SCORE_BYTES: usize = 1 << 30;

/// `softmax(scale q k') v` for each head. Scores are `f32`, probabilities of the dtype of `qkv`.
///
/// Moves the bytes of `qkv` in and of the result out, and `12 heads positions^2` for each image (in
/// `bf16`): scores out and in, probabilities out and in, of which half may stay in the cache.
///
/// # Shapes
/// - `qkv`: `[batch, positions, heads * 3 * c]`, `f32` or `bf16`; each head has its queries, keys and
///   values side by side
/// - result: `[batch, positions, heads * c]`
///
/// # Errors
/// Other shapes or dtypes, or the device's.
pub fn attention(qkv: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (_, _, width) = qkv.dims3()?;
    if heads == 0 || width == 0 || !width.is_multiple_of(3 * heads) {
        bail!("attention expected queries, keys and values of {heads} heads, got {width} numbers");
    }
    op::apply1(Attention { heads, scale: scale as f32 }, qkv)
}

#[derive(Clone, Copy)]
struct Attention {
    heads: usize,
    scale: f32,
}

/// The sizes of one call, and where things are.
#[derive(Clone, Copy)]
struct Call<'a> {
    device: &'a CudaDevice,
    dtype: DType,
    heads: usize,
    scale: f32,
    positions: usize,
    /// Channels of a head.
    channels: usize,
}

impl Attention {
    fn call<'a>(&self, qkv: &View<'a>) -> Result<(usize, Call<'a>)> {
        let (batch, positions, width) = qkv.shape().dims3()?;
        let call = Call {
            device: qkv.device(),
            dtype: qkv.dtype(),
            heads: self.heads,
            scale: self.scale,
            positions,
            channels: width / (3 * self.heads),
        };
        Ok((batch, call))
    }

    fn gradient(&self, qkv: View<'_>, grad: View<'_>) -> Result<CudaStorage> {
        let (batch, call) = self.call(&qkv)?;
        let stream = call.device.cuda_stream();
        let mut out = launch::alloc(call.device, call.dtype, qkv.shape().elem_count())?;
        let images = call.images_at_once(batch);
        let mut probabilities = call.scores(images)?;
        let mut slopes = call.scores(images)?;
        let (qkv, grad) = (qkv.pointer(&stream)?, grad.pointer(&stream)?);
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let probabilities = launch::pointer_mut(&mut probabilities, &stream)?;
            let slopes = launch::pointer_mut(&mut slopes, &stream)?;
            for first in (0..batch).step_by(images) {
                let count = images.min(batch - first);
                let qkv = qkv.address + call.bytes(first, 3);
                let grad = grad.address + call.bytes(first, 1);
                let to = to.address + call.bytes(first, 3);
                // SAFETY: all addresses are of tensors of `count` images or more.
                unsafe {
                    call.probabilities(count, qkv, probabilities.address)?;
                    call.slopes(count, qkv, grad, probabilities.address, slopes.address)?;
                    call.gradients(count, qkv, grad, probabilities.address, slopes.address, to)?;
                }
            }
        }
        Ok(out)
    }
}

impl Operation<1> for Attention {
    const NAME: &'static str = "attention";

    fn forward(&self, [qkv]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        let (batch, call) = self.call(&qkv)?;
        let shape = Shape::from((batch, call.positions, self.heads * call.channels));
        let stream = call.device.cuda_stream();
        let mut out = launch::alloc(call.device, call.dtype, shape.elem_count())?;
        let images = call.images_at_once(batch);
        let mut scores = call.scores(images)?;
        let qkv = qkv.pointer(&stream)?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let scores = launch::pointer_mut(&mut scores, &stream)?;
            for first in (0..batch).step_by(images) {
                let count = images.min(batch - first);
                let qkv = qkv.address + call.bytes(first, 3);
                // SAFETY: all addresses are of tensors of `count` images or more.
                unsafe {
                    call.probabilities(count, qkv, scores.address)?;
                    call.values(count, scores.address, qkv, to.address + call.bytes(first, 1))?;
                }
            }
        }
        Ok((out, shape))
    }

    fn backward(&self, [qkv]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let out = op::with_views([qkv, grad], |[qkv, grad]| self.gradient(qkv, grad))?;
        Ok([Some(op::tensor(out, qkv.shape()))])
    }
}

impl Call<'_> {
    /// Bytes of `images` images with `parts` numbers for each channel of each head and position.
    fn bytes(&self, images: usize, parts: usize) -> u64 {
        let numbers = images * self.positions * self.heads * self.channels * parts;
        (numbers * self.dtype.size_in_bytes()) as u64
    }

    fn images_at_once(&self, batch: usize) -> usize {
        let bytes = self.heads * self.positions * self.positions * DType::F32.size_in_bytes();
        (SCORE_BYTES / bytes).clamp(1, batch)
    }

    fn scores(&self, images: usize) -> Result<CudaStorage> {
        let count = images * self.heads * self.positions * self.positions;
        launch::alloc(self.device, DType::F32, count)
    }

    fn sizes(&self, m: usize, n: usize, k: usize, images: usize) -> Sizes {
        Sizes { m, n, k, batch: images }
    }

    /// Queries (0), keys (1) or values (2) of one head of each image.
    fn part(&self, qkv: u64, head: usize, nth: usize) -> Matrix {
        let (width, size) = (3 * self.heads * self.channels, self.dtype.size_in_bytes());
        let offset = (3 * head + nth) * self.channels * size;
        Matrix::new(qkv + offset as u64, self.dtype, width).batched(self.positions * width)
    }

    /// What one head of each image came to.
    fn result(&self, out: u64, head: usize) -> Matrix {
        let (width, size) = (self.heads * self.channels, self.dtype.size_in_bytes());
        let offset = head * self.channels * size;
        Matrix::new(out + offset as u64, self.dtype, width).batched(self.positions * width)
    }

    /// The scores of one head of each image.
    fn score(&self, scores: u64, head: usize) -> Matrix {
        let area = self.positions * self.positions;
        let offset = head * area * DType::F32.size_in_bytes();
        Matrix::new(scores + offset as u64, DType::F32, self.positions).batched(self.heads * area)
    }

    /// What the softmax left in their place: rows as far from each other, in this dtype.
    fn probability(&self, scores: u64, head: usize) -> Matrix {
        let score = self.score(scores, head);
        let times = DType::F32.size_in_bytes() / self.dtype.size_in_bytes();
        Matrix::new(score.pointer, self.dtype, times * score.leading).batched(times * score.stride)
    }

    /// # Safety
    /// As for [`gemm`]: `qkv` and `scores` are of `images` images.
    unsafe fn probabilities(&self, images: usize, qkv: u64, scores: u64) -> Result<()> {
        let sizes = self.sizes(self.positions, self.positions, self.channels, images);
        for head in 0..self.heads {
            let (queries, keys) = (self.part(qkv, head, 0), self.part(qkv, head, 1).transposed());
            let score = self.score(scores, head);
            // SAFETY: as above.
            unsafe { gemm(self.device, sizes, self.scale, queries, keys, 0.0, score) }?;
        }
        // SAFETY: as above.
        unsafe { self.softmax(images, "softmax", &[Arg::Pointer(scores)]) }
    }

    /// # Safety
    /// As for [`gemm`]: all three are of `images` images.
    unsafe fn values(&self, images: usize, probabilities: u64, qkv: u64, out: u64) -> Result<()> {
        let sizes = self.sizes(self.positions, self.channels, self.positions, images);
        for head in 0..self.heads {
            let probability = self.probability(probabilities, head);
            let (values, out) = (self.part(qkv, head, 2), self.result(out, head));
            // SAFETY: as above.
            unsafe { gemm(self.device, sizes, 1.0, probability, values, 0.0, out) }?;
        }
        Ok(())
    }

    /// The gradients of the scores, from those of the result.
    ///
    /// # Safety
    /// As for [`gemm`]: all four are of `images` images.
    unsafe fn slopes(
        &self,
        images: usize,
        qkv: u64,
        grad: u64,
        probabilities: u64,
        slopes: u64,
    ) -> Result<()> {
        let sizes = self.sizes(self.positions, self.positions, self.channels, images);
        for head in 0..self.heads {
            let (grad, values) = (self.result(grad, head), self.part(qkv, head, 2).transposed());
            let slope = self.score(slopes, head);
            // SAFETY: as above.
            unsafe { gemm(self.device, sizes, 1.0, grad, values, 0.0, slope) }?;
        }
        let args = [Arg::Pointer(probabilities), Arg::Pointer(slopes)];
        // SAFETY: as above.
        unsafe { self.softmax(images, "softmax_backward", &args) }
    }

    /// The gradients of queries, keys and values.
    ///
    /// # Safety
    /// As for [`gemm`]: all five are of `images` images.
    unsafe fn gradients(
        &self,
        images: usize,
        qkv: u64,
        grad: u64,
        probabilities: u64,
        slopes: u64,
        out: u64,
    ) -> Result<()> {
        let sizes = self.sizes(self.positions, self.channels, self.positions, images);
        for head in 0..self.heads {
            let slope = self.probability(slopes, head);
            let probability = self.probability(probabilities, head).transposed();
            let [q, k] = [0, 1].map(|nth| self.part(qkv, head, nth));
            let [dq, dk, dv] = [0, 1, 2].map(|nth| self.part(out, head, nth));
            let grad = self.result(grad, head);
            // SAFETY: as above.
            unsafe {
                gemm(self.device, sizes, self.scale, slope, k, 0.0, dq)?;
                gemm(self.device, sizes, self.scale, slope.transposed(), q, 0.0, dk)?;
                gemm(self.device, sizes, 1.0, probability, grad, 0.0, dv)?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// `first` are the addresses of scores of `images` images, as many as the kernel wants.
    unsafe fn softmax(&self, images: usize, name: &str, first: &[Arg]) -> Result<()> {
        let rows = images * self.heads * self.positions;
        let variant = match self.positions {
            n if !n.is_multiple_of(4) => "again",
            n if n <= 256 => "keep2",
            n if n <= 1024 => "keep8",
            _ => "again",
        };
        let mut args = first.to_vec();
        args.push(Arg::U32(launch::to_u32(rows)?));
        args.push(Arg::U32(launch::to_u32(self.positions)?));
        let blocks = launch::to_u32(rows.div_ceil(WARPS))?;
        let config = launch::blocks_of(blocks, 32 * WARPS as u32, 0);
        let function = format!("{name}_{}_{variant}", launch::suffix(self.dtype)?);
        // SAFETY: the parameters of both kernels; a warp for each row of `positions` numbers.
        unsafe { launch::launch(self.device, &MODULE, &function, config, &args) }
    }
}
