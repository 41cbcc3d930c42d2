//! Training images on the device: picked out of 8-bit pixels, cropped, mirrored and noised, with
//! numbers that the host draws; and the loss of a predicted noise (`loss`).
//!
//! Images are those of the CPU bit for bit.

mod loss;

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

pub use self::loss::{Loss, noise_loss};
use crate::ptx;

const THREADS: u32 = 256;

/// What is cut out of which image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The image.
    pub index: u32,
    /// Where the cut begins in the image with its border.
    pub dy: u32,
    pub dx: u32,
    pub mirrored: bool,
}

impl Pick {
    /// As the kernel reads it.
    pub fn words(self) -> [u32; 4] {
        [self.index, self.dy, self.dx, u32::from(self.mirrored)]
    }
}

/// Images `pixel / 255 * factor + shift`, cut out of a black border that is `padding` wide.
///
/// Every pick has to name an image of `pixels`, and `dy` and `dx` of at most twice the padding: they
/// are on the device already, where nobody looks.
///
/// # Shapes
/// - `pixels`: `[n, height, width, 3]`, `u8`
/// - `picks`: `[batch, 4]`, `u32`: [`Pick::words`]
/// - result: `[batch, 3, height, width]`, `f32`
///
/// # Errors
/// Other shapes, or more than `u32` can number.
pub fn pick_images(
    pixels: &Tensor,
    picks: &Tensor,
    padding: usize,
    (factor, shift): (f32, f32),
) -> Result<Tensor> {
    pixels
        .contiguous()?
        .apply_op2_no_bwd(&picks.contiguous()?, &PickImages { padding, factor, shift })
}

/// `xs * signal + noise * scale`, where `signal` and `scale` are numbers of each image.
///
/// # Shapes
/// - `xs`, `noise`, result: `[batch, …]`, `f32`
/// - `signal_and_scale`: `[2, batch]`, `f32`
///
/// # Errors
/// Other shapes or types.
pub fn diffuse(xs: &Tensor, noise: &Tensor, signal_and_scale: &Tensor) -> Result<Tensor> {
    let factors = signal_and_scale.contiguous()?;
    xs.contiguous()?.apply_op3_no_bwd(&noise.contiguous()?, &factors, &Diffuse)
}

struct PickImages {
    padding: usize,
    factor: f32,
    shift: f32,
}

impl CustomOp2 for PickImages {
    fn name(&self) -> &'static str {
        "pick-images"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cuda_alone(self.name())
    }

    fn cuda_fwd(
        &self,
        pixels: &CudaStorage,
        pixels_layout: &Layout,
        picks: &CudaStorage,
        picks_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (_, height, width, channels) = pixels_layout.shape().dims4()?;
        let (batch, words) = picks_layout.shape().dims2()?;
        if channels != 3 || words != 4 {
            let got = (pixels_layout.shape(), picks_layout.shape());
            candle_core::bail!(
                "pick-images expected [n, height, width, 3] and [batch, 4], got {got:?}"
            );
        }
        let device = &pixels.device;
        let shape = Shape::from((batch, 3, height, width));
        // SAFETY: the kernel writes every pixel of every channel.
        let mut out = unsafe { device.alloc::<f32>(shape.elem_count()) }?;
        let n = u32_of(batch * height * width, "pixels")?;
        if n > 0 {
            let pixels = pixels.as_cuda_slice::<u8>()?.slice(range(pixels_layout)?);
            let picks = picks.as_cuda_slice::<u32>()?.slice(range(picks_layout)?);
            let (height, width) = (u32_of(height, "rows")?, u32_of(width, "columns")?);
            let padding = u32_of(self.padding, "rows")?;
            let (stream, function) = (device.cuda_stream(), function(device, "pick_images")?);
            let mut launch = stream.launch_builder(&function);
            launch
                .arg(&n)
                .arg(&height)
                .arg(&width)
                .arg(&padding)
                .arg(&self.factor)
                .arg(&self.shift);
            launch.arg(&pixels).arg(&picks).arg(&mut out);
            // SAFETY: four `u32`, two `f32` and three pointers, as the kernel has them. It writes
            // `out[0..3 n]` and reads `picks[0..4 batch]`; that a pick names an image is the caller's.
            unsafe { launch.launch(blocks(n as usize)?) }.w()?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

struct Diffuse;

impl CustomOp3 for Diffuse {
    fn name(&self) -> &'static str {
        "diffuse"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cuda_alone(self.name())
    }

    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        noise: &CudaStorage,
        noise_layout: &Layout,
        factors: &CudaStorage,
        factors_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = same_shape(self.name(), xs_layout, noise_layout)?;
        let batch = shape.dims().first().copied().unwrap_or(0);
        let (two, factors_batch) = factors_layout.shape().dims2()?;
        if two != 2 || factors_batch != batch {
            candle_core::bail!("diffuse expected [2, {batch}], got {:?}", factors_layout.shape());
        }
        let (device, n) = (&xs.device, shape.elem_count());
        // SAFETY: the kernel writes every number.
        let mut out = unsafe { device.alloc::<f32>(n) }?;
        if n > 0 {
            let per_image = u32_of(n / batch, "numbers an image")?;
            let xs = xs.as_cuda_slice::<f32>()?.slice(range(xs_layout)?);
            let noise = noise.as_cuda_slice::<f32>()?.slice(range(noise_layout)?);
            let factors = factors.as_cuda_slice::<f32>()?.slice(range(factors_layout)?);
            let (signal, scale) = (factors.slice(..batch), factors.slice(batch..));
            let (stream, function) = (device.cuda_stream(), function(device, "diffuse")?);
            let mut launch = stream.launch_builder(&function);
            launch.arg(&n).arg(&per_image).arg(&xs).arg(&noise).arg(&signal).arg(&scale);
            launch.arg(&mut out);
            // SAFETY: a `size_t`, a `u32` and five pointers, as the kernel has them; `xs`, `noise` and
            // `out` have `n` numbers, the factors one for each image.
            unsafe { launch.launch(blocks(n)?) }.w()?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

fn cuda_alone<T>(name: &str) -> Result<T> {
    candle_core::bail!("{name} expected tensors on a CUDA device, got some on the CPU")
}

/// The shape of two contiguous tensors.
fn same_shape(name: &str, a: &Layout, b: &Layout) -> Result<Shape> {
    if a.shape() != b.shape() {
        candle_core::bail!("{name} expected {:?}, got {:?}", a.shape(), b.shape());
    }
    Ok(a.shape().clone())
}

/// The numbers of a contiguous tensor in its memory.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

fn u32_of(n: usize, what: &str) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => candle_core::bail!("expected at most {} {what}, got {n}", u32::MAX),
    }
}

fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    let function = device.get_or_load_custom_func(name, "oodbench_augment", ptx::AUGMENT)?;
    Ok(function.into_cuda_function())
}

fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// A thread for each of `n` numbers.
fn blocks(n: usize) -> Result<LaunchConfig> {
    let blocks = u32_of(n.div_ceil(THREADS as usize), "blocks")?;
    if blocks > i32::MAX as u32 {
        candle_core::bail!("expected at most {} blocks, got {blocks}", i32::MAX);
    }
    Ok(config(blocks, THREADS))
}
