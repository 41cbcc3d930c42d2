//! What a sampler does with a network's answer, each in one launch. The bits are those of the single
//! operations that the CPU runs.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::ptx;

const MODULE: &str = "oodbench_sampler";

/// Classifier-free guidance of weight `beta`: `conditional * (1 + beta) - unconditional * beta`.
///
/// # Shapes
/// - `both`: `[2 batch, …]`, `f32`, the conditional half first
/// - result: `[batch, …]`
///
/// # Errors
/// A batch that has no halves, another dtype, another device than CUDA.
pub fn guide(both: &Tensor, beta: f64) -> Result<Tensor> {
    both.contiguous()?.apply_op1_no_bwd(&Guide { beta })
}

/// A DDIM transfer: `x + (x * along_x - eps * along_noise) * way`.
///
/// # Shapes
/// `x`, `eps`, result: the same, `f32`
///
/// # Errors
/// Other shapes or dtypes, another device than CUDA.
pub fn ddim(x: &Tensor, eps: &Tensor, along_x: f64, along_noise: f64, way: f64) -> Result<Tensor> {
    let numbers = [along_x, along_noise, way].map(|number| number as f32);
    x.contiguous()?.apply_op2_no_bwd(&eps.contiguous()?, &Ddim { numbers })
}

struct Guide {
    beta: f64,
}

struct Ddim {
    /// `along_x`, `along_noise` and `way`.
    numbers: [f32; 3],
}

impl CustomOp1 for Guide {
    fn name(&self) -> &'static str {
        "guide"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("guide expected a CUDA device, got the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let (Some(rows), Some(range)) = (dims.first_mut(), layout.contiguous_offsets()) else {
            bail!("guide expected a contiguous batch, got {layout:?}")
        };
        if !rows.is_multiple_of(2) {
            bail!("guide expected two halves, got {rows} rows")
        }
        *rows /= 2;
        let shape = Shape::from(dims);
        let device = storage.device();
        let both = storage.as_cuda_slice::<f32>()?.slice(range.0..range.1);
        let n = shape.elem_count();
        // SAFETY: the kernel writes all `n` elements.
        let mut out = unsafe { device.alloc::<f32>(n) }?;
        // As scalars of a chain of operations are rounded.
        let (more, beta) = ((1.0 + self.beta) as f32, self.beta as f32);
        let kernel = device.get_or_load_custom_func("guide_f32", MODULE, ptx::SAMPLER)?;
        let mut launch = kernel.builder();
        launch.arg(&both).arg(&mut out).arg(&n).arg(&more).arg(&beta);
        if n > 0 {
            // SAFETY: `both` has `2 n` elements and `out` has `n`; the argument types are the
            // kernel's: two pointers, size_t, two floats.
            unsafe { launch.launch(grid(n)) }.w()?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

impl CustomOp2 for Ddim {
    fn name(&self) -> &'static str {
        "ddim"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("ddim expected a CUDA device, got the CPU")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        eps: &CudaStorage,
        eps_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        if x_layout.shape() != eps_layout.shape() {
            bail!("ddim expected noise of {:?}, got {:?}", x_layout.shape(), eps_layout.shape())
        }
        let ranges = (x_layout.contiguous_offsets(), eps_layout.contiguous_offsets());
        let (Some(of_x), Some(of_eps)) = ranges else {
            bail!("ddim expected contiguous tensors, got {x_layout:?} and {eps_layout:?}")
        };
        let device = x.device();
        let x = x.as_cuda_slice::<f32>()?.slice(of_x.0..of_x.1);
        let eps = eps.as_cuda_slice::<f32>()?.slice(of_eps.0..of_eps.1);
        let n = x_layout.shape().elem_count();
        // SAFETY: the kernel writes all `n` elements.
        let mut out = unsafe { device.alloc::<f32>(n) }?;
        let [along_x, along_noise, way] = self.numbers;
        let kernel = device.get_or_load_custom_func("ddim_f32", MODULE, ptx::SAMPLER)?;
        let mut launch = kernel.builder();
        launch.arg(&x).arg(&eps).arg(&mut out).arg(&n);
        launch.arg(&along_x).arg(&along_noise).arg(&way);
        if n > 0 {
            // SAFETY: all three have `n` elements; the argument types are the kernel's: three
            // pointers, size_t, three floats.
            unsafe { launch.launch(grid(n)) }.w()?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), x_layout.shape().clone()))
    }
}

/// Threads for `n` elements, over which the kernels stride.
fn grid(n: usize) -> LaunchConfig {
    const THREADS: u32 = 256;
    const MOST_BLOCKS: usize = 1 << 16;
    let blocks = n.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
