//! The gradient step of all variables of a network, in as many launches as it has parts: the sum of
//! gradients over micro-batches, their norm, and the optimiser's step with the moving average behind
//! it.
//!
//! The device decides for itself how much a gradient is clipped, and that nothing moves after a loss
//! or a gradient that is not finite. The host reads one small record when everything of a step has
//! been launched, and waits nowhere before.
//!
//! Addresses of variables, moments and averages are uploaded once: candle's `Var::set` copies into the
//! memory that a variable has. Gradients are new tensors in each step; their addresses are a few
//! kilobytes that go through pinned memory. The numbers are those of the CPU bit for bit, but for the
//! norm, which is summed in `f64` in another order.

mod table;

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, LaunchConfig, PinnedHostSlice, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Result, Tensor};

use self::table::Table;
use crate::ptx;
use crate::upload::Upload;

/// Threads of a block, as in the kernels.
const THREADS: u32 = 256;

/// The rule of a step. Decay of the weights apart from the gradient is `Coefficients::keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Sgd,
    SgdNesterov,
    Adam,
    AdamAmsgrad,
}

impl Rule {
    /// How many moments each variable has.
    pub fn moments(self) -> usize {
        match self {
            Self::Sgd | Self::SgdNesterov => 1,
            Self::Adam => 2,
            Self::AdamAmsgrad => 3,
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::SgdNesterov => "sgd_nesterov",
            Self::Adam => "adam",
            Self::AdamAmsgrad => "adam_amsgrad",
        }
    }
}

/// The numbers of one step; what a rule does not use is of no account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coefficients {
    /// The learning rate; Adam's over the first moment's bias.
    pub rate: f32,
    /// Added to the gradient, times the value.
    pub weight_decay: f32,
    /// What is left of the value before it moves.
    pub keep: f32,
    /// SGD's momentum, or the weight of the past in Adam's first moment.
    pub beta1: f32,
    pub beta2: f32,
    pub one_minus_beta1: f32,
    pub one_minus_beta2: f32,
    pub bias2_sqrt: f32,
    pub eps: f32,
    /// The weight of the average's past, and that of the value.
    pub past: f32,
    pub now: f32,
}

/// One variable and what belongs to it: contiguous `f32` tensors of one size on one CUDA device, whose
/// memory stays where it is as long as they are used here.
pub struct Variable<'a> {
    pub value: &'a Tensor,
    /// As many as the rule has; none for a variable that has an average only.
    pub moments: &'a [Tensor],
    pub average: Option<&'a Tensor>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Whether every loss and every norm was finite; otherwise nothing has moved.
    pub is_finite: bool,
    /// Before clipping; 0 where no limit was given. Of the last micro-batch, or of the first that was
    /// not finite.
    pub norm: f64,
    /// Of the same micro-batch.
    pub loss: f64,
}

/// Gradients since the last step.
enum Held {
    Nothing,
    /// Those of one micro-batch, where the backward pass left them, and the table of their addresses.
    /// Null means no gradient.
    One(Vec<Option<Tensor>>, CudaSlice<u64>),
    /// The sum of several. Which variables have a gradient.
    Sum(Vec<bool>),
}

/// The gradient step of a set of variables.
pub struct Optim {
    rule: Rule,
    device: CudaDevice,
    table: Table,
    /// One sum of squares for each chunk.
    partials: CudaSlice<f64>,
    /// `Status` of the kernels.
    status: CudaSlice<f64>,
    /// Where the host reads it.
    seen: PinnedHostSlice<f64>,
    upload: Upload<u64>,
    held: Held,
}

impl Optim {
    /// # Errors
    /// Variables on another device, of another type or not contiguous, moments of another number or
    /// size than the rule and the variable have, or memory that cannot be had.
    pub fn new(rule: Rule, variables: &[Variable<'_>]) -> Result<Self> {
        let Some(first) = variables.first() else {
            candle_core::bail!("optimiser expected at least one variable, got none");
        };
        let device = first.value.device().as_cuda_device()?.clone();
        let table = Table::new(rule, variables, &device)?;
        // SAFETY: `square_sums` writes every partial sum before `judge` reads them.
        let partials = unsafe { device.alloc::<f64>(table.n_chunks() as usize) }?;
        let status = device.alloc_zeros::<f64>(4)?;
        // SAFETY: it is read only after a copy has filled it, and any bits are numbers.
        let seen = unsafe { device.cuda_stream().context().alloc_pinned_with_flags(4, 0) }.w()?;
        let upload = Upload::new(first.value.device())?;
        Ok(Self { rule, device, table, partials, status, seen, upload, held: Held::Nothing })
    }

    /// Takes the gradients of a micro-batch: `gradients[i]` is that of the i-th variable, if the loss
    /// depends on it. They are added to those of the micro-batches before, which were scaled down to
    /// the norm `limit` first, and so is the sum. `loss` is the micro-batch's, before it is divided by
    /// their number.
    ///
    /// # Shapes
    /// `loss`: a scalar, `f32`
    ///
    /// # Errors
    /// Another number of gradients, or one of another size or device.
    pub fn add(
        &mut self,
        gradients: Vec<Option<Tensor>>,
        loss: &Tensor,
        limit: Option<f64>,
    ) -> Result<()> {
        let contiguous = |grad: Option<Tensor>| grad.map(|grad| grad.contiguous()).transpose();
        let gradients = gradients.into_iter().map(contiguous).collect::<Result<Vec<_>>>()?;
        let pointers = self.table.gradients(&gradients, &self.device)?;
        let new = self.upload.send(&pointers)?;
        let is_first = matches!(self.held, Held::Nothing);
        self.held = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => Held::One(gradients, new),
            Held::One(old, old_table) => {
                self.table.make_sums(&self.device)?;
                self.add_up(&old_table, true)?;
                self.add_up(&new, false)?;
                let either = |(old, new): (&Option<_>, &Option<_>)| old.is_some() || new.is_some();
                Held::Sum(old.iter().zip(&gradients).map(either).collect())
            }
            Held::Sum(mut present) => {
                self.add_up(&new, false)?;
                present.iter_mut().zip(&gradients).for_each(|(old, new)| *old |= new.is_some());
                Held::Sum(present)
            }
        };
        if limit.is_some() {
            self.square_sums()?;
        }
        self.judge(loss, is_first, limit)
    }

