//! Convolutions of channels-last tensors: who computes them, and what is kept for each device.
//!
//! Kernels of 1x1 are matrix products. All others go to cuDNN where it is built in and can be opened
//! ([`backend`] tells), and are else made matrix products by `im2col`. A shape for which cuDNN has
//! no engine that may be used goes there too, and [`report`] lists it.
//!
//! [`crate::ops::conv2d`] is the operation on tensors.

mod geometry;
mod state;

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Result, bail};

pub use geometry::{Geometry, Pass};
pub(crate) use geometry::{Pointers, Problem};

/// See [`set_timed`].
static TIMED: AtomicBool = AtomicBool::new(true);

/// Who computes convolutions that are not 1x1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// cuDNN, with its version as `9.10.2`.
    Cudnn(String),
    /// Matrix products by cuBLAS, and why.
    Im2col(String),
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cudnn(version) => write!(f, "cuDNN {version}"),
            Self::Im2col(reason) => write!(f, "im2col and cuBLAS ({reason})"),
        }
    }
}

/// How to compute a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// As a product if it is 1x1, else by the [`Backend`].
    #[default]
    Best,
    /// By cuDNN, or not at all.
    Cudnn,
    /// By windows and cuBLAS, also where the kernel is 1x1.
    Im2col,
}

/// What was done on a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plans that cuDNN was asked for: one for each pass, shape, dtype and TF32 setting.
    pub plans: usize,
    /// Convolutions for which the plan was there already.
    pub reused: usize,
    /// How often the workspace was allocated.
    pub allocations: usize,
    /// The size of the workspace.
    pub workspace_bytes: usize,
}

/// Who computes the convolutions on `device`. Opens cuDNN if it was not opened yet.
///
/// # Errors
/// The device does not answer.
pub fn backend(device: &CudaDevice) -> Result<Backend> {
    state::with(device, |state| Ok(state.backend(device)))
}

/// What was done on `device` so far.
///
/// # Errors
/// The device does not answer.
pub fn counts(device: &CudaDevice) -> Result<Counts> {
    state::with(device, |state| Ok(state.counts()))
}

/// A line for each convolution that cuDNN was asked for on `device`: the engine that was chosen, its
/// workspace and time, or why there is none. Sorted.
///
/// # Errors
/// The device does not answer.
pub fn report(device: &CudaDevice) -> Result<Vec<String>> {
    state::with(device, |state| Ok(state.report()))
}

/// Whether cuDNN's engines are timed when a shape is met first. On at first. Without it the first
/// engine of cuDNN's heuristics is taken, so that the same engine, and the same last bits, come out of
/// each run.
pub fn set_timed(timed: bool) {
    TIMED.store(timed, Ordering::Relaxed);
}

/// What [`set_timed`] said last.
#[must_use]
pub fn is_timed() -> bool {
    TIMED.load(Ordering::Relaxed)
}

/// Computes one pass into the tensor that it yields.
///
/// # Errors
/// The dtype is none of `f32` and `bf16`, a pointer is not aligned to 16 bytes, `method` cannot do it,
/// or a library refuses.
///
/// # Safety
/// `pointers` address contiguous tensors of the geometry's shapes on `device` that do not overlap and
/// that live until the work on the device's stream has ended.
pub(crate) unsafe fn run(
    device: &CudaDevice,
    method: Method,
    pass: Pass,
    geometry: Geometry,
    dtype: DType,
    pointers: Pointers,
) -> Result<()> {
    if !matches!(dtype, DType::F32 | DType::BF16) {
        bail!("convolve expected f32 or bf16, got {}", dtype.as_str());
    }
    let Pointers { x, w, y } = pointers;
    if [x, w, y].iter().any(|pointer| pointer % 16 != 0) {
        bail!("convolve expected tensors aligned to 16 bytes, got {pointers:x?}");
    }
    let tf32 = dtype == DType::F32 && crate::tf32();
    let problem = Problem { pass, geometry, dtype, tf32 };
    if method == Method::Best && geometry.is_pointwise() {
        // SAFETY: passed on.
        return unsafe { crate::im2col::run_pointwise(device, &problem, pointers) };
    }
    // SAFETY: passed on.
    state::with(device, |state| unsafe { state.run(device, method, &problem, pointers) })
}
