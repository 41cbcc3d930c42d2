//! Convolutions.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::conv::{Geometry, Method, Pass, Pointers, run};

/// A convolution without bias.
///
/// # Shapes
/// - `xs`: `[batch, height, width, c_in]`, `f32` or `bf16`
/// - `weight`: `[c_out, kernel, kernel, c_in]`, of the same dtype
/// - result: `[batch, height', width', c_out]`
///
/// Sums are taken in `f32`; with [`crate::set_tf32`] the factors of `f32` are rounded to TF32. The
/// backward pass computes only those gradients that somebody asks for.
///
/// # Errors
/// The shapes do not fit, the tensors are not on one CUDA device, or a library refuses.
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    conv2d_by(Method::Best, xs, weight, stride, padding)
}

/// [`conv2d`], forward and backward, by a method of the caller's choice.
///
/// # Errors
/// As [`conv2d`]; also where the method cannot do it.
pub fn conv2d_by(
    method: Method,
    xs: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let geometry = Geometry::new(xs.dims(), weight.dims(), stride, padding)?;
    let forward = Convolution { pass: Pass::Forward, method, geometry };
    aligned(xs)?.apply_op2(&aligned(weight)?, forward)
}

/// One pass of a convolution as an operation on two tensors, named here as they go in.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    /// `Forward`: `x`, `w`. `BackwardData`: `w`, the gradient of `y`. `BackwardFilter`: `x`, the gradient
    /// of `y`.
    pass: Pass,
    method: Method,
    geometry: Geometry,
}

impl Convolution {
    fn with_pass(self, pass: Pass) -> Self {
        Self { pass, ..self }
    }

    fn compute<T: CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        first: (&CudaStorage, &Layout),
        second: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let Self { pass, method, geometry } = *self;
        let dtype = first.0.dtype();
        let stream = device.cuda_stream();
        let (first, first_layout) = (first.0.as_cuda_slice::<T>()?, first.1);
        let (second, second_layout) = (second.0.as_cuda_slice::<T>()?, second.1);
        let length = geometry.result_shape(pass).iter().product();
        // SAFETY: the convolution writes every element.
        let mut result = unsafe { device.alloc::<T>(length) }?;
        {
            let (first, _first_read) = first.device_ptr(&stream);
            let (second, _second_read) = second.device_ptr(&stream);
            let (result, _result_written) = result.device_ptr_mut(&stream);
            let first = first + (first_layout.start_offset() * size_of::<T>()) as u64;
            let second = second + (second_layout.start_offset() * size_of::<T>()) as u64;
            let pointers = match pass {
                Pass::Forward => Pointers { x: first, w: second, y: result },
                Pass::BackwardData => Pointers { x: result, w: first, y: second },
                Pass::BackwardFilter => Pointers { x: first, w: result, y: second },
            };
            // SAFETY: `cuda_fwd` has checked shapes, layouts and devices. The tensors live until this returns,
            // and are freed in the order of the stream.
            unsafe { run(device, method, pass, geometry, dtype, pointers) }?;
        }
        Ok(CudaStorage::wrap_cuda_slice(result, device.clone()))
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Forward => "conv2d",
            Pass::BackwardData => "conv2d backward to the data",
            Pass::BackwardFilter => "conv2d backward to the filter",
        }
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{} expected tensors on a CUDA device, got the CPU", self.name())
    }

    fn cuda_fwd(
        &self,
        first: &CudaStorage,
        first_layout: &Layout,
        second: &CudaStorage,
        second_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let geometry = &self.geometry;
        let (one, two) = match self.pass {
            Pass::Forward => (geometry.x_shape(), geometry.w_shape()),
            Pass::BackwardData => (geometry.w_shape(), geometry.y_shape()),
            Pass::BackwardFilter => (geometry.x_shape(), geometry.y_shape()),
        };
        for (layout, shape) in [(first_layout, one), (second_layout, two)] {
            if layout.dims() != shape || !layout.is_contiguous() {
                bail!("{} expected contiguous {shape:?}, got {layout:?}", self.name());
            }
        }
        let device = first.device();
        if device.id() != second.device().id() {
            bail!("{} expected tensors on one device, got two", self.name());
        }
        let (first_dtype, second_dtype) = (first.dtype(), second.dtype());
        let (first, second) = ((first, first_layout), (second, second_layout));
        let result = match (first_dtype, second_dtype) {
            (DType::F32, DType::F32) => self.compute::<f32>(device, first, second)?,
            (DType::BF16, DType::BF16) => self.compute::<bf16>(device, first, second)?,
            (one, two) => bail!(
                "{} expected both tensors in f32 or both in bf16, got {} and {}",
                self.name(),
                one.as_str(),
                two.as_str()
            ),
        };
        Ok((result, Shape::from(geometry.result_shape(self.pass).to_vec())))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if self.pass != Pass::Forward {
            bail!("{} has no backward pass", self.name());
        }
        let gradient = aligned(gradient)?;
        // A tensor that no variable goes into, such as an image, is not worth a backward pass.
        let xs_gradient = if xs.track_op() {
            let backward = self.with_pass(Pass::BackwardData);
            Some(weight.apply_op2_no_bwd(&gradient, &backward)?)
        } else {
            None
        };
        let weight_gradient = if weight.track_op() {
            let backward = self.with_pass(Pass::BackwardFilter);
            Some(xs.apply_op2_no_bwd(&gradient, &backward)?)
        } else {
            None
        };
        Ok((xs_gradient, weight_gradient))
    }
}

/// The tensor itself where it is contiguous and starts at a multiple of 16 bytes, else a copy that is.
/// Memory as allocated is aligned to 256 bytes.
fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let offset = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if tensor.is_contiguous() && offset.is_multiple_of(16) {
        Ok(tensor.clone())
    } else {
        tensor.force_contiguous()
    }
}