    /// Makes the step, and waits for all of it.
    ///
    /// # Errors
    /// No gradients, or what the driver says, which may be about anything that was launched before.
    pub fn step(&mut self, c: &Coefficients) -> Result<Outcome> {
        let held = std::mem::replace(&mut self.held, Held::Nothing);
        let gradients = match &held {
            Held::Nothing => candle_core::bail!("a step expected gradients, got none"),
            Held::One(_, table) => table,
            Held::Sum(present) => &self.upload.send(&self.table.sums_of(present))?,
        };
        let (stream, function) = (self.device.cuda_stream(), self.function(self.rule.kernel())?);
        let mut launch = stream.launch_builder(&function);
        launch.arg(self.table.entries()).arg(self.table.chunks()).arg(gradients).arg(&self.status);
        launch.arg(&c.rate).arg(&c.weight_decay).arg(&c.keep).arg(&c.beta1).arg(&c.beta2);
        launch.arg(&c.one_minus_beta1).arg(&c.one_minus_beta2).arg(&c.bias2_sqrt).arg(&c.eps);
        launch.arg(&c.past).arg(&c.now);
        // SAFETY: the arguments are those of the kernel by type and order: four pointers and eleven
        // `f32`. The table's addresses are of live memory, as `Variable` demands, and of the sizes that
        // it says; the gradients' are held until after the launch, on whose stream they are freed.
        unsafe { launch.launch(self.per_chunk()) }.w()?;
        drop(held);
        stream.memcpy_dtoh(&self.status, &mut self.seen).w()?;
        // Waits in this thread; waiting for the event of the copy alone would put it to sleep.
        stream.synchronize().w()?;
        match self.seen.as_slice().w()? {
            &[is_finite, _, norm, loss] => Ok(Outcome { is_finite: is_finite == 1.0, norm, loss }),
            other => candle_core::bail!("status expected 4 numbers, got {}", other.len()),
        }
    }

    /// Forgets the gradients since the last step.
    pub fn discard(&mut self) {
        self.held = Held::Nothing;
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let function = self.device.get_or_load_custom_func(name, "oodbench_optim", ptx::OPTIM)?;
        Ok(function.into_cuda_function())
    }

    /// One block for each chunk.
    fn per_chunk(&self) -> LaunchConfig {
        blocks(self.table.n_chunks())
    }

    fn add_up(&self, gradients: &CudaSlice<u64>, is_first: bool) -> Result<()> {
        let (stream, function) = (self.device.cuda_stream(), self.function("add_up")?);
        let is_first = u32::from(is_first);
        let mut launch = stream.launch_builder(&function);
        launch.arg(self.table.entries()).arg(self.table.chunks()).arg(gradients);
        launch.arg(self.table.sum_table()?).arg(&is_first).arg(&self.status);
        // SAFETY: four pointers, a `u32` and a pointer, as the kernel has them; sums are as long as
        // their variables.
        unsafe { launch.launch(self.per_chunk()) }.w()?;
        Ok(())
    }

    /// The squares of what is held, chunk by chunk.
    fn square_sums(&mut self) -> Result<()> {
        let (stream, function) = (self.device.cuda_stream(), self.function("square_sums")?);
        let gradients = match &self.held {
            Held::One(_, table) => table,
            _ => self.table.sum_table()?,
        };
        let config = self.per_chunk();
        let mut launch = stream.launch_builder(&function);
        launch.arg(self.table.entries()).arg(self.table.chunks()).arg(gradients);
        launch.arg(&mut self.partials);
        // SAFETY: four pointers, as the kernel has them; there is a partial sum for each block.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    fn judge(&mut self, loss: &Tensor, is_first: bool, limit: Option<f64>) -> Result<()> {
        if loss.elem_count() != 1 {
            candle_core::bail!("loss expected a scalar, got {:?}", loss.shape());
        }
        let loss = table::address(loss, &self.device)?;
        let (stream, function) = (self.device.cuda_stream(), self.function("judge")?);
        let n = limit.map_or(0, |_| self.table.n_chunks());
        let (is_first, has_limit) = (u32::from(is_first), u32::from(limit.is_some()));
        let limit = limit.unwrap_or(0.0);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&n).arg(&self.partials).arg(&loss).arg(&is_first).arg(&has_limit).arg(&limit);
        launch.arg(&mut self.status);
        // SAFETY: a `u32`, two pointers, two `u32`, an `f64` and a pointer, as the kernel has them.
        // Whoever frees the loss does so on the same stream, after this launch.
        unsafe { launch.launch(blocks(1)) }.w()?;
        Ok(())
    }
}

fn blocks(n: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (n, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
