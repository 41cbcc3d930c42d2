//! Group normalisation with a shift before it and SiLU behind it.

mod learned;
mod plan;

use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Tensor, bail};

use self::learned::{Join, Learned};
use self::plan::{Pass, Plan, Work};
use crate::launch::{self, Arg, Module, View};
use crate::op::{self, Operation};
use crate::ptx;

const MODULE: Module = Module { name: "oodbench_group_norm", ptx: ptx::GROUP_NORM };
const BACKWARD: Module =
    Module { name: "oodbench_group_norm_backward", ptx: ptx::GROUP_NORM_BACKWARD };

/// `act((normal(xs + shift)) * weight + bias)`, where `normal` gives each group of channels of each
/// image zero mean and unit variance; statistics in `f32`.
///
/// Moves the bytes of an image in and out; backwards those of two in and of one out. Nothing but the
/// arguments is kept for the gradients.
///
/// # Shapes
/// - `xs`, result: `[batch, height, width, channels]`, `f32` or `bf16`
/// - `weight`, `bias`: `[channels]` or `[batch, channels]`, `f32`
/// - `shift`: `[1, channels]` or `[batch, channels]`, `f32`
///
/// # Errors
/// Other shapes or dtypes, groups that do not divide the channels, or the device's.
pub fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    shift: Option<&Tensor>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let norm = Norm::new(xs.dims4()?, weight, bias, shift, groups, eps, silu)?;
    let parts: Vec<&Tensor> = [Some(weight), Some(bias), shift].into_iter().flatten().collect();
    if parts.iter().any(|part| part.track_op()) {
        // Automatic differentiation knows operations of up to three tensors.
        let joined = match shift {
            None => op::apply2(Join, weight, bias)?,
            Some(shift) => op::apply3(Join, weight, bias, shift)?,
        };
        return op::apply2(Learned { norm, has_shift: shift.is_some() }, xs, &joined);
    }
    op::apply1(Fixed::new(norm, &parts)?, xs)
}

/// What the kernels need to know beside the tensors.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// Channels of a group.
    group: usize,
    eps: f32,
    silu: bool,
    /// Whether weight, bias and shift differ between images.
    per_image: [bool; 3],
}

/// The addresses of weight, bias and shift.
struct Parameters([u64; 3]);

