//! Entries that programs may call and that are not there: each says so, where the loader would only
//! find nothing.

use crate::api::{Outcome, answer, refusal};
use crate::{blas, dnn, driver};

/// An entry that refuses whatever it is given. The platform's callers clean up their arguments, so
/// the declaration needs none.
macro_rules! absent {
    ($($code:expr => $($name:ident)*;)*) => {
        $($(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> u32 {
                answer(stringify!($name), $code, || -> Outcome {
                    Err(refusal($code, "the stand-in does not have this"))
                })
            }
        )*)*
    };
}

const CURAND_INTERNAL_ERROR: u32 = 999;
const NCCL_INVALID_USAGE: u32 = 5;
const NVRTC_INTERNAL_ERROR: u32 = 11;

absent! {
    driver::codes::NOT_SUPPORTED =>
        cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxSetCacheConfig
        cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuDestroyExternalMemory
        cuExternalMemoryGetMappedBuffer cuImportExternalMemory cuGetProcAddress_v2 cuGraphClone
        cuGraphCreate cuGraphExecUpdate_v2 cuGraphExecKernelNodeSetParams_v2
        cuGraphKernelNodeGetParams_v2 cuGraphAddKernelNode_v2 cuGraphGetEdges_v2
        cuLaunchCooperativeKernel cuLaunchKernelEx cuLibraryLoadData cuLibraryGetKernel
        cuLinkCreate_v2 cuMemAdvise_v2 cuMemPoolCreate cuMemPoolDestroy cuMemPrefetchAsync_v2
        cuMemAddressReserve cuMemCreate cuMemMap cuMemsetD2D8Async cuModuleLoadFatBinary
        cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveClusters
        cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize
        cuStreamBeginCaptureToGraph cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v3
        cuStreamUpdateCaptureDependencies cuStreamWaitValue32_v2 cuStreamWriteValue32_v2
        cuThreadExchangeStreamCaptureMode;
    blas::NOT_SUPPORTED =>
        cublasDasum_v2 cublasSasum_v2 cublasDgemv_v2 cublasSgemv_v2 cublasGemmGroupedBatchedEx
        cublasLtCreate cublasLtMatmul cublasLtMatmulAlgoGetHeuristic;
    dnn::NOT_SUPPORTED =>
        cudnnActivationForward cudnnConvolutionBiasActivationForward
        cudnnCreateActivationDescriptor cudnnCreatePoolingDescriptor
        cudnnCreateReduceTensorDescriptor cudnnPoolingForward cudnnReduceTensor
        cudnnSetConvolutionNdDescriptor cudnnSoftmaxForward cudnnBackendPopulateCudaGraph
        cudnnBackendUpdateCudaGraph;
    CURAND_INTERNAL_ERROR =>
        curandGenerateLogNormal curandGenerateLogNormalDouble curandGenerateLongLong
        curandGeneratePoisson;
    NCCL_INVALID_USAGE =>
        ncclCommSplit ncclRecv ncclRedOpCreatePreMulSum ncclRedOpDestroy ncclSend;
    NVRTC_INTERNAL_ERROR => nvrtcCreateProgram nvrtcCompileProgram;
}
