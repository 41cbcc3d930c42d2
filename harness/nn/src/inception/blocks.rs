//! The blocks of Inception-v3: branches side by side, whose channels are joined.
//!
//! The letters are those of torchvision's classes, the names of the layers those of the file.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use super::pool::{average_pool, max_pool_same, max_pool_stride_2};
use crate::kernels;

/// Zeros around the image, above and below, left and right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padding {
    rows: usize,
    columns: usize,
}

impl Padding {
    pub(super) const NONE: Self = Self { rows: 0, columns: 0 };
    /// What keeps the size under a 3x3 kernel.
    pub(super) const SAME_3: Self = Self { rows: 1, columns: 1 };
}

/// A convolution with its batch normalisation.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv {
    /// TensorFlow's, not PyTorch's usual 1e-5.
    const BATCH_NORM_EPS: f64 = 1e-3;

    /// Reads `conv.weight` and the four tensors of `bn`, and folds the latter into the former.
    pub(super) fn new(
        vb: VarBuilder<'_>,
        c_in: usize,
        c_out: usize,
        kernel: (usize, usize),
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let weight = vb.get((c_out, c_in, kernel.0, kernel.1), "conv.weight")?;
        let bn = |name: &str| vb.pp("bn").get(c_out, name)?.to_dtype(DType::F64);
        let scale = (bn("weight")? / (bn("running_var")? + Self::BATCH_NORM_EPS)?.sqrt()?)?;
        let bias = (bn("bias")? - (bn("running_mean")? * &scale)?)?;
        let weight =
            weight.to_dtype(DType::F64)?.broadcast_mul(&scale.reshape((c_out, 1, 1, 1))?)?;
        let (weight, bias) = (weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?);
        Ok(Self { weight, bias, stride, padding })
    }

    /// The same for an input `x` that is to become `scale * x + shift` first. There must be no
    /// padding, for zeros around the image would have to become `shift`.
    pub(super) fn taking(self, scale: f64, shift: f64) -> Result<Self> {
        let sums = self.weight.to_dtype(DType::F64)?.flatten_from(1)?.sum(1)?;
        let bias = (self.bias.to_dtype(DType::F64)? + (sums * shift)?)?.to_dtype(DType::F32)?;
        Ok(Self { weight: (&self.weight * scale)?, bias, ..self })
    }

    /// 1x1.
    fn one(vb: VarBuilder<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Self::new(vb, c_in, c_out, (1, 1), 1, Padding::NONE)
    }

    /// Any odd kernel, with the padding that keeps the size.
    fn same(vb: VarBuilder<'_>, c_in: usize, c_out: usize, kernel: (usize, usize)) -> Result<Self> {
        let padding = Padding { rows: kernel.0 / 2, columns: kernel.1 / 2 };
        Self::new(vb, c_in, c_out, kernel, 1, padding)
    }

    /// 3x3 that halves the size.
    fn halve(vb: VarBuilder<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Self::new(vb, c_in, c_out, (3, 3), 2, Padding::NONE)
    }

    /// Without the ReLU.
    fn linear(&self, xs: &Tensor) -> Result<Tensor> {
        let Padding { rows, columns } = self.padding;
        let conv = |xs: &Tensor, padding| {
            kernels::conv2d(xs, &self.weight, Some(&self.bias), self.stride, padding)
        };
        if rows == columns {
            return conv(xs, rows);
        }
        conv(&xs.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?, 0)
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        relu(self.linear(xs)?)
    }
}

/// One of the paths through a block.
#[derive(Debug)]
pub(super) enum Branch {
    /// One convolution after the other.
    Convs(Vec<Conv>),
    /// The same, and two convolutions side by side at the end.
    Fork(Vec<Conv>, [Conv; 2]),
    /// Average pooling and a 1x1 convolution.
    Average(Conv),
    /// Max pooling that keeps the size and a 1x1 convolution.
    Max(Conv),
    /// Max pooling that halves the size.
    Halve,
}

impl Branch {
    fn forward(&self, xs: &Tensor, joined: &mut Vec<Tensor>) -> Result<()> {
        let chain =
            |convs: &[Conv]| convs.iter().try_fold(xs.clone(), |xs, conv| conv.forward(&xs));
        match self {
            Self::Convs(convs) => joined.push(chain(convs)?),
            Self::Fork(convs, ends) => {
                let xs = chain(convs)?;
                for end in ends {
                    joined.push(end.forward(&xs)?);
                }
            }
            // The mean of a window and a 1x1 convolution are linear and can be exchanged, as the
            // weights of a window's pixels add up to one. The convolution leaves fewer channels.
            Self::Average(conv) => joined.push(relu(average_pool(&conv.linear(xs)?)?)?),
            Self::Max(conv) => joined.push(conv.forward(&max_pool_same(xs)?)?),
            Self::Halve => joined.push(max_pool_stride_2(xs)?),
        }
        Ok(())
    }
}

/// A step of the network.
#[derive(Debug)]
pub(super) enum Block {
    Conv(Conv),
    MaxPool,
    Mixed(Vec<Branch>),
}