impl Norm {
    /// Checks the parameters of images of these sizes.
    pub(super) fn new(
        (batch, _, _, channels): (usize, usize, usize, usize),
        weight: &Tensor,
        bias: &Tensor,
        shift: Option<&Tensor>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            bail!("group_norm expected groups that divide {channels} channels, got {groups}");
        }
        let one_each = |name: &str, tensor: &Tensor| -> Result<bool> {
            let single = tensor.dims() == [channels] || tensor.dims() == [1, channels];
            let each = tensor.dims() == [batch, channels];
            if !(single || each) || tensor.dtype() != DType::F32 {
                bail!(
                    "group_norm expected {name} [{channels}] or [{batch}, {channels}] in f32, got {tensor:?}"
                );
            }
            Ok(!single)
        };
        let per_image = [
            one_each("a weight", weight)?,
            one_each("a bias", bias)?,
            shift.map(|shift| one_each("a shift", shift)).transpose()?.unwrap_or(false),
        ];
        Ok(Self { group: channels / groups, eps: eps as f32, silu, per_image })
    }

    /// What both kernels have in common: how the work is spread, and the last parameters.
    fn prepare(
        &self,
        dims: [usize; 4],
        pass: Pass,
        dtype: DType,
        pack: usize,
        sums: usize,
    ) -> Result<(Plan, LaunchConfig, Vec<Arg>)> {
        let [batch, height, width, channels] = dims;
        let pixels = height * width;
        launch::to_u32(batch * pixels * channels)?;
        let number_bytes = dtype.size_in_bytes();
        let work = Work { pixels, channels, group: self.group, pack, number_bytes };
        let plan = Plan::new(&work, pass)?;
        let rows = match pass {
            // The statistics alone: a number for each unit and line.
            Pass::Forward => plan.slab >> plan.unit_bits,
            Pass::Backward => sums * plan.slab,
        };
        let per_channel = if pass == Pass::Forward { 3 } else { 7 };
        let shared = 4 * (per_channel * plan.slab + rows * (plan.lines() + 4));
        let config = launch::blocks_of(
            launch::to_u32(batch * (channels / plan.slab))?,
            launch::to_u32(plan.threads)?,
            launch::to_u32(shared)?,
        );
        let stride = |per_image: bool| if per_image { channels } else { 0 };
        let args = vec![
            Arg::U32(launch::to_u32(pixels)?),
            Arg::U32(launch::to_u32(channels)?),
            Arg::U32(launch::to_u32(plan.slab)?),
            Arg::U32(launch::to_u32(self.group)?),
            Arg::U32(launch::to_u32(plan.unit_bits)?),
            Arg::U32(launch::to_u32(stride(self.per_image[0]))?),
            Arg::U32(launch::to_u32(stride(self.per_image[1]))?),
            Arg::U32(launch::to_u32(stride(self.per_image[2]))?),
            Arg::F32(self.eps),
            Arg::U32(u32::from(self.silu)),
        ];
        Ok((plan, config, args))
    }

    /// The channels of `beside`, if there is one, follow those of `xs`.
    fn forward(
        &self,
        xs: View<'_>,
        beside: Option<View<'_>>,
        parameters: &Parameters,
    ) -> Result<CudaStorage> {
        let (device, dtype) = (xs.device(), xs.dtype());
        let (batch, height, width, own) = xs.shape().dims4()?;
        let channels = own + beside.as_ref().map_or(0, |beside| beside.dims()[3]);
        let dims = [batch, height, width, channels];
        let stream = device.cuda_stream();
        let mut out = launch::alloc(device, dtype, dims.iter().product())?;
        let xs = xs.pointer(&stream)?;
        let beside = beside.map(|beside| beside.pointer(&stream)).transpose()?;
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let mut pointers = vec![&xs, &to];
            pointers.extend(&beside);
            let pack = launch::pack(dtype, &[own, channels], &pointers);
            let (plan, config, last) = self.prepare(dims, Pass::Forward, dtype, pack, 0)?;
            let mut args = vec![xs.arg()];
            if let Some(beside) = &beside {
                args.extend([beside.arg(), Arg::U32(launch::to_u32(own)?)]);
            }
            args.extend(parameters.0.map(Arg::Pointer));
            args.push(to.arg());
            args.extend(last);
            let joined = if beside.is_some() { "joined_" } else { "" };
            let dtype = launch::suffix(dtype)?;
            let function = format!("group_norm_{joined}{dtype}_{}", plan.variant());
            // SAFETY: the parameters of `group_norm` or `group_norm_joined`; blocks cover the images and
            // slabs, have shared memory for their sums, and a thread's pixels fit what it keeps.
            unsafe { launch::launch(device, &MODULE, &function, config, &args) }?;
        }
        Ok(out)
    }

    /// The gradient of the image, and for each image those of weight, bias and shift: `[2 or 3, batch,
    /// channels]`.
    fn backward(
        &self,
        xs: View<'_>,
        grad: View<'_>,
        parameters: &Parameters,
    ) -> Result<(CudaStorage, CudaStorage)> {
        let (device, dtype) = (xs.device(), xs.dtype());
        let (batch, height, width, channels) = xs.shape().dims4()?;
        let stream = device.cuda_stream();
        let sums = if parameters.0[2] == 0 { 2 } else { 3 };
        let mut out = launch::alloc(device, dtype, xs.shape().elem_count())?;
        let mut partial = launch::alloc(device, DType::F32, sums * batch * channels)?;
        let (xs, grad) = (xs.pointer(&stream)?, grad.pointer(&stream)?);
        {
            let to = launch::pointer_mut(&mut out, &stream)?;
            let partial = launch::pointer_mut(&mut partial, &stream)?;
            let dims = [batch, height, width, channels];
            let pack = launch::pack(dtype, &[channels], &[&xs, &grad, &to]);
            let (plan, config, last) = self.prepare(dims, Pass::Backward, dtype, pack, sums)?;
            let [weight, bias, shift] = parameters.0.map(Arg::Pointer);
            let mut args = vec![xs.arg(), grad.arg(), weight, bias, shift, to.arg(), partial.arg()];
            args.push(Arg::U32(launch::to_u32(batch)?));
            args.extend(last);
            let dtype = launch::suffix(dtype)?;
            let function = format!("group_norm_backward_{dtype}_{}", plan.variant());
            // SAFETY: the parameters of `group_norm_backward`; the rest as forwards.
            unsafe { launch::launch(device, &BACKWARD, &function, config, &args) }?;
        }
        Ok((out, partial))
    }
}

/// Parameters that nobody asks the gradients of.
pub(super) struct Fixed {
    norm: Norm,
    parts: Vec<Tensor>,
}

impl Fixed {
    /// `parts` are weight, bias and perhaps shift.
    pub(super) fn new(norm: Norm, parts: &[&Tensor]) -> Result<Self> {
        let parts = parts.iter().map(|part| part.contiguous()).collect::<Result<_>>()?;
        Ok(Self { norm, parts })
    }

    /// The channels of `beside`, if there is one, follow those of `xs`.
    pub(super) fn run(&self, xs: View<'_>, beside: Option<View<'_>>) -> Result<CudaStorage> {
        self.with_parameters(xs.device(), |parameters| self.norm.forward(xs, beside, parameters))
    }

    /// Calls `run` with the parameters' addresses.
    fn with_parameters<R>(
        &self,
        device: &CudaDevice,
        run: impl FnOnce(&Parameters) -> Result<R>,
    ) -> Result<R> {
        let stream = device.cuda_stream();
        let call = |views: &[View<'_>]| {
            let mut addresses = [0; 3];
            let mut held = Vec::with_capacity(views.len());
            for (address, view) in addresses.iter_mut().zip(views) {
                let pointer = view.pointer(&stream)?;
                *address = pointer.address;
                held.push(pointer);
            }
            run(&Parameters(addresses))
        };
        match &self.parts[..] {
            [weight, bias] => op::with_views([weight, bias], |views| call(&views)),
            [weight, bias, shift] => op::with_views([weight, bias, shift], |views| call(&views)),
            other => bail!("group_norm expected 2 or 3 parameters, got {}", other.len()),
        }
    }
}

impl Operation<1> for Fixed {
    const NAME: &'static str = "group_norm";

    fn forward(&self, [xs]: [View<'_>; 1]) -> Result<(CudaStorage, Shape)> {
        Ok((self.run(xs, None)?, xs.shape().clone()))
    }

    fn backward(&self, [xs]: [&Tensor; 1], grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (out, _) = op::with_views([xs, grad], |[xs, grad]| {
            self.with_parameters(xs.device(), |parameters| self.norm.backward(xs, grad, parameters))
        })?;
        Ok([Some(op::tensor(out, xs.shape()))])
    }
}
