//! A convolution as a graph of one operation.
//!
//! cuDNN names dimensions as `[N, C, H, W]` and filters as `[K, C, R, S]` whatever lies where in
//! memory; the strides say that channels are last.

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind,
};

use super::descriptor::{Descriptor, Failure};
use crate::conv::{Pass, Problem};

/// What a variant pack calls the three tensors.
pub(super) const X: i64 = 1;
pub(super) const W: i64 = 2;
pub(super) const Y: i64 = 3;

/// `conv::run` checks the pointers for it.
const ALIGNMENT: i64 = 16;

/// The finalised graph, and what it refers to.
#[derive(Debug)]
pub(super) struct Graph {
    // Fields are dropped in this order: the graph before what it refers to.
    graph: Descriptor,
    _operation: Descriptor,
    _convolution: Descriptor,
    _tensors: [Descriptor; 3],
}

impl Graph {
    pub(super) fn new(handle: sys::cudnnHandle_t, problem: &Problem) -> Result<Self, Failure> {
        let geometry = &problem.geometry;
        let tensors = [
            tensor(handle, problem.dtype, geometry.x_shape(), X)?,
            tensor(handle, problem.dtype, geometry.w_shape(), W)?,
            tensor(handle, problem.dtype, geometry.y_shape(), Y)?,
        ];
        let convolution = convolution(handle, problem)?;
        let operation = operation(handle, problem.pass, &convolution, &tensors)?;
        let doing = "describe the graph";
        let mut graph = Descriptor::new(handle, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle, doing)?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, operation.reference(), doing)?;
        let graph = graph.finalize(doing)?;
        Ok(Self { graph, _operation: operation, _convolution: convolution, _tensors: tensors })
    }

    pub(super) fn descriptor(&self) -> &Descriptor {
        &self.graph
    }
}

/// `shape`: `[N, H, W, C]` or `[K, R, S, C]`, as it lies in memory.
fn tensor(
    handle: sys::cudnnHandle_t,
    dtype: DType,
    shape: [usize; 4],
    id: i64,
) -> Result<Descriptor, Failure> {
    let doing = "describe a tensor";
    let [n, h, w, c] = shape.map(|size| size as i64);
    let dtype = match dtype {
        DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        _ => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
    };
    let mut tensor = Descriptor::new(handle, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, dtype, doing)?;
    tensor.set_all(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &[n, c, h, w], doing)?;
    tensor.set_all(Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * c, 1, w * c, c], doing)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, id, doing)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, ALIGNMENT, doing)?;
    tensor.finalize(doing)
}

/// Sums are taken in `f32`, whatever the tensors are.
fn convolution(handle: sys::cudnnHandle_t, problem: &Problem) -> Result<Descriptor, Failure> {
    let doing = "describe the convolution";
    let padding = [problem.geometry.padding as i64; 2];
    let stride = [problem.geometry.stride as i64; 2];
    let mut convolution = Descriptor::new(handle, Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 2_i64, doing)?;
    convolution.set(
        Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
        sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        doing,
    )?;
    convolution.set(
        Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
        sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
        doing,
    )?;
    convolution.set_all(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding, doing)?;
    convolution.set_all(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding, doing)?;
    convolution.set_all(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &stride, doing)?;
    convolution.set_all(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64; 2], doing)?;
    convolution.finalize(doing)
}

/// `result = 1 * operation + 0 * result`.
fn operation(
    handle: sys::cudnnHandle_t,
    pass: Pass,
    convolution: &Descriptor,
    [x, w, y]: &[Descriptor; 3],
) -> Result<Descriptor, Failure> {
    let doing = "describe the operation";
    let (kind, names) = names(pass);
    let mut operation = Descriptor::new(handle, kind)?;
    operation.set(names.x, x.reference(), doing)?;
    operation.set(names.w, w.reference(), doing)?;
    operation.set(names.y, y.reference(), doing)?;
    operation.set(names.convolution, convolution.reference(), doing)?;
    // Scales have the type of the sums.
    operation.set(names.alpha, 1_f32, doing)?;
    operation.set(names.beta, 0_f32, doing)?;
    operation.finalize(doing)
}

/// What a kind of operation calls its attributes.
struct Names {
    x: Name,
    w: Name,
    y: Name,
    convolution: Name,
    alpha: Name,
    beta: Name,
}

fn names(pass: Pass) -> (Kind, Names) {
    match pass {
        Pass::Forward => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            Names {
                x: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                w: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                y: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                convolution: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
            },
        ),
        Pass::BackwardData => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            Names {
                x: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                w: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                y: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                convolution: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
            },
        ),
        Pass::BackwardFilter => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            Names {
                x: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                w: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                y: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                convolution: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
            },
        ),
    }
}
