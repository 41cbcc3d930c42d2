//! Differentiable operations: a kernel of ours, and its gradient, as one of candle's custom operations.

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage,
    Tensor, bail,
};

use crate::launch::View;

/// A function of `N` tensors that runs on a device only.
pub(crate) trait Operation<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;

    /// Puts the kernels in line; all arguments are contiguous.
    fn forward(&self, args: [View<'_>; N]) -> Result<(CudaStorage, Shape)>;

    /// The gradients of the arguments; `grad` is contiguous.
    fn backward(&self, args: [&Tensor; N], grad: &Tensor) -> Result<[Option<Tensor>; N]>;
}

struct Custom<O>(O);

fn cpu<T>(name: &str) -> Result<T> {
    bail!("{name} expected tensors on a CUDA device, got some in the host's memory")
}

impl<O: Operation<1>> CustomOp1 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cpu(O::NAME)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward([View { storage, layout }])
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [grad] = self.0.backward([arg], &grad.contiguous()?)?;
        Ok(grad)
    }
}

impl<O: Operation<2>> CustomOp2 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cpu(O::NAME)
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.forward([View { storage: s1, layout: l1 }, View { storage: s2, layout: l2 }])
    }

    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [first, second] = self.0.backward([arg1, arg2], &grad.contiguous()?)?;
        Ok((first, second))
    }
}

impl<O: Operation<3>> CustomOp3 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
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
        cpu(O::NAME)
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.forward([
            View { storage: s1, layout: l1 },
            View { storage: s2, layout: l2 },
            View { storage: s3, layout: l3 },
        ])
    }

    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        arg3: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [first, second, third] = self.0.backward([arg1, arg2, arg3], &grad.contiguous()?)?;
        Ok((first, second, third))
    }
}

/// The operation on one tensor, known to automatic differentiation.
pub(crate) fn apply1(operation: impl Operation<1>, xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Custom(operation))
}

/// The operation on two tensors.
pub(crate) fn apply2(operation: impl Operation<2>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Custom(operation))
}

/// The operation on three tensors.
pub(crate) fn apply3(
    operation: impl Operation<3>,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Custom(operation))
}

/// A tensor of what a kernel has written, unknown to automatic differentiation.
pub(crate) fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Calls `kernel` with views of tensors, which are made contiguous.
pub(crate) fn with_views<const N: usize, R>(
    tensors: [&Tensor; N],
    kernel: impl FnOnce([View<'_>; N]) -> Result<R>,
) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut views = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        let Storage::Cuda(storage) = &**storage else {
            return cpu("kernel");
        };
        views.push(View { storage, layout });
    }
    match views.try_into() {
        Ok(views) => kernel(views),
        Err(_) => bail!("kernel expected {N} tensors"),
    }
}