impl Block {
    /// # Shapes
    /// `xs`: `[batch, channels, height, width]`, no value negative behind the first step
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(xs),
            Self::MaxPool => max_pool_stride_2(xs),
            Self::Mixed(branches) => {
                let mut joined = Vec::new();
                for branch in branches {
                    branch.forward(xs, &mut joined)?;
                }
                Tensor::cat(&joined, 1)
            }
        }
    }

    /// 35x35.
    pub(super) fn a(vb: VarBuilder<'_>, c_in: usize, c_pool: usize) -> Result<Self> {
        Ok(Self::Mixed(vec![
            Branch::Convs(vec![Conv::one(vb.pp("branch1x1"), c_in, 64)?]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch5x5_1"), c_in, 48)?,
                Conv::same(vb.pp("branch5x5_2"), 48, 64, (5, 5))?,
            ]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch3x3dbl_1"), c_in, 64)?,
                Conv::same(vb.pp("branch3x3dbl_2"), 64, 96, (3, 3))?,
                Conv::same(vb.pp("branch3x3dbl_3"), 96, 96, (3, 3))?,
            ]),
            Branch::Average(Conv::one(vb.pp("branch_pool"), c_in, c_pool)?),
        ]))
    }

    /// From 35x35 to 17x17.
    pub(super) fn b(vb: VarBuilder<'_>, c_in: usize) -> Result<Self> {
        Ok(Self::Mixed(vec![
            Branch::Convs(vec![Conv::halve(vb.pp("branch3x3"), c_in, 384)?]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch3x3dbl_1"), c_in, 64)?,
                Conv::same(vb.pp("branch3x3dbl_2"), 64, 96, (3, 3))?,
                Conv::halve(vb.pp("branch3x3dbl_3"), 96, 96)?,
            ]),
            Branch::Halve,
        ]))
    }

    /// 17x17, with `c_mid` channels between the long kernels.
    pub(super) fn c(vb: VarBuilder<'_>, c_in: usize, c_mid: usize) -> Result<Self> {
        let (wide, high) = ((1, 7), (7, 1));
        Ok(Self::Mixed(vec![
            Branch::Convs(vec![Conv::one(vb.pp("branch1x1"), c_in, 192)?]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch7x7_1"), c_in, c_mid)?,
                Conv::same(vb.pp("branch7x7_2"), c_mid, c_mid, wide)?,
                Conv::same(vb.pp("branch7x7_3"), c_mid, 192, high)?,
            ]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch7x7dbl_1"), c_in, c_mid)?,
                Conv::same(vb.pp("branch7x7dbl_2"), c_mid, c_mid, high)?,
                Conv::same(vb.pp("branch7x7dbl_3"), c_mid, c_mid, wide)?,
                Conv::same(vb.pp("branch7x7dbl_4"), c_mid, c_mid, high)?,
                Conv::same(vb.pp("branch7x7dbl_5"), c_mid, 192, wide)?,
            ]),
            Branch::Average(Conv::one(vb.pp("branch_pool"), c_in, 192)?),
        ]))
    }

    /// From 17x17 to 8x8.
    pub(super) fn d(vb: VarBuilder<'_>, c_in: usize) -> Result<Self> {
        Ok(Self::Mixed(vec![
            Branch::Convs(vec![
                Conv::one(vb.pp("branch3x3_1"), c_in, 192)?,
                Conv::halve(vb.pp("branch3x3_2"), 192, 320)?,
            ]),
            Branch::Convs(vec![
                Conv::one(vb.pp("branch7x7x3_1"), c_in, 192)?,
                Conv::same(vb.pp("branch7x7x3_2"), 192, 192, (1, 7))?,
                Conv::same(vb.pp("branch7x7x3_3"), 192, 192, (7, 1))?,
                Conv::halve(vb.pp("branch7x7x3_4"), 192, 192)?,
            ]),
            Branch::Halve,
        ]))
    }

    /// 8x8, first of two.
    pub(super) fn e_average(vb: VarBuilder<'_>, c_in: usize) -> Result<Self> {
        let pool = Branch::Average(Conv::one(vb.pp("branch_pool"), c_in, 192)?);
        Self::e(vb, c_in, pool)
    }

    /// 8x8, second of two: the published graph pools by the maximum here, and only here.
    pub(super) fn e_max(vb: VarBuilder<'_>, c_in: usize) -> Result<Self> {
        let pool = Branch::Max(Conv::one(vb.pp("branch_pool"), c_in, 192)?);
        Self::e(vb, c_in, pool)
    }

    fn e(vb: VarBuilder<'_>, c_in: usize, pool: Branch) -> Result<Self> {
        let ends = |name: &str| -> Result<[Conv; 2]> {
            Ok([
                Conv::same(vb.pp(format!("{name}a")), 384, 384, (1, 3))?,
                Conv::same(vb.pp(format!("{name}b")), 384, 384, (3, 1))?,
            ])
        };
        Ok(Self::Mixed(vec![
            Branch::Convs(vec![Conv::one(vb.pp("branch1x1"), c_in, 320)?]),
            Branch::Fork(vec![Conv::one(vb.pp("branch3x3_1"), c_in, 384)?], ends("branch3x3_2")?),
            Branch::Fork(
                vec![
                    Conv::one(vb.pp("branch3x3dbl_1"), c_in, 448)?,
                    Conv::same(vb.pp("branch3x3dbl_2"), 448, 384, (3, 3))?,
                ],
                ends("branch3x3dbl_3")?,
            ),
            pool,
        ]))
    }
}

/// ReLU on a tensor that nobody else holds; on the CPU where it lies.
fn relu(xs: Tensor) -> Result<Tensor> {
    if !super::pool::is_cpu_f32(&xs) {
        return xs.relu();
    }
    xs.inplace_op1(&ReluInPlace)?;
    Ok(xs)
}

struct ReluInPlace;

impl InplaceOp1 for ReluInPlace {
    fn name(&self) -> &'static str {
        "relu-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("relu expected a contiguous f32 tensor");
        };
        values[start..end].par_chunks_mut(1 << 14).for_each(|chunk| {
            for value in chunk {
                *value = value.max(0.0);
            }
        });
        Ok(())
    }
}
